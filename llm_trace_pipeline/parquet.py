"""The batch store: one immutable Parquet batch per hour, and the billing history beside them.

An hour lies under ``<root>/llm_traces/YYYY-MM-DD/HH/``. Its ``manifest.json`` names the part files
and is switched in one atomic step, last; a reader uses only what the manifest names. Whatever an
interrupted write left behind is removed by the next write of that folder.
"""

import fcntl
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AwareDatetime, BaseModel, ConfigDict
from xxhash import xxh3_128_hexdigest

from llm_trace_pipeline.billing import HISTORY_SCHEMA
from llm_trace_pipeline.erasure import Erasure
from llm_trace_pipeline.errors import BatchError
from llm_trace_pipeline.schema import ARROW_SCHEMA, COLUMNS, PAYLOAD_COLUMNS
from llm_trace_pipeline.settings import HOUR_FORMAT

ROW_GROUP_BYTES = 32 * 2**20  # of Arrow data: bounds the memory of writer and reader alike
PART_BYTES = 512 * 2**20
PAGE_BYTES = 2**18  # a quarter of pyarrow's own: it compresses wide rows in 8 % less time
LOCK_SECONDS = 600.0  # the largest hour is written, or loaded, in less

_MANIFEST = "manifest.json"
_RECONCILIATION = "reconciliation.json"
_DICTIONARY_COLUMNS = [
    f"{column.name}.list.element" if pa.types.is_list(column.arrow_type) else column.name
    for column in COLUMNS
    if column.repeats
]
_STATISTICS_COLUMNS = [column.name for column in COLUMNS if column.name not in PAYLOAD_COLUMNS]


class Part(BaseModel):
    """One Parquet file of a batch."""

    model_config = ConfigDict(frozen=True)

    name: str
    rows: int
    bytes: int
    checksum: str  # xxh3-128 of the file, hexadecimal


class Manifest(BaseModel):
    """What one hour's batch holds: its files, and the figures that every check compares with."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    hour: datetime
    batch_id: str
    written_at: datetime
    parts: tuple[Part, ...]
    rows: int
    distinct_ids: int
    tokens: dict[str, int]  # the sum of each token column
    content_hash: str  # hexadecimal; see hashes.py
    min_created_at: datetime | None
    max_created_at: datetime | None
    payload_bytes: int  # of request and response text
    source_rows: int  # stored in the source and not deleted, before folding
    source_deleted: int
    source_folded: int  # not deleted, but given way to another row of the same id
    source_erased: int = 0  # not deleted there, but covered by an erasure
    source_hash: str
    source_newest_change: datetime | None
    unreadable: int
    unreadable_ids: tuple[str, ...]  # examples
    billing_matches: dict[str, int]
    organizations_without_billing: int
    organizations_without_billing_ids: tuple[str, ...]  # examples

    @property
    def expected_rows(self) -> int:
        """How many rows the source says the batch must have."""
        return self.source_rows - self.source_folded - self.source_erased

    @property
    def is_complete(self) -> bool:
        """Whether the batch has one row for each of those; a join can lose rows or double them."""
        return self.rows == self.distinct_ids == self.expected_rows

    def has_content_of(self, other: "Manifest") -> bool:
        """Whether both batches hold the same rows."""
        mine, theirs = (
            (each.rows, each.distinct_ids, each.tokens, each.content_hash) for each in (self, other)
        )
        return mine == theirs

    @property
    def bytes(self) -> int:
        """Size of the part files."""
        return sum(part.bytes for part in self.parts)


class _HistoryManifest(BaseModel):
    part: Part


class _ErasureManifest(BaseModel):
    erasures: tuple[Erasure, ...]


class Reconciliation(BaseModel):
    """Which hours were not as they should be when all stores were compared; see reconcile.py."""

    model_config = ConfigDict(frozen=True)

    id: str
    at: AwareDatetime
    drifted: tuple[AwareDatetime, ...] = ()  # the source has other rows than the batch was made of
    stale: tuple[AwareDatetime, ...] = ()  # the batch holds billing that was restated since
    damaged: tuple[AwareDatetime, ...] = ()  # ClickHouse holds other rows than the batch
    pruned: tuple[AwareDatetime, ...] = ()  # the source lost traces that the batch holds
    loaded: tuple[AwareDatetime, ...] = ()  # every hour compared that has a batch
    unreadable: tuple[AwareDatetime, ...] = ()  # the manifest is damaged: nothing can be compared
    # How much of the billing history was compared with all batches, however old, and which of them
    # held other billing: they are compared again until they do not.
    billing_versions: int = 0
    restated: tuple[AwareDatetime, ...] = ()
    differences: dict[AwareDatetime, tuple[str, ...]] = {}


class PartWriter:
    """Writes one stream of record batches as part files, bounded by bytes."""

    def __init__(self, folder: Path, prefix: str) -> None:
        """Write ``<prefix>-0.parquet`` and so on into the folder; nothing is made before a row."""
        self._folder = folder
        self._prefix = prefix
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0
        self._part_bytes = 0
        self._part_rows = 0
        self._writer: pq.ParquetWriter | None = None
        self._path = folder
        self.parts: list[Part] = []

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows of the target's schema."""
        self._pending.append(batch)
        self._pending_bytes += batch.nbytes
        if self._pending_bytes >= ROW_GROUP_BYTES:
            self._write_row_group()

    def _write_row_group(self) -> None:
        if self._writer is None:
            self._path = self._folder / f"{self._prefix}-{len(self.parts)}.parquet"
            self._writer = pq.ParquetWriter(
                self._path,
                ARROW_SCHEMA,
                compression="zstd",
                compression_level=1,
                use_dictionary=_DICTIONARY_COLUMNS,
                data_page_size=PAGE_BYTES,
                # Of a payload, the smallest and the largest value would be kept whole.
                write_statistics=_STATISTICS_COLUMNS,
            )
        table = pa.Table.from_batches(self._pending, ARROW_SCHEMA)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._part_bytes += self._pending_bytes
        self._part_rows += table.num_rows
        self._pending, self._pending_bytes = [], 0
        if self._part_bytes >= PART_BYTES:
            self._close_part()

    def _close_part(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._part_bytes = 0
            self.parts.append(_describe(self._path, self._part_rows))
            self._part_rows = 0

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def __exit__(
        self,
        error: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Complete the last part, or give up what was begun."""
        if error is None:
            if self._pending:
                self._write_row_group()
            self._close_part()
        elif self._writer is not None:
            self._writer.close()


class BatchStore:
    """The Parquet batches and the billing history under one root."""

    def __init__(self, root: str | Path) -> None:
        """Use the folder, which is made by the first write."""
        self._root = Path(root)

    def _folder(self, hour: datetime) -> Path:
        at = hour.astimezone(UTC)
        return self._root / "llm_traces" / f"{at:%Y-%m-%d}" / f"{at:%H}"

    def manifest(self, hour: datetime) -> Manifest | None:
        """Return the manifest of an hour, None where it was never loaded.

        Raises:
            BatchError: the manifest is damaged.
        """
        path = self._folder(hour) / _MANIFEST
        try:
            return Manifest.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            raise BatchError(
                f"hour {hour:{HOUR_FORMAT}}: {path} is damaged; restore it from a backup. Only "
                "where the source still has all of this hour: remove it, then materialize "
                "trace_batches"
            ) from None

    def part_paths(self, manifest: Manifest) -> list[Path]:
        """Return the files of a batch, after comparing the checksum of each.

        Raises:
            BatchError: a file is missing or is not what was written.
        """
        folder = self._folder(manifest.hour)
        paths = [folder / part.name for part in manifest.parts]
        for part, path in zip(manifest.parts, paths, strict=True):
            if not _is_intact(path, part):
                state = "is damaged" if path.exists() else "is missing"
                raise BatchError(
                    f"hour {manifest.hour:{HOUR_FORMAT}}: part {path} {state}; "
                    "materialize trace_batches for this hour again"
                )
        return paths

    def row_groups(
        self, manifest: Manifest, columns: list[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Hand out the rows of a batch, one row group at a time; all columns where none are named.

        Raises:
            BatchError: a part is missing or damaged.
        """
        for path in self.part_paths(manifest):
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    rows = file.read_row_group(group, columns=columns)
                    yield from rows.combine_chunks().to_batches()

    def column_batches(
        self, manifest: Manifest, columns: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        """Hand out some columns of a batch; only they are read, and no checksum is compared.

        Raises:
            BatchError: a part is missing or cannot be read.
        """
        for part in manifest.parts:
            path = self._folder(manifest.hour) / part.name
            try:
                with pq.ParquetFile(path) as file:
                    yield from file.iter_batches(columns=list(columns))
            except (OSError, pa.ArrowException) as error:
                raise BatchError(
                    f"hour {manifest.hour:{HOUR_FORMAT}}: part {path} cannot be read ({error}); "
                    "materialize trace_batches for this hour again"
                ) from None

    def intact_paths(self, manifest: Manifest) -> list[Path]:
        """Return the files of a batch that are there and undamaged."""
        folder = self._folder(manifest.hour)
        return [
            folder / part.name for part in manifest.parts if _is_intact(folder / part.name, part)
        ]

    def is_intact(self, manifest: Manifest) -> bool:
        """Whether every part of a batch is there and undamaged."""
        return len(self.intact_paths(manifest)) == len(manifest.parts)

    @contextmanager
    def writing(self, hour: datetime) -> Iterator["HourWriter"]:
        """Hold the hour's folder for one new batch; what an earlier write left is removed first.

        Raises:
            BatchError: another process writes this hour and did not finish in time.
        """
        folder = self._folder(hour)
        with _locked(folder):
            _remove_litter(folder, self._named_by(self.manifest(hour)))
            try:
                yield HourWriter(self, folder)
            finally:  # a batch that was refused is litter too
                _remove_litter(folder, self._named_by(self.manifest(hour)))

    def remove(self, hour: datetime) -> None:
        """Remove an hour's batch: its manifest first, so that no reader finds half of it."""
        folder = self._folder(hour)
        with _locked(folder):
            (folder / _MANIFEST).unlink(missing_ok=True)
            _sync(folder)
            _remove_litter(folder, set())
            folder.rmdir()
        with suppress(OSError):  # other hours of the day are kept
            folder.parent.rmdir()

    @staticmethod
    def _named_by(manifest: Manifest | None) -> set[str]:
        return {part.name for part in manifest.parts} if manifest else set()

    def erasures(self) -> tuple[Erasure, ...]:
        """Return every erasure that was recorded."""
        path = self._root / "erasures" / _MANIFEST
        try:
            return _ErasureManifest.model_validate_json(path.read_bytes()).erasures
        except FileNotFoundError:
            return ()
        except ValueError:
            raise BatchError(
                f"{path} is damaged; restore it from a backup: without it, loads would bring back "
                "what was erased"
            ) from None

    def record_erasure(self, erasure: Erasure) -> None:
        """Keep an erasure, so that no later load brings its traces back."""
        folder = self._root / "erasures"
        with _locked(folder):
            _switch_manifest(folder, _ErasureManifest(erasures=(*self.erasures(), erasure)))
            _remove_litter(folder, set())

    def reconciliation(self) -> Reconciliation | None:
        """Return the result of the last reconciliation, None where there was none.

        Raises:
            BatchError: what was stored is damaged.
        """
        path = self._root / _RECONCILIATION
        try:
            return Reconciliation.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            raise BatchError(
                f"{path} is damaged; remove it: the next run of reconcile_hours makes it"
            ) from None

    def record_reconciliation(self, reconciliation: Reconciliation) -> None:
        """Keep what a reconciliation found, for the sensor that requests the hours."""
        self._root.mkdir(parents=True, exist_ok=True)
        for path in self._root.glob(f"{_RECONCILIATION}.*"):  # of a write that was cut
            path.unlink()
        _switch(self._root / _RECONCILIATION, reconciliation)

    def hours(self) -> list[datetime]:
        """Return the hours that have a batch, in their order."""
        return [hour for hour in self.begun_hours() if (self._folder(hour) / _MANIFEST).exists()]

    def begun_hours(self) -> list[datetime]:
        """Return the hours that have a folder: also those whose first batch is being written."""
        return sorted(
            datetime.strptime(f"{path.parent.name} {path.name}", "%Y-%m-%d %H").replace(tzinfo=UTC)
            for path in (self._root / "llm_traces").glob("????-??-??/??")
        )

    @contextmanager
    def loading(self, table: str) -> Iterator[None]:
        """Hold the right to load into a table from this store.

        Raises:
            BatchError: another process loads and did not finish in time.
        """
        with _locked(self._root / "loading" / table):
            yield

    def billing_history(self) -> pa.Table:
        """Return every billing version ever seen: rows of ``billing.HISTORY_SCHEMA``."""
        folder = self._root / "billing_history"
        path = folder / _MANIFEST
        part = None
        try:
            part = _HistoryManifest.model_validate_json(path.read_bytes()).part
        except FileNotFoundError:
            return HISTORY_SCHEMA.empty_table()
        except ValueError:  # reported below
            pass
        else:
            path = folder / part.name
        if part is None or not _is_intact(path, part):
            raise BatchError(
                f"billing history: {path} is missing or damaged; restore the folder from a backup: "
                "versions that the billing table no longer has exist nowhere else"
            )
        return pq.read_table(path, schema=HISTORY_SCHEMA)

    @contextmanager
    def extending_billing_history(self) -> Iterator["HistoryWriter"]:
        """Hold the billing history for adding versions to it."""
        folder = self._root / "billing_history"
        with _locked(folder):
            yield HistoryWriter(folder, self.billing_history())


class HourWriter:
    """Makes one new batch of an hour."""

    def __init__(self, store: BatchStore, folder: Path) -> None:
        """Write into the hour's folder, which the caller holds."""
        self._store = store
        self._folder = folder
        self.batch_id = uuid4().hex

    def part_writer(self, stream: int) -> PartWriter:
        """Return the writer of one of the streams that together make the batch."""
        return PartWriter(self._folder, f"{self.batch_id}-{stream}")

    def paths(self, parts: Sequence[Part]) -> list[Path]:
        """Return where part files of this hour lie."""
        return [self._folder / part.name for part in parts]

    def publish(self, manifest: Manifest) -> Manifest:
        """Switch the hour to a batch; return the manifest that holds now.

        Where the rows are those of the current batch, its files stay and the new ones are litter.
        """
        current = self._store.manifest(manifest.hour)
        if current and manifest.has_content_of(current) and self._store.is_intact(current):
            kept = {name: getattr(current, name) for name in ("batch_id", "written_at", "parts")}
            manifest = manifest.model_copy(update=kept)
        if manifest != current:
            _switch_manifest(self._folder, manifest)
        return manifest


class HistoryWriter:
    """Adds versions to the billing history."""

    def __init__(self, folder: Path, history: pa.Table) -> None:
        """Extend the history read under the lock."""
        self._folder = folder
        self.history = history

    def append(self, versions: pa.Table) -> None:
        """Keep the versions beside all earlier ones; a history is small, so it is one file."""
        self.history = pa.concat_tables([self.history, versions])
        path = self._folder / f"{uuid4().hex}.parquet"
        pq.write_table(self.history, path, compression="zstd")
        _switch_manifest(
            self._folder, _HistoryManifest(part=_describe(path, self.history.num_rows))
        )
        _remove_litter(self._folder, {path.name})


def _describe(path: Path, rows: int) -> Part:
    """Read a part file back: what the disk holds is what the manifest will promise."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return Part(name=path.name, rows=rows, bytes=path.stat().st_size, checksum=_checksum(path))


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return ""
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return xxh3_128_hexdigest(content)


def _is_intact(path: Path, part: Part) -> bool:
    return path.exists() and _checksum(path) == part.checksum


def _switch_manifest(folder: Path, manifest: BaseModel) -> None:
    _switch(folder / _MANIFEST, manifest)


def _switch(path: Path, content: BaseModel) -> None:
    """Make a file hold this content, in one atomic step."""
    temporary = path.with_name(f"{path.name}.{uuid4().hex}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(content.model_dump_json(indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync(path.parent)


def _remove_litter(folder: Path, named: set[str]) -> None:
    for path in folder.iterdir():
        if path.name != _MANIFEST and path.name not in named:
            path.unlink()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes; the system frees it when this process ends."""
    deadline = time.monotonic() + LOCK_SECONDS
    while (descriptor := _lock(folder)) is None:
        if time.monotonic() > deadline:
            raise BatchError(
                f"{folder} is being written by another process for over {LOCK_SECONDS:.0f} s; let "
                "it finish, or end it, then try again"
            )
        time.sleep(0.1)  # flock waits without a bound, or not at all
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path) -> int | None:
    """Try to lock a folder, which is made where it is missing; return what holds the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # removed by a retention
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A retention may have removed the folder meanwhile, and another may be in its place.
        if os.path.samestat(os.fstat(descriptor), folder.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None
