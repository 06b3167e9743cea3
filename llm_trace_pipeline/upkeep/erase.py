"""Erasure: remove traces from every batch and from ClickHouse.

The erasure is recorded before anything is removed, so that no load brings the rows back. Every step
after that does only the work that is left, so an erasure that was cut is finished by repeating it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llm_trace_pipeline.batches.erasures import Erasure, record_erasure
from llm_trace_pipeline.batches.manifest import Manifest
from llm_trace_pipeline.batches.rewrite import rewrite
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import Database, connect, retried
from llm_trace_pipeline.clickhouse.cluster import loader_of
from llm_trace_pipeline.clickhouse.loads import loading
from llm_trace_pipeline.clickhouse.rollup import roll_up, rollups_of
from llm_trace_pipeline.clickhouse.tables import ROLLUP, TABLE, has_table
from llm_trace_pipeline.errors import ClickHouseError, PipelineError
from llm_trace_pipeline.hours import BEGINNING, key_of
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.sql import render
from llm_trace_pipeline.trace.fast_responses import read_response
from llm_trace_pipeline.trace.hashes import octets
from llm_trace_pipeline.upkeep.covered import (
    Found,
    Search,
    condition_of,
    count_in_batch,
    count_rows,
    count_traces,
    masked_sums,
    reached_batches,
    search,
    traces_by_hour,
    traces_on_disk,
)
from llm_trace_pipeline.upkeep.retention import kept_since

KEPT = (
    "the billing history: it holds plan versions of organizations, and no traces",
    "the reports of days: they hold sums by organization; materialize usage_report to renew them",
    "the record of the erasure: it names what was erased, so that it stays erased",
)
OUT_OF_REACH = (
    "the operational database: the traces are still there; later loads leave them out",
    "backups of PostgreSQL, of ClickHouse and of the batches; old versions of a bucket's objects",
    "inactive parts: ClickHouse removes them some minutes later (old_parts_lifetime) while it runs",
    "in a cluster, what a load that was cut left on a replica other than the one that loads now",
    "logs, the metadata of Dagster's runs, and ClickHouse's system tables, which may name ids",
)


@dataclass(frozen=True)
class Erased:
    """The outcome of an erasure."""

    written: list[datetime]  # the hours whose batches were written anew
    compared: list[datetime]  # the hours whose rows in ClickHouse were compared with their batches
    left: Found
    searched: Search


def remove_from_batches(store: BatchStore, erasure: Erasure) -> list[datetime]:
    """Write every batch that holds covered rows anew, without them; return their hours.

    Every hour's folder is held once, also where no batch is yet: an extraction that began before
    the erasure was recorded has ended then, and files that an interrupted write left are gone.
    """
    written = []
    for hour in store.begun_hours():
        if hour < erasure.before:
            with store.writing(hour) as writer:
                current = writer.current
                if current and count_in_batch(store, current, erasure):
                    removal = _Removal(erasure, current)
                    manifest = rewrite(writer, current, removal.kept)
                    writer.publish(manifest.model_copy(update=removal.figures()))
                    written.append(hour)
    return written


def remove_from_clickhouse(
    database: Database, store: BatchStore, erasure: Erasure, kept_from: datetime = BEGINNING
) -> list[datetime]:
    """Delete the covered rows; return the hours that were compared with their batches afterwards.

    A mutation deletes the rows, since it writes the parts anew: a lightweight DELETE would leave
    the bytes where they are.
    """
    loader = loader_of(database, store, kept_from)
    condition, parameters = condition_of(erasure)
    touched: set[datetime] = set()
    with loading(store.files):
        retried(loader.recover)  # its journal holds rows too
        if not has_table(database, TABLE):
            return []
        touched |= traces_by_hour(database, erasure).keys()
        if touched:
            for node, table in loader.targets:
                node.execute_until_done(
                    render(
                        "clickhouse/delete_rows.sql",
                        table=node.qualified(table),
                        condition=condition,
                    ),
                    parameters,
                )
        # Neither a query nor ALTER TABLE … DELETE sees the rows that an upsert masked: a mutation
        # leaves a part without visible rows as it is.
        for node, table in loader.targets:
            _apply_mask(node, table, traces_on_disk(node, table, erasure))
    manifests = [
        manifest
        for manifest in reached_batches(store, erasure)
        if (manifest.source_erased or manifest.hour in touched) and manifest.hour >= kept_from
    ]
    for manifest in manifests:
        [result] = loader.load([manifest.hour])
        if result.differences:
            raise ClickHouseError(
                f"hour {key_of(manifest.hour)}: ClickHouse does not equal its batch after "
                f"the erasure ({', '.join(result.differences)}); materialize llm_traces for it, "
                "then repeat the erasure"
            )
    compared = [manifest.hour for manifest in manifests]
    _remove_from_rollup(database, store, erasure, kept_from, touched.union(compared))
    return compared


def _remove_from_rollup(
    database: Database,
    store: BatchStore,
    erasure: Erasure,
    kept_from: datetime,
    touched: set[datetime],
) -> None:
    """Roll up anew the hours that lost calls, and take the rows masked by that from the disk."""
    if not has_table(database, ROLLUP):
        return
    # The roll-up itself tells the hours that an erasure which was cut left there. Before the
    # retention's line only those are rolled up: a dropped hour must not come back.
    held = count_rows(database, ROLLUP, erasure, key="hour", time="hour")
    kept = {hour for hour in touched if hour >= kept_from}
    hours = sorted(kept.union(held))
    for result in roll_up(database, store, hours, kept_from):
        if result.differences:
            raise ClickHouseError(
                f"hour {key_of(result.expected.hour)}: {ROLLUP} does not equal {TABLE} after "
                f"the erasure ({', '.join(result.differences)}); materialize {ROLLUP} for "
                "it, then repeat the erasure"
            )
    with loading(store.files):
        for loader in rollups_of(database, store):
            retried(loader.recover)  # its journal holds rows too
            for node, table in loader.targets:
                _apply_mask(node, table, masked_sums(node, table, erasure))


def _apply_mask(node: Database, table: str, partitions: Iterable[str]) -> None:
    """Take the rows that a lightweight DELETE masked from the disk."""
    for partition in partitions:
        node.execute_until_done(
            render("clickhouse/apply_mask.sql", table=node.qualified(table)),
            {"partition": partition},
        )


def find(settings: Settings, erasure: Erasure) -> Found:
    """Count the rows that an erasure covers in the stores that the settings name.

    Raises:
        PipelineError: nothing was ever loaded into these stores, or one of them cannot be read.
    """
    store = BatchStore.of(settings)
    with connect(settings) as database:
        if not (store.begun_hours() or has_table(database, TABLE)):
            raise PipelineError(
                f"nothing was ever loaded into {settings.trace_batch_uri} or "
                f"{settings.clickhouse_endpoint}: set the variables that the loads have, "
                "LLM_TRACES_STATE among them"
            )
        return count_traces(database, store, erasure)


def erase(settings: Settings, erasure: Erasure) -> Erased:
    """Record an erasure, remove the rows that it covers, and prove that none is left.

    Raises:
        PipelineError: something could not be removed; repeating the erasure continues it.
    """
    store = BatchStore.of(settings)
    record_erasure(store.files, erasure)
    # ClickHouse is not held meanwhile: loads that wait for the embedded engine would give up.
    written = remove_from_batches(store, erasure)
    with connect(settings) as database:
        days, now = settings.retention_days, datetime.now(UTC)
        first_kept = kept_since(database, store, days, now, TABLE, ROLLUP)
        compared = remove_from_clickhouse(database, store, erasure, first_kept)
        left = count_traces(database, store, erasure)
    if not left.is_nothing:
        raise PipelineError(
            "not everything is erased: another process wrote at the same time; repeat the erasure"
        )
    return Erased(written, compared, left, search(store, erasure))


class _Removal:
    """The removal of covered rows from a batch, and the figures of it that need the removed rows.

    These are the number of erased rows and of unreadable responses. Every other figure of the
    manifest follows from the remaining rows.
    """

    def __init__(self, erasure: Erasure, current: Manifest) -> None:
        self._erasure = erasure
        self._current = current
        self._removed = 0
        self._unreadable: set[str] = set()

    def kept(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows of a row group that the erasure does not cover."""
        covered = self._erasure.covers(rows)
        self.count_rows(rows.filter(covered))
        return rows.filter(pc.invert(covered))

    def count_rows(self, rows: pa.RecordBatch) -> None:
        self._removed += rows.num_rows
        if not self._current.unreadable:
            return
        for trace_id, size, response in zip(
            rows.column("id").to_pylist(),
            rows.column("response_size_bytes").to_pylist(),
            octets(rows.column("response_json")),
            strict=True,
        ):
            is_example = trace_id in self._current.unreadable_ids
            # What is left of a text that was not kept whole says nothing about the text.
            is_whole = response and len(response) == size
            if is_example or (is_whole and not read_response(response).is_readable):
                self._unreadable.add(trace_id)

    def figures(self) -> dict[str, Any]:
        """Return the figures, by the names of a manifest's fields."""
        examples = tuple(
            trace_id
            for trace_id in self._current.unreadable_ids
            if trace_id not in self._unreadable
        )
        left = max(len(examples), self._current.unreadable - len(self._unreadable))
        return {
            "source_erased": self._current.source_erased + self._removed,
            "unreadable": left,
            "unreadable_ids": examples,
        }
