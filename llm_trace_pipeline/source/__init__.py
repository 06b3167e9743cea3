"""The operational PostgreSQL, read only."""
