"""Hours of traces in the table: how their batches go in, and what the table holds of them.

ClickHouse reads by itself what it can reach: the embedded engine a file, a server a bucket. A file
that only this machine has is read here, and its rows are sent to the server.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from llm_trace_pipeline.batches.manifest import Manifest
from llm_trace_pipeline.batches.parts import PartPath
from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.clickhouse.tables import IN_WINDOW, TABLE
from llm_trace_pipeline.clickhouse.upsert import Batches, WindowLoader, WindowResult
from llm_trace_pipeline.errors import BatchError
from llm_trace_pipeline.hours import Window, key_of
from llm_trace_pipeline.sql import quote_identifier, render
from llm_trace_pipeline.trace.columns import COLUMNS, PAYLOAD_COLUMNS, TOKEN_COLUMNS
from llm_trace_pipeline.trace.hashes import row_hash_sql

BYTES_TOGETHER = 256 * 2**20  # of payload that is swapped in at once, where hours are small

# How much of a batch the engine puts into one block, of which several are on their way at once. Its
# own blocks of a million rows and its read-ahead took 2.8 GB for 400 rows of 5 MB. Blocks of 64 MB
# took 1.4 GB for a part of 137 MB; of 24 MB 1.0 GB, in the same time.
_BLOCK_BYTES = 24 * 2**20
_INSERT_SETTINGS = {
    "max_threads": 2,
    "max_insert_threads": 2,
    "min_insert_block_size_rows": 0,
    "min_insert_block_size_bytes": _BLOCK_BYTES,
    "input_format_parquet_memory_low_watermark": 2**20,
    "input_format_parquet_memory_high_watermark": _BLOCK_BYTES,
}
_ORGANIZATIONS_AT_ONCE = 1000  # a server takes a value of 128 KiB
_Rows = TypeVar("_Rows", pa.RecordBatch, pa.Table)


@dataclass(frozen=True)
class HourTotals:
    """What a table holds of one hour, without its payloads."""

    rows: int
    distinct_ids: int
    tokens: dict[str, int]
    content_hash: str | None = None  # hexadecimal; None where it was not computed
    cost_usd: Decimal = Decimal(0)


_NOTHING = HourTotals(
    rows=0, distinct_ids=0, tokens=dict.fromkeys(TOKEN_COLUMNS, 0), content_hash=f"{0:016x}"
)
LoadResult = WindowResult[Manifest, HourTotals]


def insert_parquet(database: Database, table: str, paths: Sequence[PartPath]) -> None:
    """Add the rows of Parquet files of the target's schema to a table; of a shard, its own rows.

    Args:
        database: where the table lies.
        table: where the rows go.
        paths: the files.

    Raises:
        BatchError: a file was removed meanwhile.
        ClickHouseError: the engine refused it.
    """
    dropped = () if database.keeps_payloads else PAYLOAD_COLUMNS
    names = [quote_identifier(column.name) for column in COLUMNS]
    for path in paths:
        if path.url or database.is_embedded:
            statement = render(
                "clickhouse/insert_parquet.sql",
                table=database.qualified(table),
                columns=", ".join(names),
                values=", ".join(
                    "''" if column.name in dropped else name
                    for column, name in zip(COLUMNS, names, strict=True)
                ),
                # With the engine's own access to the bucket, so that no secret is in a statement.
                function="s3" if path.url else "file",
                filter=database.shard.is_own if database.shard else "1",
            )
            # Named, so that the columns that a batch from before them lacks are NULL or ''.
            structure = ", ".join(
                f"{name} {column.clickhouse_type}"
                for column, name in zip(COLUMNS, names, strict=True)
            )
            # One file at a time: the engine would read ahead in all of them at once.
            with path.required():
                database.execute(
                    statement,
                    {"place": path.url or str(path), "structure": structure},
                    _INSERT_SETTINGS,
                )
            continue
        with path.open() as file:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group)
                for name in dropped:
                    blank = pa.repeat(pa.scalar("", pa.string()), rows.num_rows)
                    rows = rows.set_column(rows.schema.get_field_index(name), name, blank)
                database.insert_arrow(table, own_rows(database, rows))


def own_rows(database: Database, rows: _Rows) -> _Rows:
    """Return the rows whose organizations lie on the database's shard; all where it has none.

    The shard itself says which organizations those are; it is asked once for each of them.
    """
    if not (shard := database.shard):
        return rows
    organizations = rows.column("organization_id")
    distinct = organizations.unique().to_pylist()
    unknown = [name for name in distinct if name not in shard.known]
    statement = render("clickhouse/own_organizations.sql", is_own=shard.is_own)
    for start in range(0, len(unknown), _ORGANIZATIONS_AT_ONCE):
        asked = unknown[start : start + _ORGANIZATIONS_AT_ONCE]
        for row in database.rows(statement, {"organizations": asked}):
            shard.known[row["organization_id"]] = bool(row["is_own"])
    own = pa.array([name for name in distinct if shard.known[name]], pa.string())
    return rows.filter(pc.is_in(organizations, value_set=own))


def hour_totals(
    database: Database, table: str, window: Window, *, with_content_hash: bool = False
) -> dict[datetime, HourTotals]:
    """Return what a table holds of a window, by hour; an hour without rows is left out.

    Args:
        database: where the table lies.
        table: a table with the target's columns.
        window: the hours.
        with_content_hash: compute the content hash too.

    Raises:
        ClickHouseError: the table cannot be read.
    """
    statement = render(
        "clickhouse/hour_totals.sql",
        table=database.qualified(table),
        filter=IN_WINDOW,
        content_hash=f"sum({row_hash_sql()})" if with_content_hash else "0",
    )
    return {
        row["hour"]: HourTotals(
            rows=row["rows"],
            distinct_ids=row["distinct_ids"],
            tokens={name: row[f"sum_{name}"] for name in TOKEN_COLUMNS},
            cost_usd=row["sum_cost_usd"],
            content_hash=f"{row['content_hash']:016x}" if with_content_hash else None,
        )
        for row in database.rows(statement, window.parameters)
    }


class HourLoader(WindowLoader[Manifest, HourTotals]):
    """Loads hours from the batch store into one table."""

    _nothing = _NOTHING

    def __init__(
        self,
        database: Database,
        store: Batches,
        table: str = TABLE,
        keep_from: datetime | None = None,
    ) -> None:
        """Load into the table; see WindowLoader."""
        super().__init__(database, store, table, keep_from)

    def in_groups(self, hours: Sequence[datetime]) -> list[list[datetime]]:
        """Split hours into those that are small enough to be loaded together."""
        groups: list[list[datetime]] = []
        payload_bytes = 0
        for hour in hours:
            manifest = self._manifest_if_readable(hour)
            own_bytes = manifest.payload_bytes if manifest else BYTES_TOGETHER
            payload_bytes += own_bytes
            if groups and payload_bytes <= BYTES_TOGETHER:
                groups[-1].append(hour)
            else:
                groups.append([hour])
                payload_bytes = own_bytes
        return groups

    def _expected(self, hours: Sequence[datetime]) -> list[Manifest]:
        return [self._batch_of(hour) for hour in hours]

    def _batch_of(self, hour: datetime) -> Manifest:
        if manifest := self._store.manifest(hour):
            return manifest
        raise BatchError(f"hour {key_of(hour)} has no batch; materialize trace_batches for it")

    def _expected_around(self, hours: Sequence[datetime]) -> list[Manifest]:
        manifests = [self._manifest_if_readable(hour) for hour in hours]
        return [manifest for manifest in manifests if manifest]

    def _manifest_if_readable(self, hour: datetime) -> Manifest | None:
        with suppress(BatchError):  # reported by the load of that hour and by reconcile_hours
            return self._store.manifest(hour)
        return None

    def _fill(self, expected: Sequence[Manifest]) -> None:
        paths = [path for manifest in expected for path in self._store.part_paths(manifest)]
        insert_parquet(self._database, self._staging, paths)

    def _found(self, window: Window) -> dict[datetime, HourTotals]:
        return hour_totals(self._database, self._table, window, with_content_hash=True)

    def _found_around(self, window: Window) -> dict[datetime, HourTotals]:
        return hour_totals(self._database, self._table, window)

    def _differences(self, expected: Manifest, found: HourTotals) -> list[str]:
        return describe_differences(expected, found)


def describe_differences(manifest: Manifest, found: HourTotals) -> list[str]:
    """Return what of an hour is not as its manifest says, such as ``rows 10, not 12``."""
    expected: dict[str, object] = {
        "rows": manifest.rows,
        "distinct ids": manifest.distinct_ids,
        **manifest.tokens,
        "cost_usd": manifest.cost_usd,
    }
    actual: dict[str, object] = {
        "rows": found.rows,
        "distinct ids": found.distinct_ids,
        **found.tokens,
        "cost_usd": found.cost_usd,
    }
    if found.content_hash is not None:
        expected["content hash"] = manifest.content_hash
        actual["content hash"] = found.content_hash
    return [
        f"{name} {actual[name]}, not {value}"
        for name, value in expected.items()
        if actual[name] != value
    ]
