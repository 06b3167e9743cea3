"""``make backfill FROM=… TO=…``: load a range of hours, both ends included, through Dagster."""

import sys
from datetime import UTC, datetime

from llm_trace_pipeline import demo
from llm_trace_pipeline.commands import load_hours, run_command
from llm_trace_pipeline.errors import SettingsError
from llm_trace_pipeline.settings import HOUR, HOUR_FORMAT, Settings, parse_hour

_USAGE = "make backfill FROM=2026-03-01-00:00 TO=2026-03-31-23:00 (UTC, both included)"


def hours_between(first: str, last: str, settings: Settings) -> list[datetime]:
    """Return the hours of a range given by the keys of its first and last hour.

    Raises:
        SettingsError: the range is empty, begins before the first partition or has not ended yet.
    """
    try:
        start, end = parse_hour(first), parse_hour(last)
    except ValueError as error:
        raise SettingsError(f"FROM, TO: {error}; usage: {_USAGE}") from None
    earliest = settings.first_hour or demo.first_hour(settings.state_dir)
    if end < start:
        raise SettingsError(f"TO: {last} lies before FROM: {first}")
    if start < earliest:
        raise SettingsError(
            f"FROM: {first} lies before the first partition, {earliest:{HOUR_FORMAT}} "
            "(LLM_TRACES_START)"
        )
    if end + HOUR > datetime.now(UTC):
        raise SettingsError(f"TO: the hour {last} has not ended yet")
    return [start + HOUR * n for n in range(int((end - start) / HOUR) + 1)]


def main() -> None:
    """Load the hours that the two arguments span."""
    if len(sys.argv) != 3 or not all(sys.argv[1:]):  # noqa: PLR2004 -- FROM and TO
        raise SettingsError(f"FROM, TO: both are needed; usage: {_USAGE}")
    load_hours(hours_between(sys.argv[1], sys.argv[2], Settings.from_environment()))


if __name__ == "__main__":
    run_command(main)
