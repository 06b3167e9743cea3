"""What a check before a load finds wrong, and how it is put right."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """What is wrong, and its repair. A load would fail on a fatal problem."""

    message: str
    repair: str
    is_fatal: bool = True

    def __str__(self) -> str:
        """Return the lines that an operator reads."""
        kind = "error" if self.is_fatal else "warning"
        return f"{kind}: {' '.join(self.message.split())}\n  repair: {self.repair}"
