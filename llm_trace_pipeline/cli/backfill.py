"""``make backfill``, ``make restore``: load a range of hours, both ends included."""

import argparse
from datetime import UTC, datetime

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.cli.commands import load_hours, run_command, say
from llm_trace_pipeline.demo.traffic import first_hour
from llm_trace_pipeline.errors import SettingsError
from llm_trace_pipeline.hours import HOUR, Window, key_of, parse_hour, ranges
from llm_trace_pipeline.settings import Settings

_USAGE = "FROM=2026-03-01-00:00 TO=2026-03-31-23:00 (UTC, both included)"


def hours_between(first: str, last: str, settings: Settings) -> list[datetime]:
    """Return the hours of a range given by the keys of its first and last hour.

    Raises:
        SettingsError: the range is empty, begins before the first partition or has not ended yet.
    """
    if not (first and last):
        raise SettingsError(f"FROM, TO: both are needed: {_USAGE}")
    try:
        start, end = parse_hour(first), parse_hour(last)
    except ValueError as error:
        raise SettingsError(f"FROM, TO: {error}: {_USAGE}") from None
    earliest = settings.first_hour or first_hour(settings.state_dir)
    if end < start:
        raise SettingsError(f"TO: {last} lies before FROM: {first}")
    if start < earliest:
        raise SettingsError(
            f"FROM: {first} lies before the first partition, {key_of(earliest)} (LLM_TRACES_START)"
        )
    if end + HOUR > datetime.now(UTC):
        raise SettingsError(f"TO: the hour {last} has not ended yet")
    return Window(start, end + HOUR).hours


def main() -> None:
    """Load the hours that the arguments span."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", help="key of the first hour")
    parser.add_argument("last", help="key of the last hour")
    parser.add_argument(
        "--from-batches",
        action="store_true",
        help="rebuild ClickHouse from the Parquet batches, without the operational database",
    )
    arguments = parser.parse_args()
    settings = Settings.from_environment()
    hours = hours_between(arguments.first, arguments.last, settings)
    if arguments.from_batches:
        having_batches = set(BatchStore.of(settings).hours()).intersection(hours)
        say(f"{len(having_batches)} of {len(hours)} hours have a batch")
        for window in ranges(having_batches):
            load_hours(window.hours, "llm_traces", "llm_usage_hourly")
    else:
        load_hours(hours)
        say(f"{len(hours)} hours loaded")


if __name__ == "__main__":
    run_command(main)
