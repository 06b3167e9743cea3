"""Hours of traces in the table: how their batches go in, and what the table holds of them.

ClickHouse reads by itself what it can reach: the embedded engine a file, a server a bucket. A file
that only this machine has is read here, and its rows are sent to the server. So are the rows of a
file whose path ClickHouse would take for a pattern, and those of a bucket that the server cannot
read.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from llm_trace_pipeline.batches.manifest import Manifest
from llm_trace_pipeline.batches.parts import PartPath
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.clickhouse.held import Held
from llm_trace_pipeline.clickhouse.loads import Figures, Hour
from llm_trace_pipeline.clickhouse.tables import IN_WINDOW, TABLE
from llm_trace_pipeline.errors import BatchError, ClickHouseError, TransientClickHouseError
from llm_trace_pipeline.hours import Window, key_of
from llm_trace_pipeline.sql import quote_identifier, quote_text, render
from llm_trace_pipeline.trace.columns import COLUMNS, PAYLOAD_COLUMNS, TOKEN_COLUMNS
from llm_trace_pipeline.trace.hashes import row_hash_sql
from llm_trace_pipeline.trace.tally import Tally, tally_of

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
_PATTERN = re.compile(r"[*?{]")  # in the path of a file: file() has no way to escape them
_ORGANIZATIONS_AT_ONCE = 1000  # a server takes a value of 128 KiB
_COUNTED = [column.name for column in COLUMNS if column.name not in PAYLOAD_COLUMNS]
_log = logging.getLogger(__name__)
_Rows = TypeVar("_Rows", pa.RecordBatch, pa.Table)

_NOTHING: Figures = {
    "rows": 0,
    "distinct ids": 0,
    **dict.fromkeys(TOKEN_COLUMNS, 0),
    "cost_usd": Decimal(0),
    "content hash": f"{0:016x}",
}


def insert_parquet(database: Database, table: str, paths: Sequence[PartPath]) -> None:
    """Add the rows of Parquet files of the target's schema to a table; of a shard, its own rows.

    Raises:
        BatchError: a file was removed meanwhile.
        ClickHouseError: the engine refused it.
    """
    dropped = () if database.intake.keeps_payloads else PAYLOAD_COLUMNS
    for path in paths:  # one at a time: the engine would read ahead in all of them at once
        if _is_in_reach(database, path):
            _have_read(database, table, path, dropped)
        else:
            _send(database, table, path, dropped)


def _is_in_reach(database: Database, path: PartPath) -> bool:
    """Whether ClickHouse can read a file by itself. A bucket is tried once a connection."""
    if not path.url:
        return database.is_embedded and not _PATTERN.search(str(path))
    bucket = path.files.location("")
    if bucket not in database.in_reach:
        statement = render("clickhouse/reach.sql", credentials=credentials_of(database))
        try:
            database.execute(statement, {"place": path.url})
            database.in_reach[bucket] = True
        except TransientClickHouseError:
            raise
        except ClickHouseError as error:
            if not path.exists:
                raise _removed(path) from None
            database.in_reach[bucket] = False
            _log.warning(
                "ClickHouse cannot read %s by itself: the rows are read here and sent, which takes "
                "longer (%s)",
                bucket,
                error.message,
            )
    return database.in_reach[bucket]


def credentials_of(database: Database) -> str:
    """Return the last argument of ``s3()`` with its comma: the role to take; '' without one."""
    if not (role := database.intake.s3_role):
        return ""
    return f", extra_credentials(role_arn = {quote_text(role)})"


def _removed(path: PartPath) -> BatchError:
    return BatchError(f"hour {key_of(path.hour)}: part {path} was removed meanwhile; run it again")


def _have_read(database: Database, table: str, path: PartPath, dropped: Sequence[str]) -> None:
    """Let ClickHouse read a file by itself."""
    names = {column.name: quote_identifier(column.name) for column in COLUMNS}
    statement = render(
        "clickhouse/insert_parquet.sql",
        table=database.qualified(table),
        columns=", ".join(names.values()),
        values=", ".join("''" if name in dropped else quoted for name, quoted in names.items()),
        # With the engine's own access to the bucket, so that no secret is in a statement.
        function="s3" if path.url else "file",
        credentials=credentials_of(database) if path.url else "",
        filter=database.shard.is_own if database.shard else "1",
    )
    # Named, so that a column that the file lacks, being newer, is NULL or ''.
    structure = ", ".join(f"{names[column.name]} {column.clickhouse_type}" for column in COLUMNS)
    place = {"place": path.url or str(path), "structure": structure}
    try:
        database.execute(statement, place, _INSERT_SETTINGS)
    except ClickHouseError:
        if path.exists:
            raise
        raise _removed(path) from None


def _send(database: Database, table: str, path: PartPath, dropped: Sequence[str]) -> None:
    """Read a file here, and send its rows."""
    with path.open() as file:
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group)
            for name in dropped:
                blank = pa.repeat(pa.scalar("", pa.string()), rows.num_rows)
                rows = rows.set_column(rows.schema.get_field_index(name), name, blank)
            database.insert_arrow(table, own_rows(database, rows))


def own_rows(database: Database, rows: _Rows) -> _Rows:
    """Return the rows whose organizations belong to the database's shard; without one, all rows.

    The shard itself is asked which organizations are its own, once about every organization.
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
    database: Database, held: Held, window: Window, *, with_content_hash: bool = False
) -> dict[datetime, Figures]:
    """Return what a table of traces holds of a window, by hour; empty hours are left out.

    The content hash takes most of the time, and is computed on demand.

    Args:
        database: where the table lies.
        held: the table.
        window: the hours.
        with_content_hash: whether it is computed.

    Raises:
        ClickHouseError: the table cannot be read.
    """
    statement = render(
        "clickhouse/hour_totals.sql",
        table=held.rows,
        filter=IN_WINDOW,
        content_hash=f"sum({row_hash_sql()})" if with_content_hash else "0",
    )
    found: dict[datetime, Figures] = {}
    for row in database.rows(statement, window.parameters):
        figures = found[row["hour"]] = {
            "rows": row["rows"],
            "distinct ids": row["distinct_ids"],
            **{name: row[f"sum_{name}"] for name in TOKEN_COLUMNS},
            "cost_usd": row["sum_cost_usd"],
        }
        if with_content_hash:
            figures["content hash"] = f"{row['content_hash']:016x}"
    return found


def figures_of(manifest: Manifest) -> Figures:
    """Return what the table is to hold of an hour's batch."""
    return {
        "rows": manifest.rows,
        "distinct ids": manifest.distinct_ids,
        **manifest.tokens,
        "cost_usd": manifest.cost_usd,
        "content hash": manifest.content_hash,
    }


def figures_held(store: BatchStore, manifest: Manifest, held: Held) -> Figures:
    """Return what the table is to hold of an hour's batch, as far as its columns can.

    Where a column rounds a value of the batch, the batch is counted again, without its payloads.

    Raises:
        BatchError: a file of the batch is missing or cannot be read.
    """
    rounded = held.rounded
    if rounded and any(
        held.as_held(rows) != rows for rows in store.column_batches(manifest, rounded)
    ):
        return counted(store, manifest, held.as_held)
    return figures_of(manifest)


def counted(
    store: BatchStore, manifest: Manifest, change: Callable[[pa.RecordBatch], pa.RecordBatch]
) -> Figures:
    """Return the figures of an hour's batch after a change of its rows; no payload is read.

    Raises:
        BatchError: a file of the batch is missing or cannot be read.
    """
    tally = Tally()
    for batch in store.column_batches(manifest, _COUNTED):
        rows = change(batch)
        if rows.num_rows:
            tally.add(tally_of(rows))
    return figures_of(manifest.model_copy(update=tally.figures()))


def in_groups(store: BatchStore, hours: Sequence[datetime]) -> list[list[datetime]]:
    """Split hours into groups whose batches are small enough to be loaded together."""
    groups: list[list[datetime]] = []
    payload_bytes = 0
    for hour in hours:
        manifest = _manifest_if_readable(store, hour)
        own_bytes = manifest.payload_bytes if manifest else BYTES_TOGETHER
        payload_bytes += own_bytes
        if groups and payload_bytes <= BYTES_TOGETHER:
            groups[-1].append(hour)
        else:
            groups.append([hour])
            payload_bytes = own_bytes
    return groups


def _manifest_if_readable(store: BatchStore, hour: datetime) -> Manifest | None:
    with suppress(BatchError):  # reported by the load of that hour and by reconcile_hours
        return store.manifest(hour)
    return None


class Traces:
    """What a table of traces is to hold: the rows of the hours' batches."""

    time_column = "created_at"
    tolerances: Mapping[str, float] = {}

    def __init__(self, database: Database, store: BatchStore, table: str = TABLE) -> None:
        """Compare the table with the batches."""
        self._database = database
        self._store = store
        self._table = table

    @cached_property
    def _held(self) -> Held:
        """How the table holds the columns; it exists, and is up to date, when this is asked."""
        return Held(self._database, self._table)

    def expected(self, hours: Sequence[datetime]) -> list[Hour]:
        """Return what the table is to hold of the hours' batches.

        Raises:
            BatchError: an hour has no batch, or the batch cannot be read.
        """
        manifests = [self._batch_of(hour) for hour in hours]
        return [
            Hour(each.hour, figures_held(self._store, each, self._held), each) for each in manifests
        ]

    def _batch_of(self, hour: datetime) -> Manifest:
        if manifest := self._store.manifest(hour):
            return manifest
        raise BatchError(f"hour {key_of(hour)} has no batch; materialize trace_batches for it")

    def expected_around(self, hours: Sequence[datetime]) -> list[Hour]:
        """Return what the hours' batches hold, as far as there are any that can be read.

        The content hash, which ``found_around`` does not have, is the batch's own.
        """
        manifests = (_manifest_if_readable(self._store, hour) for hour in hours)
        return [Hour(each.hour, figures_of(each), each) for each in manifests if each]

    def found(self, window: Window) -> dict[datetime, Figures]:
        """Return what the table holds of every hour of a window."""
        found = hour_totals(self._database, self._held, window, with_content_hash=True)
        return {hour: found.get(hour, _NOTHING) for hour in window.hours}

    def found_around(self, window: Window) -> dict[datetime, Figures]:
        """Return what the table holds of every hour of a window, but for the content hash."""
        found = hour_totals(self._database, self._held, window)
        return {hour: found.get(hour, _NOTHING) for hour in window.hours}

    def fill(self, staging: str, hours: Sequence[Hour]) -> None:
        """Put the batches' rows into a staging table.

        Raises:
            BatchError: a file is missing or damaged.
            NotHeldError: a column of the table cannot hold a value of them.
        """
        manifests = [each.batch for each in hours if each.batch]
        paths = [path for manifest in manifests for path in self._store.part_paths(manifest)]
        if limited := self._held.limited:
            names = list(dict.fromkeys(("id", *limited)))
            for manifest in manifests:
                for rows in self._store.column_batches(manifest, names):
                    self._held.refuse(manifest.hour, rows)
        insert_parquet(self._database, staging, paths)
