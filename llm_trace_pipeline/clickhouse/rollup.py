"""The roll-up ``llm_usage_hourly``: what ``llm_traces`` adds up to, hour by hour.

An hour has no batch: it is made from ``llm_traces`` as that is now, and put in place by the same
upsert. What it is to hold is computed from ``llm_traces`` each time it is compared, so that it
follows whatever changed there. In a cluster each shard rolls up its own organizations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import Database, retried
from llm_trace_pipeline.clickhouse.cluster import loader_of
from llm_trace_pipeline.clickhouse.tables import (
    IN_WINDOW,
    ROLLUP,
    TABLE,
    catch_up,
    define_table,
    local_name,
)
from llm_trace_pipeline.clickhouse.traces import HourLoader
from llm_trace_pipeline.clickhouse.upsert import (
    Batches,
    WindowLoader,
    WindowResult,
    loading,
    window_of,
)
from llm_trace_pipeline.errors import BatchError
from llm_trace_pipeline.hours import Window, by_day
from llm_trace_pipeline.sql import quote_identifier, render
from llm_trace_pipeline.trace.columns import COST_COLUMNS, TOKEN_COLUMNS

DIMENSIONS = (
    *("organization_id", "project_id", "agent_id", "provider", "model", "call_type"),
    *("billing_plan_type", "billing_cost_source", "billing_customer_id", "is_byok"),
)
SUMS = (
    *("calls", "errors", *TOKEN_COLUMNS, "request_size_bytes", "response_size_bytes"),
    *(*COST_COLUMNS, "unpriced_calls"),
)
COLUMNS = ("hour", *DIMENSIONS, *SUMS, "latency_ms")
LATENCY_TOLERANCE = 0.01  # of a quantile; the histogram's own error is below 0.8 %

_QUANTILES = ("p50 of latency", "p95 of latency")

Figures = dict[str, Any]  # whole numbers, but for costs (Decimal) and quantiles


@dataclass(frozen=True)
class HourUse:
    """What the calls of an hour add up to."""

    hour: datetime
    figures: Figures


RollupResult = WindowResult[HourUse, Figures]

NOTHING: Figures = dict.fromkeys(("rows", *SUMS, "content hash", *_QUANTILES), 0)


class RollupLoader(WindowLoader[HourUse, Figures]):
    """Rolls up one table of traces."""

    time_column = "hour"
    _asset = ROLLUP
    _nothing = NOTHING

    def __init__(
        self,
        database: Database,
        store: Batches,
        traces: str = TABLE,
        table: str = ROLLUP,
        keep_from: datetime | None = None,
    ) -> None:
        """Roll up ``traces`` into ``table``; for the others see WindowLoader."""
        super().__init__(database, store, table, keep_from)
        self._traces = traces

    def recover(self) -> None:
        """Finish a swap of the traces that was cut, which shows rows twice; then one's own.

        Raises:
            ClickHouseError: a statement failed, or one of an earlier load does not end.
        """
        HourLoader(self._database, self._store, self._traces).recover()
        super().recover()
        for table in (self._traces, self._table):
            catch_up(self._database, table)

    def compare(self, hours: Sequence[datetime]) -> dict[datetime, tuple[str, ...]]:
        """Return the hours of which the table does not hold what the traces add up to, and how.

        Raises:
            ClickHouseError: a statement failed.
        """

        def differences() -> dict[datetime, tuple[str, ...]]:
            self.recover()
            define_table(self._database, self._table)
            expected = self._expected(hours)
            found = self._totals(expected)
            return {
                each.hour: tuple(f"{ROLLUP}: {text}" for text in differs)
                for each in expected
                if (differs := self._differences(each, found[each.hour]))
            }

        with loading(self._store.files):
            return retried(differences)

    def _expected(self, hours: Sequence[datetime]) -> list[HourUse]:
        define_table(self._database, self._traces)
        window = Window.of(hours)
        of_window = {"table": self._name(self._traces), "filter": IN_WINDOW}
        found = self._figures(render("clickhouse/roll_up.sql", **of_window), window)
        measured = self._database.rows(
            render("clickhouse/exact_latency.sql", **of_window), window.parameters
        )
        exact = {row["hour"]: row["latency"] for row in measured}
        for hour, figures in found.items():
            figures |= dict(zip(_QUANTILES, exact.get(hour, (0, 0)), strict=True))
        return [HourUse(hour, found.get(hour, NOTHING)) for hour in hours]

    def _expected_around(self, hours: Sequence[datetime]) -> list[HourUse]:
        loaded = [hour for hour in hours if self._was_loaded(hour)]
        return self._expected(loaded) if loaded else []

    def _was_loaded(self, hour: datetime) -> bool:
        try:
            return self._store.manifest(hour) is not None
        except BatchError:  # the hour has a manifest, if one that cannot be read
            return True

    def _fill(self, expected: Sequence[HourUse]) -> None:
        rows = render("clickhouse/roll_up.sql", table=self._name(self._traces), filter=IN_WINDOW)
        names = ", ".join(quote_identifier(name) for name in COLUMNS)
        self._database.execute(
            f"INSERT INTO {self._name(self._staging)} ({names}) SELECT {names} FROM ({rows})",
            window_of(expected).parameters,
        )

    def _found(self, window: Window) -> dict[datetime, Figures]:
        table = self._name(self._table)
        return self._figures(f"SELECT * FROM {table} WHERE {self._in_window}", window)

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

    def _differences(self, expected: HourUse, found: Figures) -> list[str]:
        return [
            f"{name} {found[name]}, not {value}"
            for name, value in expected.figures.items()
            if not (
                abs(float(found[name]) - float(value)) <= LATENCY_TOLERANCE * float(value)
                if name in _QUANTILES
                else found[name] == value
            )
        ]


def rollups_of(
    database: Database, store: BatchStore, keep_from: datetime | None = None
) -> list[RollupLoader]:
    """Return what rolls up ``llm_traces``; in a cluster, of each shard.

    Args:
        database: where the tables lie.
        store: where the batches lie.
        keep_from: where the retention begins.

    Raises:
        ClickHouseError: the cluster is not known, or no replica of a shard answers.
    """
    if not database.cluster:
        return [RollupLoader(database, store, keep_from=keep_from)]
    return [
        RollupLoader(shard, store, traces, local_name(ROLLUP), keep_from)
        for shard, traces in loader_of(database, store).targets
    ]


def roll_up(
    database: Database,
    store: BatchStore,
    hours: Sequence[datetime],
    keep_from: datetime | None = None,
) -> list[RollupResult]:
    """Make the roll-up hold what ``llm_traces`` adds up to; an hour that does is left alone.

    Args:
        database: where the tables lie.
        store: where the batches lie.
        hours: the hours, in their order; those of a day are swapped in together.
        keep_from: where the retention begins; earlier hours are not compared beside.

    Returns:
        One result an hour; in a cluster, one an hour and shard.

    Raises:
        ClickHouseError: a statement failed, or another writer is in the way.
    """
    _define_on_cluster(database)
    loaders = rollups_of(database, store, keep_from)
    return [result for day in by_day(hours) for loader in loaders for result in loader.load(day)]


def compare_rollup(
    database: Database, store: BatchStore, hours: Sequence[datetime]
) -> dict[datetime, tuple[str, ...]]:
    """Return the hours of which the roll-up is not what ``llm_traces`` adds up to, and how.

    Raises:
        ClickHouseError: a statement failed.
    """
    _define_on_cluster(database)
    found: dict[datetime, tuple[str, ...]] = {}
    for loader in rollups_of(database, store):
        for day in by_day(hours):
            for hour, differs in loader.compare(day).items():
                found[hour] = (*found.get(hour, ()), *differs)
    return found


def _define_on_cluster(database: Database) -> None:
    """Make the tables on all nodes at once; on a single server, a loader does once it recovered."""
    if database.cluster:
        for table in (TABLE, ROLLUP):
            define_table(database, table)
