"""The retention: hours older than so many days are dropped from ClickHouse and from the batches.

Days are whole UTC days. The line is the start of the day that lies so many days back; hours before
the line are dropped. With 30 days, on 31 March at any time, everything since 1 March 00:00 is kept.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import Database, retried
from llm_trace_pipeline.clickhouse.cluster import loader_of
from llm_trace_pipeline.clickhouse.loads import Loader, loading
from llm_trace_pipeline.clickhouse.pins import OF_ANY_SIZE
from llm_trace_pipeline.clickhouse.rollup import rollups_of
from llm_trace_pipeline.clickhouse.tables import ROLLUP, TABLE, has_table
from llm_trace_pipeline.clickhouse.ttl import kept_by_ttl
from llm_trace_pipeline.hours import BEGINNING, midnight
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.sql import render


@dataclass(frozen=True)
class Dropped:
    """What a retention dropped."""

    partitions: tuple[str, ...]  # ids of ClickHouse's partitions
    hours: tuple[datetime, ...]  # of batches


def line_before(days: int | None, now: datetime) -> datetime:
    """Return the line, where the kept days begin; without days, everything is kept."""
    return midnight(now) - timedelta(days=days) if days else BEGINNING


def kept_since(
    database: Database, store: BatchStore, days: int | None, now: datetime, *tables: str
) -> datetime:
    """Return the first hour that tables keep whole: by the retention, and by their own TTL.

    Args:
        database: where the tables lie.
        store: where the batches lie.
        days: which the retention keeps; None: all.
        now: the time.
        tables: ``llm_traces``, and the roll-up too where it counts.

    Raises:
        ClickHouseError: a statement failed.
    """
    loaders: dict[str, list[Loader]] = {TABLE: [loader_of(database, store)]}
    if ROLLUP in tables:
        loaders[ROLLUP] = [*rollups_of(database, store)]
    lines = [
        kept_by_ttl(node, name, loader.time_column)
        for table in tables
        for loader in loaders[table]
        for node, name in loader.targets
    ]
    return max(line_before(days, now), *lines)


def apply_retention(
    database: Database, store: BatchStore, settings: Settings, now: datetime
) -> Dropped:
    """Drop what lies before the lines of the settings.

    A partition of ClickHouse goes as a whole, once its newest row lies before the line.

    Raises:
        BatchError: another process loads, or writes one of the hours.
        ClickHouseError: a statement failed.
    """
    partitions: list[str] = []
    line, batch_line = (
        line_before(days, now) for days in (settings.retention_days, settings.batch_retention_days)
    )
    with loading(store.files):
        if line != BEGINNING:
            partitions = _drop_partitions(database, store, line)
        hours = [hour for hour in store.begun_hours() if hour < batch_line]
        for hour in hours:
            store.remove(hour)
    return Dropped(tuple(partitions), tuple(hours))


def _drop_partitions(database: Database, store: BatchStore, line: datetime) -> list[str]:
    # The journal of a swap that was cut would bring a partition back.
    traces, rollups = loader_of(database, store), rollups_of(database, store)
    for recover in (traces.try_recover, *(rollup.try_recover for rollup in rollups)):
        retried(recover)
    dropped: set[str] = set()
    targets = [(traces.time_column, *target) for target in traces.targets]
    for rollup in rollups:
        targets += [(rollup.time_column, *target) for target in rollup.targets]
    for time_column, node, name in targets:
        if not has_table(node, name):
            continue
        table = node.qualified(name)
        before = render("clickhouse/partitions_before.sql", table=table, column=time_column)
        past = [row["id"] for row in node.rows(before, {"line": line})]
        for partition in past:
            node.execute_until_done(
                render("clickhouse/drop_partition.sql", table=table),
                {"partition": partition},
                OF_ANY_SIZE,
            )
        dropped.update(past)
    return sorted(dropped)
