"""The roll-up ``llm_usage_hourly``: what ``llm_traces`` adds up to, hour by hour.

An hour of the roll-up has no batch. It is computed from ``llm_traces`` as that table is now, and
put in place by the upsert that loads traces. It is computed anew whenever it is compared, so that
the roll-up follows every change of ``llm_traces``. In a cluster every shard rolls up its own
organizations.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.clickhouse.cluster import loader_of
from llm_trace_pipeline.clickhouse.held import Held
from llm_trace_pipeline.clickhouse.loads import Figures, Hour, Loaded, Loader, window_of
from llm_trace_pipeline.clickhouse.tables import (
    IN_WINDOW,
    ROLLUP,
    TABLE,
    define_table,
    in_window,
    local_name,
)
from llm_trace_pipeline.clickhouse.traces import Traces
from llm_trace_pipeline.errors import BatchError, ClickHouseError
from llm_trace_pipeline.hours import BEGINNING, Window, by_day
from llm_trace_pipeline.sql import quote_identifier, render
from llm_trace_pipeline.trace.columns import COST_COLUMNS, TOKEN_COLUMNS

DIMENSIONS = (
    *("organization_id", "project_id", "agent_id", "provider", "model", "call_type"),
    *("billing_plan_type", "billing_cost_source", "billing_customer_id", "is_byok"),
)
SUMS = (
    *("calls", "errors", *TOKEN_COLUMNS, "request_size_bytes", "response_size_bytes"),
    *(*COST_COLUMNS, "unpriced_calls", "unmetered_calls"),
)
COLUMNS = ("hour", *DIMENSIONS, *SUMS, "latency_ms")
LATENCY_TOLERANCE = 0.01  # of a quantile; the histogram's own error is below 0.8 %

_QUANTILES = ("p50 of latency", "p95 of latency")

NOTHING: Figures = dict.fromkeys(("rows", *SUMS, "content hash", *_QUANTILES), 0)


class Rollup:
    """What a roll-up is to hold: what a table of traces adds up to now."""

    time_column = "hour"
    tolerances: Mapping[str, float] = dict.fromkeys(_QUANTILES, LATENCY_TOLERANCE)

    def __init__(self, database: Database, store: BatchStore, traces: str, table: str) -> None:
        """Compare the roll-up ``table`` with ``traces``; the store knows the loaded hours."""
        self._database = database
        self._store = store
        self._traces = traces
        self._table = table

    @cached_property
    def _rows_of_traces(self) -> str:
        """What a query reads traces FROM; their table is up to date when this is asked."""
        return Held(self._database, self._traces).rows

    def expected(self, hours: Sequence[datetime]) -> list[Hour]:
        """Return what the traces of the hours add up to."""
        define_table(self._database, self._traces)
        window = Window.of(hours)
        of_window = {"table": self._rows_of_traces, "filter": IN_WINDOW}
        found = self._figures(render("clickhouse/roll_up.sql", **of_window), window)
        measured = self._database.rows(
            render("clickhouse/exact_latency.sql", **of_window), window.parameters
        )
        exact = {row["hour"]: row["latency"] for row in measured}
        for hour, figures in found.items():
            figures |= dict(zip(_QUANTILES, exact.get(hour, (0, 0)), strict=True))
        return [Hour(hour, found.get(hour, NOTHING)) for hour in hours]

    def expected_around(self, hours: Sequence[datetime]) -> list[Hour]:
        """Return what the traces of the hours that were ever loaded add up to."""
        loaded = [hour for hour in hours if self._was_loaded(hour)]
        return self.expected(loaded) if loaded else []

    def _was_loaded(self, hour: datetime) -> bool:
        try:
            return self._store.manifest(hour) is not None
        except BatchError:  # the hour has a manifest, if one that cannot be read
            return True

    def found(self, window: Window) -> dict[datetime, Figures]:
        """Return what the roll-up holds of every hour of a window."""
        table = self._database.qualified(self._table)
        rows = f"SELECT * FROM {table} WHERE {in_window(self.time_column)}"
        found = self._figures(rows, window)
        return {hour: found.get(hour, NOTHING) for hour in window.hours}

    def found_around(self, window: Window) -> dict[datetime, Figures]:
        """Return what the roll-up holds of every hour of a window: all its figures cost little."""
        return self.found(window)

    def _figures(self, rows: str, window: Window) -> dict[datetime, Figures]:
        found = self._database.rows(
            render("clickhouse/usage_totals.sql", rows=rows), window.parameters
        )
        return {
            row["hour"]: {
                **{name: row[name] for name in ("rows", *SUMS)},
                "content hash": row["content_hash"],
                **dict(zip(_QUANTILES, row["latency"], strict=True)),
            }
            for row in found
        }

    def fill(self, staging: str, hours: Sequence[Hour]) -> None:
        """Put what the traces of contiguous hours add up to into a staging table."""
        statement = render(
            "clickhouse/insert_roll_up.sql",
            table=self._database.qualified(staging),
            columns=", ".join(quote_identifier(name) for name in COLUMNS),
            rows=render("clickhouse/roll_up.sql", table=self._rows_of_traces, filter=IN_WINDOW),
        )
        self._database.execute(statement, window_of(hours).parameters)


class RollupLoader(Loader):
    """Rolls up one table of traces."""

    def __init__(
        self,
        database: Database,
        store: BatchStore,
        traces: str = TABLE,
        table: str = ROLLUP,
        kept_from: datetime = BEGINNING,
    ) -> None:
        """Roll up ``traces`` into ``table``, from where the retention begins on."""
        contents = Rollup(database, store, traces, table)
        super().__init__(database, table, contents, store.files, kept_from)
        of_traces = Traces(database, store, traces)
        self._traces = Loader(database, traces, of_traces, store.files, kept_from)

    def try_recover(self) -> ClickHouseError | None:
        """Finish a swap of the traces that was cut, which shows rows twice; then the roll-up's."""
        left = self._traces.try_recover()
        return super().try_recover() or left


def rollups_of(
    database: Database, store: BatchStore, kept_from: datetime = BEGINNING
) -> list[RollupLoader]:
    """Return the loaders that roll up ``llm_traces``: one, or one a shard of a cluster.

    Args:
        database: where the tables lie.
        store: where the batches lie.
        kept_from: where the retention begins.

    Raises:
        ClickHouseError: the cluster is not known, or no replica of a shard answers.
    """
    if not database.cluster:
        return [RollupLoader(database, store, kept_from=kept_from)]
    return [
        RollupLoader(shard, store, traces, local_name(ROLLUP), kept_from)
        for shard, traces in loader_of(database, store).targets
    ]


def roll_up(
    database: Database,
    store: BatchStore,
    hours: Sequence[datetime],
    kept_from: datetime = BEGINNING,
) -> list[Loaded]:
    """Make the roll-up hold what ``llm_traces`` adds up to; an hour that is right is left alone.

    Args:
        database: where the tables lie.
        store: where the batches lie.
        hours: the hours, in their order; those of a day are swapped in together.
        kept_from: where the retention begins; earlier hours of a partition are not compared.

    Returns:
        One result an hour; in a cluster, one an hour and shard.

    Raises:
        ClickHouseError: a statement failed, or another writer is in the way.
    """
    _define_on_cluster(database)
    loaders = rollups_of(database, store, kept_from)
    return [result for day in by_day(hours) for loader in loaders for result in loader.load(day)]


def compare_rollup(
    database: Database, store: BatchStore, hours: Sequence[datetime]
) -> dict[datetime, tuple[str, ...]]:
    """Return the hours whose roll-up is not what ``llm_traces`` adds up to, and the differences.

    Raises:
        ClickHouseError: a statement failed.
    """
    _define_on_cluster(database)
    found: dict[datetime, tuple[str, ...]] = {}
    for loader in rollups_of(database, store):
        for day in by_day(hours):
            for hour, differences in loader.compare(day).items():
                told = (f"{ROLLUP}: {text}" for text in differences)
                found[hour] = (*found.get(hour, ()), *told)
    return found


def _define_on_cluster(database: Database) -> None:
    """Make the tables of a cluster on all its nodes; a single server's are made by their loader."""
    if database.cluster:
        for table in (TABLE, ROLLUP):
            define_table(database, table)
