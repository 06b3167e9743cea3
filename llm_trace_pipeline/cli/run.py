"""``run``: demo traffic where no database is configured, the last 24 full hours, a report."""

from collections.abc import Sequence
from datetime import UTC, datetime

import click

from llm_trace_pipeline.batches.history import read_history
from llm_trace_pipeline.batches.rules import Rules
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.cli.hours import load_hours
from llm_trace_pipeline.cli.instance import IS_CHECKOUT
from llm_trace_pipeline.cli.preflight import check_before_first_load
from llm_trace_pipeline.cli.terminal import printable
from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.clickhouse.held import Held
from llm_trace_pipeline.clickhouse.tables import TABLE
from llm_trace_pipeline.defs.stores import source_of
from llm_trace_pipeline.demo.postgres import embedded_postgres
from llm_trace_pipeline.demo.traffic import add_traffic, first_hour_of
from llm_trace_pipeline.errors import PipelineError
from llm_trace_pipeline.hours import HOUR, Window, closed_hours, key_of
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.sql import render
from llm_trace_pipeline.upkeep.reconcile import reconcile

HOURS = 24

_TABLES = {
    "By plan and cost source": "by_plan",
    "The largest organizations": "largest_organizations",
}
_NEXT = """
What next
  {call}dev              the Dagster UI on http://localhost:3000, with the hourly schedule running
  {call}sql {q}"SELECT model, count() FROM llm_traces GROUP BY model ORDER BY 2 DESC LIMIT 10"
  {call}backfill {first} {last}"""
_OWN = "Your own data: set {own}; then {call}preflight, {call}run."
_OWN_SOURCE = "OPERATIONAL_DATABASE_URL (PostgreSQL), LLM_TRACES_START (the first hour)"
_OWN_TARGET = "CLICKHOUSE_ENDPOINT, CLICKHOUSE_USERNAME, CLICKHOUSE_PASSWORD"


def load_last_hours() -> None:
    """Load the last 24 full hours, print what they hold, and compare the three stores."""
    settings = Settings.from_environment()
    if settings.is_demo:
        _add_demo_traffic(settings)
    first = first_hour_of(settings)
    hours = closed_hours(first, HOURS * HOUR, datetime.now(UTC))
    if not hours:
        raise PipelineError(f"no hour since LLM_TRACES_START ({key_of(first)}) has ended yet")
    check_before_first_load(settings, hours)
    click.echo(f"Loading {len(hours)} hours through Dagster")
    load_hours(settings, hours, "run")
    print_report(settings, hours)
    compare_stores(settings, hours)
    click.echo(what_next(settings, key_of(first), key_of(hours[0])))


def what_next(settings: Settings, first: str, last: str) -> str:
    """Return the commands to try, and the variables that nobody has set yet."""
    embedded = ((_OWN_SOURCE, settings.is_demo), (_OWN_TARGET, settings.is_embedded))
    own = [variables for variables, is_embedded in embedded if is_embedded]
    text = "\n".join([_NEXT, *([_OWN] if own else [])])
    if IS_CHECKOUT:
        call = {"call": "make ", "q": "Q=", "first": f"FROM={first}", "last": f"TO={last}"}
    else:
        call = {"call": "llm-traces ", "q": "", "first": first, "last": last}
    return text.format(own=" and\n".join(own), **call)


def _add_demo_traffic(settings: Settings) -> None:
    click.echo("Starting the embedded PostgreSQL")
    url = embedded_postgres(settings.state_dir)
    click.echo("Making demo traffic up to now")
    added = add_traffic(url, first_hour_of(settings), datetime.now(UTC), report=click.echo)
    click.echo(f"{added:,} new traces")


def print_report(settings: Settings, hours: Sequence[datetime]) -> None:
    """Print what the hours cost, as ClickHouse has them."""
    window = Window.of(hours)
    with connect(settings) as database:
        click.echo(
            f"\n{window.start:%Y-%m-%d %H:%M} to {window.end:%Y-%m-%d %H:%M} UTC, from ClickHouse\n"
        )
        traces = Held(database, TABLE).rows
        for heading, name in _TABLES.items():
            click.echo(heading)
            statement = render(f"report/{name}.sql", traces=traces)
            click.echo(printable(database.pretty(statement, window.parameters)))


def compare_stores(settings: Settings, hours: Sequence[datetime]) -> None:
    """Compare the hours in source, batches and ClickHouse, and print their rows."""
    store = BatchStore.of(settings)
    rules = Rules.of(settings, read_history(store.files))
    found = reconcile(source_of(settings), store, lambda: connect(settings), hours, rules)
    # ClickHouse is not compared where a batch has earlier billing or prices.
    if differing := sorted(set(hours) & {*found.differences, *found.stale}):
        raise PipelineError(
            f"source, batch and ClickHouse differ in {', '.join(map(key_of, differing))}: traces "
            "may have come in since; load these hours again with make backfill"
        )
    rows = {hour: manifest.rows for hour in hours if (manifest := store.manifest(hour))}
    click.echo("Hour (UTC)              rows")
    for hour in hours:
        click.echo(f"{key_of(hour)}  {rows.get(hour, 0):10,}")
    click.echo(f"{'total':16}  {sum(rows.values()):10,}")
    click.echo("source rows = batch rows = ClickHouse rows, in every hour")
