"""One row: what a call says, who pays for it and what it cost. Arrow in, Arrow out, no I/O."""
