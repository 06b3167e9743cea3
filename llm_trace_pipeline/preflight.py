"""``make preflight``: what is missing at either end, with the exact repair."""

from collections.abc import Sequence
from datetime import datetime

from llm_trace_pipeline.settings import Settings


def check_before_first_load(settings: Settings, hours: Sequence[datetime]) -> None:
    """Check both ends."""
