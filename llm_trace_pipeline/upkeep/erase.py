"""Erasure: remove traces from every batch and from ClickHouse.

The erasure is recorded before anything is removed, so that no load brings the rows back. Every step
after that does only the work that is left, so an erasure that was cut is finished by repeating it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
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
from llm_trace_pipeline.hours import BEGINNING, floor, key_of
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.sql import render
from llm_trace_pipeline.trace.columns import ARROW_SCHEMA
from llm_trace_pipeline.trace.fast_responses import read_response
from llm_trace_pipeline.trace.hashes import octets
from llm_trace_pipeline.upkeep.retention import line_before

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

_COVERED_BY = ["organization_id", "agent_id", "created_at"]
_TEXT_COLUMNS = [
    field.name
    for field in ARROW_SCHEMA
    if pa.types.is_string(field.type) or pa.types.is_list(field.type)
]
_WAIT = {"mutations_sync": 2, "alter_sync": 2}


@dataclass
class Found:
    """How many rows an erasure covers, by store and hour."""

    batches: dict[datetime, int] = field(default_factory=dict)
    clickhouse: dict[datetime, int] = field(default_factory=dict)
    rollup: dict[datetime, int] = field(default_factory=dict)  # rows of hours covered whole
    replaced: int = 0  # rows that no query shows, but that still lie in ClickHouse's active parts

    def describe(self) -> Iterator[str]:
        """Return the lines that an operator reads, one or two a store."""
        for name, hours in (("batches", self.batches), ("ClickHouse", self.clickhouse)):
            yield f"{name}: {sum(hours.values())} traces in {len(hours)} hours"
        yield f"{ROLLUP}: {sum(self.rollup.values())} rows in {len(self.rollup)} hours"
        if self.replaced:
            yield f"ClickHouse: {self.replaced} rows more that reloads replaced are still on disk"

    @property
    def is_nothing(self) -> bool:
        """Whether the erasure covers no row."""
        return not (self.batches or self.clickhouse or self.rollup or self.replaced)


@dataclass
class Search:
    """The result of a search of the new files for an id."""

    files: int = 0
    file_bytes: int = 0
    decoded_bytes: int = 0
    occurrences: list[str] = field(default_factory=list)  # with hour, place and number


@dataclass(frozen=True)
class Erased:
    """The outcome of an erasure."""

    written: list[datetime]  # the hours whose batches were written anew
    compared: list[datetime]  # the hours whose rows in ClickHouse were compared with their batches
    left: Found
    searched: Search


def count_traces(database: Database, store: BatchStore, erasure: Erasure) -> Found:
    """Count the rows that an erasure covers."""
    found = Found()
    for manifest in _batches(store, erasure):
        if rows := _count_in_batch(store, manifest, erasure):
            found.batches[manifest.hour] = rows
    if has_table(database, TABLE):
        found.clickhouse = _traces_by_hour(database, erasure)
        found.replaced = sum(
            sum(_traces_on_disk(node, table, erasure).values())
            for node, table in loader_of(database, store).targets
        ) - sum(found.clickhouse.values())
    if has_table(database, ROLLUP):
        found.rollup = _sums_by_hour(database, erasure)
        found.replaced += sum(
            sum(_masked_sums(node, table, erasure).values())
            for loader in rollups_of(database, store)
            for node, table in loader.targets
        )
    return found


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
                if current and _count_in_batch(store, current, erasure):
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
    condition, parameters = _condition(erasure)
    touched: set[datetime] = set()
    with loading(store.files):
        retried(loader.recover)  # its journal holds rows too
        if not has_table(database, TABLE):
            return []
        touched |= _traces_by_hour(database, erasure).keys()
        if touched:
            for node, table in loader.targets:
                node.execute_until_done(
                    render(
                        "clickhouse/delete_rows.sql",
                        table=node.qualified(table),
                        condition=condition,
                    ),
                    parameters,
                    _WAIT,
                )
        # Neither a query nor ALTER TABLE … DELETE sees the rows that an upsert masked: a mutation
        # leaves a part without visible rows as it is.
        for node, table in loader.targets:
            _apply_mask(node, table, _traces_on_disk(node, table, erasure))
    manifests = [
        manifest
        for manifest in _batches(store, erasure)
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
    held = _count(database, ROLLUP, erasure, key="hour", time="hour")
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
                _apply_mask(node, table, _masked_sums(node, table, erasure))


def _apply_mask(node: Database, table: str, partitions: Iterable[str]) -> None:
    """Take the rows that a lightweight DELETE masked from the disk."""
    for partition in partitions:
        node.execute_until_done(
            render("clickhouse/apply_mask.sql", table=node.qualified(table)),
            {"partition": partition},
            _WAIT,
        )


def search(store: BatchStore, erasure: Erasure) -> Search:
    """Search the batches that lost rows for the erased id: their files and their decoded texts."""
    name = erasure.agent_id or erasure.organization_id
    found = Search()
    for manifest in _batches(store, erasure):
        if not manifest.source_erased:
            continue
        text = manifest.model_dump_json().encode()
        places = {"manifest.json": text.count(name.encode())}
        for path in store.part_paths(manifest):
            content = path.files.read(path.key) or b""
            places[path.part.name] = content.count(name.encode())
        for rows in store.row_groups(manifest, _TEXT_COLUMNS):
            for column, texts in zip(_TEXT_COLUMNS, rows.columns, strict=True):
                values = texts.flatten() if pa.types.is_list(texts.type) else texts
                hits = pc.sum(pc.match_substring(values, name)).as_py() or 0
                places[column] = places.get(column, 0) + hits
                found.decoded_bytes += values.nbytes
        found.files += len(manifest.parts) + 1
        found.file_bytes += manifest.bytes + len(text)
        found.occurrences += [
            f"hour {key_of(manifest.hour)}: {place}, in {count} places"
            for place, count in places.items()
            if count
        ]
    return found


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
        kept_from = line_before(settings.retention_days, datetime.now(UTC))
        compared = remove_from_clickhouse(database, store, erasure, kept_from)
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
        self._count(rows.filter(covered))
        return rows.filter(pc.invert(covered))

    def _count(self, rows: pa.RecordBatch) -> None:
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


def _batches(store: BatchStore, erasure: Erasure) -> Iterator[Manifest]:
    """Return the batches of the hours that the erasure reaches."""
    for hour in store.hours():
        if hour < erasure.before and (manifest := store.manifest(hour)):
            yield manifest


def _count_in_batch(store: BatchStore, manifest: Manifest, erasure: Erasure) -> int:
    return sum(
        erasure.covers(rows).true_count for rows in store.column_batches(manifest, _COVERED_BY)
    )


def _condition(erasure: Erasure, column: str = "created_at") -> tuple[str, dict[str, Any]]:
    """Return ``Erasure.covers`` as an SQL condition, and its parameters."""
    condition = (
        f"organization_id = {{organization:String}} AND {column} < {{before:DateTime64(6, 'UTC')}}"
    )
    parameters: dict[str, Any] = {
        "organization": erasure.organization_id,
        "before": erasure.before.astimezone(UTC),
    }
    if erasure.agent_id is not None:
        condition += " AND agent_id = {agent:String}"
        parameters["agent"] = erasure.agent_id
    return condition, parameters


def _count(  # noqa: PLR0913 -- the parts of one statement
    node: Database,
    table: str,
    erasure: Erasure,
    *,
    key: str,
    counted: str = "count()",
    time: str = "created_at",
    with_masked: bool = False,
) -> dict[Any, int]:
    """Return how many rows of a table the erasure covers, by a key of theirs."""
    if not has_table(node, table):
        return {}
    condition, parameters = _condition(erasure, time)
    statement = render(
        "clickhouse/covered_rows.sql",
        key=key,
        counted=counted,
        table=node.qualified(table),
        condition=condition,
        mask="0" if with_masked else "1",
    )
    return {row["key"]: row["rows"] for row in node.rows(statement, parameters)}


def _traces_by_hour(database: Database, erasure: Erasure) -> dict[datetime, int]:
    return _count(database, TABLE, erasure, key="toStartOfHour(created_at, 'UTC')")


def _traces_on_disk(node: Database, table: str, erasure: Erasure) -> dict[str, int]:
    """Return the traces by partition, with those that a lightweight DELETE masked."""
    return _count(node, table, erasure, key="_partition_id", with_masked=True)


def _sums_by_hour(database: Database, erasure: Erasure) -> dict[datetime, int]:
    """Return the rows of the roll-up for the hours that are covered whole.

    Where the erasure ends within an hour, the hour may go on having rows.
    """
    whole = erasure.model_copy(update={"before": floor(erasure.before)})
    return _count(database, ROLLUP, whole, key="hour", time="hour")


def _masked_sums(node: Database, table: str, erasure: Erasure) -> dict[str, int]:
    """Return the rows of a roll-up, by partition, that a lightweight DELETE masked."""
    counted = "countIf(_row_exists = 0)"
    return _count(
        node, table, erasure, key="_partition_id", counted=counted, time="hour", with_masked=True
    )
