"""``make run``: demo traffic where no database is configured, the last 24 full hours, a report."""

from collections.abc import Sequence
from datetime import UTC, datetime

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.cli.commands import closed_hours, load_hours, run_command, say
from llm_trace_pipeline.clickhouse.client import IN_WINDOW, Database, connect
from llm_trace_pipeline.defs.stores import source_of
from llm_trace_pipeline.demo.postgres import embedded_postgres
from llm_trace_pipeline.demo.traffic import add_traffic, first_hour
from llm_trace_pipeline.errors import PipelineError
from llm_trace_pipeline.hours import Window, key_of
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.source.postgres import Source
from llm_trace_pipeline.sql import read_sql
from llm_trace_pipeline.upkeep.preflight import check_before_first_load

HOURS = 24

_NEXT = """
What next
  make dev              the Dagster UI on http://localhost:3000, with the hourly schedule running
  make sql Q="SELECT model, count() FROM llm_traces GROUP BY model ORDER BY 2 DESC LIMIT 10"
  make backfill FROM={first} TO={last}
Your own data: set OPERATIONAL_DATABASE_URL (PostgreSQL), LLM_TRACES_START (the first hour) and
CLICKHOUSE_ENDPOINT, CLICKHOUSE_USERNAME, CLICKHOUSE_PASSWORD; then make preflight, make run."""


def main() -> None:
    """Load the last 24 full hours and print what they hold."""
    settings = Settings.from_environment()
    if settings.is_demo:
        _add_demo_traffic(settings)
    first = settings.first_hour or first_hour(settings.state_dir)
    hours = closed_hours(HOURS, first)
    if not hours:
        raise PipelineError(f"no hour since LLM_TRACES_START ({key_of(first)}) has ended yet")
    check_before_first_load(settings, hours)
    say(f"Loading {len(hours)} hours through Dagster")
    load_hours(hours)
    print_report(settings, hours)
    say(_NEXT.format(first=key_of(first), last=key_of(hours[0])))


def _add_demo_traffic(settings: Settings) -> None:
    say("Starting the embedded PostgreSQL")
    url = embedded_postgres(settings.state_dir)
    say("Making demo traffic up to now")
    added = add_traffic(url, first_hour(settings.state_dir), datetime.now(UTC), report=say)
    say(f"{added:,} new traces")


def print_report(settings: Settings, hours: Sequence[datetime]) -> None:
    """Print what ClickHouse holds of the hours, and prove it against source and batches."""
    window = Window.of(hours)
    with connect(settings) as database:
        say(f"\n{window.start:%Y-%m-%d %H:%M} to {window.end:%Y-%m-%d %H:%M} UTC, from ClickHouse")
        say("\nBy plan and cost source")
        say(database.pretty(read_sql("report/by_plan.sql"), window.parameters))
        say("The largest organizations")
        say(database.pretty(read_sql("report/largest_organizations.sql"), window.parameters))
        _prove(source_of(settings), BatchStore.of(settings), database, hours)


def _prove(
    source: Source, store: BatchStore, database: Database, hours: Sequence[datetime]
) -> None:
    """Print, hour by hour, the rows of source, batch and ClickHouse.

    Raises:
        PipelineError: they are not equal everywhere.
    """
    with source.snapshot() as snapshot:
        ledger = snapshot.ledger(Window.of(hours))
        folded = snapshot.folded(Window.of(hours))
    found = database.hour_totals("llm_traces", IN_WINDOW, Window.of(hours).parameters)
    differing: list[str] = []
    totals = [0, 0, 0]
    say("Hour (UTC)            source    batch  ClickHouse")
    for hour in hours:
        manifest = store.manifest(hour)
        in_source = ledger[hour].rows if hour in ledger else 0
        in_source -= sum(row["hour"] == hour and not row["is_deleted"] for row in folded)
        in_batch = manifest.rows if manifest else 0
        in_table = found[hour].rows if hour in found else 0
        totals = [
            total + rows
            for total, rows in zip(totals, (in_source, in_batch, in_table), strict=True)
        ]
        key = key_of(hour)
        say(f"{key:18} {in_source:9,} {in_batch:8,} {in_table:11,}")
        if not in_source == in_batch == in_table:
            differing.append(key)
    say(f"{'total':18} {totals[0]:9,} {totals[1]:8,} {totals[2]:11,}")
    if differing:
        raise PipelineError(
            f"source, batch and ClickHouse differ in {', '.join(differing)}: traces may have come "
            "in since; load these hours again with make backfill"
        )
    say("source rows = batch rows = ClickHouse rows, in every hour")


if __name__ == "__main__":
    run_command(main)
