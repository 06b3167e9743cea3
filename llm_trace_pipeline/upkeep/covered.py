"""The rows that an erasure covers: where they are, and how many.

Batches tell by their columns, ClickHouse by one statement (sql/clickhouse/covered_rows.sql). The
search proves afterwards that the erased id is gone from the files.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llm_trace_pipeline.batches.erasures import Erasure
from llm_trace_pipeline.batches.manifest import Manifest
from llm_trace_pipeline.batches.records import MANIFEST
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.clickhouse.cluster import loader_of
from llm_trace_pipeline.clickhouse.rollup import rollups_of
from llm_trace_pipeline.clickhouse.tables import ROLLUP, TABLE, has_table
from llm_trace_pipeline.hours import floor, key_of
from llm_trace_pipeline.sql import render
from llm_trace_pipeline.trace.columns import ARROW_SCHEMA

_COVERED_BY = ["organization_id", "agent_id", "created_at"]
_TEXT_COLUMNS = [
    field.name
    for field in ARROW_SCHEMA
    if pa.types.is_string(field.type) or pa.types.is_list(field.type)
]


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


def count_traces(database: Database, store: BatchStore, erasure: Erasure) -> Found:
    """Count the rows that an erasure covers."""
    found = Found()
    for manifest in reached_batches(store, erasure):
        if rows := count_in_batch(store, manifest, erasure):
            found.batches[manifest.hour] = rows
    if has_table(database, TABLE):
        found.clickhouse = traces_by_hour(database, erasure)
        found.replaced = sum(
            sum(traces_on_disk(node, table, erasure).values())
            for node, table in loader_of(database, store).targets
        ) - sum(found.clickhouse.values())
    if has_table(database, ROLLUP):
        found.rollup = _sums_by_hour(database, erasure)
        found.replaced += sum(
            sum(masked_sums(node, table, erasure).values())
            for loader in rollups_of(database, store)
            for node, table in loader.targets
        )
    return found


def search(store: BatchStore, erasure: Erasure) -> Search:
    """Search the batches that lost rows for the erased id: their files and their decoded texts."""
    name = erasure.agent_id or erasure.organization_id
    found = Search()
    for manifest in reached_batches(store, erasure):
        if not manifest.source_erased:
            continue
        text = manifest.model_dump_json().encode()
        places = {MANIFEST: text.count(name.encode())}
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


def reached_batches(store: BatchStore, erasure: Erasure) -> Iterator[Manifest]:
    """Return the batches of the hours that the erasure reaches."""
    for hour in store.hours():
        if hour < erasure.before and (manifest := store.manifest(hour)):
            yield manifest


def count_in_batch(store: BatchStore, manifest: Manifest, erasure: Erasure) -> int:
    """Return how many rows of a batch the erasure covers; three columns are read."""
    return sum(
        erasure.covers(rows).true_count for rows in store.column_batches(manifest, _COVERED_BY)
    )


def condition_of(erasure: Erasure, column: str = "created_at") -> tuple[str, dict[str, Any]]:
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


def count_rows(  # noqa: PLR0913 -- the parts of one statement
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
    condition, parameters = condition_of(erasure, time)
    statement = render(
        "clickhouse/covered_rows.sql",
        key=key,
        counted=counted,
        table=node.qualified(table),
        condition=condition,
        mask="0" if with_masked else "1",
    )
    return {row["key"]: row["rows"] for row in node.rows(statement, parameters)}


def traces_by_hour(database: Database, erasure: Erasure) -> dict[datetime, int]:
    """Return how many traces of ``llm_traces`` the erasure covers, by hour."""
    return count_rows(database, TABLE, erasure, key="toStartOfHour(created_at, 'UTC')")


def traces_on_disk(node: Database, table: str, erasure: Erasure) -> dict[str, int]:
    """Return the traces by partition, with those that a lightweight DELETE masked."""
    return count_rows(node, table, erasure, key="_partition_id", with_masked=True)


def _sums_by_hour(database: Database, erasure: Erasure) -> dict[datetime, int]:
    """Return the rows of the roll-up for the hours that are covered whole.

    Where the erasure ends within an hour, the hour may go on having rows.
    """
    whole = erasure.model_copy(update={"before": floor(erasure.before)})
    return count_rows(database, ROLLUP, whole, key="hour", time="hour")


def masked_sums(node: Database, table: str, erasure: Erasure) -> dict[str, int]:
    """Return the rows of a roll-up, by partition, that a lightweight DELETE masked."""
    counted = "countIf(_row_exists = 0)"
    return count_rows(
        node, table, erasure, key="_partition_id", counted=counted, time="hour", with_masked=True
    )
