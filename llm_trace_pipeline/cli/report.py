"""``make report``: what some days cost and whom, as one HTML page."""

import argparse
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.cli.commands import run_command, say
from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.errors import PipelineError, SettingsError
from llm_trace_pipeline.reports.spend import Days, figures_of, page_of
from llm_trace_pipeline.settings import Settings

DAYS = 7  # before today


def days_between(first: str, last: str, today: date) -> Days:
    """Return the days from the first to the last; by default the last seven full ones, and today.

    Raises:
        SettingsError: one is no day, or they are the wrong way round.
    """
    try:
        end = date.fromisoformat(last) if last else today
        start = date.fromisoformat(first) if first else end - timedelta(days=DAYS)
    except ValueError as error:
        raise SettingsError(
            f"FROM, TO: must be days such as 2026-03-01 (UTC, both included): {error}"
        ) from None
    if end < start:
        raise SettingsError(f"TO: {end} lies before FROM: {start}")
    return Days(start, end)


def main() -> None:
    """Write the report of the days that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", help="first day, or nothing")
    parser.add_argument("last", help="last day, or nothing")
    parser.add_argument("out", help="the file, or nothing")
    arguments = parser.parse_args()
    settings, now = Settings.from_environment(), datetime.now(UTC)
    days = days_between(arguments.first, arguments.last, now.date())
    with connect(settings) as database:
        figures = figures_of(database, BatchStore.of(settings), days)
    name = f"{days.first}_{days.last}.html"
    path = Path(arguments.out or settings.state_dir / "reports" / name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page_of(figures, now), encoding="utf-8")
    except OSError as error:
        raise PipelineError(f"OUT: {path}: {error.strerror}") from None
    say(str(path))


if __name__ == "__main__":
    run_command(main)
