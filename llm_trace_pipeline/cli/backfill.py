"""``backfill`` and ``restore``: load a range of hours, both ends included."""

from datetime import UTC, datetime

import click

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.cli.hours import load_hours
from llm_trace_pipeline.cli.preflight import check_before_restore
from llm_trace_pipeline.demo.traffic import first_hour_of
from llm_trace_pipeline.errors import SettingsError
from llm_trace_pipeline.hours import HOUR, Window, key_of, parse_hour
from llm_trace_pipeline.settings import Settings

_USAGE = "FROM=2026-03-01-00:00 TO=2026-03-31-23:00 (UTC, both included)"


def load_range(first: str, last: str) -> None:
    """Load the hours from the first key to the last one."""
    settings = Settings.from_environment()
    hours = hours_between(first, last, settings)
    load_hours(settings, hours, f"backfill {first} {last}")
    click.echo(f"{len(hours)} hours loaded")


def restore_range(first: str, last: str) -> None:
    """Load the hours that have a batch into ClickHouse, from the first key to the last one."""
    settings = Settings.from_environment()
    hours = hours_between(first, last, settings)
    having_batches = set(BatchStore.of(settings).hours()).intersection(hours)
    click.echo(f"{len(having_batches)} of {len(hours)} hours have a batch")
    check_before_restore(settings)
    load_hours(
        settings, having_batches, f"restore {first} {last}", ["llm_traces", "llm_usage_hourly"]
    )


def hours_between(first: str, last: str, settings: Settings) -> list[datetime]:
    """Return the hours of a range given by the keys of its first and last hour."""
    if not (first and last):
        raise SettingsError(f"FROM, TO: both are needed: {_USAGE}")
    try:
        start, end = parse_hour(first), parse_hour(last)
    except ValueError as error:
        raise SettingsError(f"FROM, TO: {error}: {_USAGE}") from None
    earliest = first_hour_of(settings)
    if end < start:
        raise SettingsError(f"TO: {last} lies before FROM: {first}")
    if start < earliest:
        raise SettingsError(
            f"FROM: {first} lies before the first partition, {key_of(earliest)} (LLM_TRACES_START)"
        )
    if end + HOUR > datetime.now(UTC):
        raise SettingsError(f"TO: the hour {last} has not ended yet")
    return Window(start, end + HOUR).hours
