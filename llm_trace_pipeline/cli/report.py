"""``report``: what some days cost and whom, as one HTML page."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import click

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.demo.traffic import first_hour_of
from llm_trace_pipeline.errors import SettingsError
from llm_trace_pipeline.hours import key_of
from llm_trace_pipeline.reports.spend import Days, figures_of, page_of
from llm_trace_pipeline.settings import Settings

DAYS = 7  # before today


def days_between(first: str, last: str, first_hour: datetime, today: date) -> Days:
    """Return the days from first to last; by default the last seven full days, and today.

    Raises:
        SettingsError: they are no days, or days of which nothing can be loaded.
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
    if end > today:
        raise SettingsError(f"TO: the day {end} has not begun yet")
    for name, day in (("FROM", first and start), ("TO", end)):
        if day and day < first_hour.date():
            raise SettingsError(
                f"{name}: {day} lies before the first hour, {key_of(first_hour)} (LLM_TRACES_START)"
            )
    return Days(start, end)


def write_report(first: str, last: str, out: str) -> None:
    """Write the page of the days from the first to the last, and print where it lies."""
    settings, now = Settings.from_environment(), datetime.now(UTC)
    days = days_between(first, last, first_hour_of(settings), now.date())
    with connect(settings) as database:
        figures = figures_of(database, BatchStore.of(settings), days)
    path = Path(out or settings.state_dir / "reports" / f"{days.first}_{days.last}.html")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page_of(figures, now), encoding="utf-8")
    click.echo(path)
