"""The batch store: one immutable Parquet batch per hour, and the billing history beside them.

They lie in a folder or in a bucket (see files.py), an hour under ``llm_traces/YYYY-MM-DD/HH/``. Its
``manifest.json`` names the part files and is switched in one atomic step, last; a reader uses only
what the manifest names. Whatever an interrupted write left behind is removed by the next write of
that folder. The reports of days lie beside them too.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from types import TracebackType
from typing import Final, Literal, Self, TypeVar
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AwareDatetime, BaseModel, ConfigDict

from llm_trace_pipeline.batches.erasures import Erasure
from llm_trace_pipeline.batches.files import LOCK, Files, files_of, translated
from llm_trace_pipeline.errors import BatchError, ClickHouseError
from llm_trace_pipeline.hours import key_of
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.trace.billing import HISTORY_SCHEMA
from llm_trace_pipeline.trace.columns import ARROW_SCHEMA, COLUMNS, PAYLOAD_COLUMNS
from llm_trace_pipeline.trace.prices import PriceBook

ROW_GROUP_BYTES = 32 * 2**20  # of Arrow data: bounds the memory of writer and reader alike
PART_BYTES = 512 * 2**20
PAGE_BYTES = 2**18  # a quarter of pyarrow's own: it compresses wide rows in 8 % less time

_READS = 10  # of a small file, before it counts as damaged
MANIFEST_VERSION: Final = 2
_MANIFEST = "manifest.json"
_RECONCILIATION = "reconciliation.json"
_ERASURES = "erasures"
_HISTORY = "billing_history"
_HOURS = "llm_traces/????-??-??/??"
_HOUR_FOLDER = "llm_traces/%Y-%m-%d/%H"
_DICTIONARY_COLUMNS = [
    f"{column.name}.list.element" if pa.types.is_list(column.arrow_type) else column.name
    for column in COLUMNS
    if column.repeats
]
_STATISTICS_COLUMNS = [column.name for column in COLUMNS if column.name not in PAYLOAD_COLUMNS]


_Kept = TypeVar("_Kept", bound=BaseModel)


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

    version: Literal[1, 2] = MANIFEST_VERSION  # a batch of version 1 has no costs
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
    cost_usd: Decimal = Decimal(0)
    unpriced: int = 0  # rows whose cost is not known
    unpriced_models: tuple[str, ...] = ()  # examples, as provider/model

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


class _Versioned(BaseModel):
    version: int


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
    stale: tuple[AwareDatetime, ...] = ()  # billing or prices are not those of the batch any more
    damaged: tuple[AwareDatetime, ...] = ()  # ClickHouse holds other rows than the batch
    pruned: tuple[AwareDatetime, ...] = ()  # the source lost traces that the batch holds
    loaded: tuple[AwareDatetime, ...] = ()  # every hour compared that has a batch
    unreadable: tuple[AwareDatetime, ...] = ()  # the manifest is damaged: nothing can be compared
    # How much of the billing history, and which prices, were compared with all batches, however
    # old, and which of them held others: they are compared again until they do not.
    billing_versions: int = 0
    prices: str = ""
    restated: tuple[AwareDatetime, ...] = ()
    differences: dict[AwareDatetime, tuple[str, ...]] = {}


@dataclass(frozen=True)
class PartPath:
    """Where a part file of an hour lies."""

    hour: datetime
    files: Files
    key: str

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.key.rpartition("/")[2]

    @property
    def url(self) -> str | None:
        """Where another machine reads it; None: only this one can."""
        return self.files.url(self.key)

    def __str__(self) -> str:
        """Return what an operator calls it; on this machine, its path."""
        return self.files.location(self.key)

    def is_intact(self, part: Part) -> bool:
        """Whether it is there and as it was written."""
        return self.files.checksum(self.key) == part.checksum

    def content(self) -> pa.Buffer:
        """Return all of the file."""
        return self.files.content(self.key)

    @contextmanager
    def required(self) -> Iterator[None]:
        """Let ClickHouse read the file; where it failed because the file is gone, say so.

        Raises:
            BatchError: the file was removed since its checksum was compared.
        """
        try:
            yield
        except ClickHouseError:
            if not self.files.exists(self.key):
                raise BatchError(
                    f"hour {key_of(self.hour)}: part {self} was removed meanwhile; run it again"
                ) from None
            raise

    @contextmanager
    def open(self) -> Iterator[pq.ParquetFile]:
        """Read the file.

        Raises:
            BatchError: it is missing or cannot be read.
        """
        path, filesystem = self.files.path(self.key), self.files.filesystem
        # Of a bucket, a row group is fetched as a whole: 163 MB at 30 ms a request took 8 s, and
        # 74 s column by column.
        is_remote = self.url is not None
        try:
            with pq.ParquetFile(path, filesystem=filesystem, pre_buffer=is_remote) as file:
                yield file
        except (OSError, pa.ArrowException) as error:
            raise BatchError(
                f"hour {key_of(self.hour)}: part {self} cannot be read ({error}); "
                "materialize trace_batches for this hour again"
            ) from None


class PartWriter:
    """Writes one stream of record batches as part files, bounded by bytes."""

    def __init__(self, files: Files, prefix: str) -> None:
        """Write ``<prefix>-0.parquet`` and so on; nothing is made before a row."""
        self._files = files
        self._prefix = prefix
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0
        self._part_bytes = 0
        self._part_rows = 0
        self._writer: pq.ParquetWriter | None = None
        self._key = ""
        self.parts: list[Part] = []

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows of the target's schema."""
        self._pending.append(batch)
        self._pending_bytes += batch.nbytes
        if self._pending_bytes >= ROW_GROUP_BYTES:
            self._write_row_group()

    def _write_row_group(self) -> None:
        table = pa.Table.from_batches(self._pending, ARROW_SCHEMA)
        if self._writer is None:
            self._key = f"{self._prefix}-{len(self.parts)}.parquet"
        with translated(self._files.location(self._key)):
            if self._writer is None:
                self._writer = pq.ParquetWriter(
                    self._files.path(self._key),
                    ARROW_SCHEMA,
                    filesystem=self._files.filesystem,
                    compression="zstd",
                    compression_level=1,
                    use_dictionary=_DICTIONARY_COLUMNS,
                    data_page_size=PAGE_BYTES,
                    # Of a payload, the smallest and the largest value would be kept whole.
                    write_statistics=_STATISTICS_COLUMNS,
                )
            self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._part_bytes += self._pending_bytes
        self._part_rows += table.num_rows
        self._pending, self._pending_bytes = [], 0
        if self._part_bytes >= PART_BYTES:
            self._close_part()

    def _close_part(self) -> None:
        if self._writer is not None:
            with translated(self._files.location(self._key)):
                self._writer.close()
            self._writer = None
            self._part_bytes = 0
            self.parts.append(_describe(self._files, self._key, self._part_rows))
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
            with suppress(OSError):  # what ends this write is said already
                self._writer.close()


class BatchStore:
    """The Parquet batches and the billing history under one root."""

    def __init__(self, files: Files) -> None:
        """Use the files below a root."""
        self._files = files

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Use what ``TRACE_BATCH_URI`` names.

        Raises:
            BatchError: the bucket is missing, or does not let us in.
        """
        return cls(files_of(settings))

    def _read(self, key: str, kind: type[_Kept]) -> _Kept | None:
        """Return what a small file holds, None where there is none.

        Raises:
            ValueError: it is damaged.
        """
        # The size of an object is asked for before its content: where it is switched in between,
        # the content comes cut.
        for _ in range(_READS - 1):
            with suppress(ValueError):
                return self._read_once(key, kind)
        return self._read_once(key, kind)

    def _read_once(self, key: str, kind: type[_Kept]) -> _Kept | None:
        content = self._files.read(key)
        return None if content is None else kind.model_validate_json(content)

    def manifest(self, hour: datetime) -> Manifest | None:
        """Return the manifest of an hour, None where it was never loaded.

        Raises:
            BatchError: the manifest is damaged.
        """
        key = f"{_folder(hour)}/{_MANIFEST}"
        try:
            return self._read(key, Manifest)
        except ValueError:
            if _is_newer(self._files.read(key)):
                raise BatchError(
                    f"hour {key_of(hour)}: {self._files.location(key)} was written by a "
                    "newer version of the program; install that"
                ) from None
            raise BatchError(
                f"hour {key_of(hour)}: {self._files.location(key)} is damaged; "
                "restore it from a backup. Only where the source still has all of this hour: "
                "remove it, then materialize trace_batches"
            ) from None

    def part_paths(self, manifest: Manifest) -> list[PartPath]:
        """Return the files of a batch, after comparing the checksum of each.

        Raises:
            BatchError: a file is missing or is not what was written.
        """
        paths = self._paths(manifest)
        for part, path in zip(manifest.parts, paths, strict=True):
            if not path.is_intact(part):
                raise BatchError(
                    f"hour {key_of(manifest.hour)}: part {path} is missing or damaged; "
                    "materialize trace_batches for this hour again"
                    if self.manifest(manifest.hour) == manifest
                    else f"hour {key_of(manifest.hour)}: its batch was replaced meanwhile; "
                    "run it again"
                )
        return paths

    def _paths(self, manifest: Manifest) -> list[PartPath]:
        return _paths(self._files, manifest.hour, manifest.parts)

    def row_groups(
        self, manifest: Manifest, columns: list[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Hand out the rows of a batch, one row group at a time; all columns where none are named.

        Raises:
            BatchError: a part is missing or damaged.
        """
        for path in self.part_paths(manifest):
            with path.open() as file:
                for group in range(file.num_row_groups):
                    rows = file.read_row_group(group, columns=columns)
                    for batch in rows.combine_chunks().to_batches():
                        yield _completed(batch, columns)

    def column_batches(
        self, manifest: Manifest, columns: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        """Hand out some columns of a batch; only they are read, and no checksum is compared.

        Raises:
            BatchError: a part is missing or cannot be read.
        """
        for path in self._paths(manifest):
            with path.open() as file:
                for batch in file.iter_batches(columns=list(columns)):
                    yield _completed(batch, columns)

    def intact_paths(self, manifest: Manifest) -> list[PartPath]:
        """Return the files of a batch that are there and undamaged."""
        paths = zip(self._paths(manifest), manifest.parts, strict=True)
        return [path for path, part in paths if path.is_intact(part)]

    def is_intact(self, manifest: Manifest) -> bool:
        """Whether every part of a batch is there and undamaged."""
        return len(self.intact_paths(manifest)) == len(manifest.parts)

    @contextmanager
    def writing(self, hour: datetime) -> Iterator["HourWriter"]:
        """Hold the hour's folder for one new batch; what an earlier write left is removed first.

        Raises:
            BatchError: another process writes this hour and did not finish in time.
        """
        folder = _folder(hour)
        with self._files.locked(folder):
            _remove_litter(self._files, folder, self._named_by(self.manifest(hour)))
            try:
                yield HourWriter(self, self._files, hour)
            finally:  # a batch that was refused is litter too
                _remove_litter(self._files, folder, self._named_by(self.manifest(hour)))

    def remove(self, hour: datetime) -> None:
        """Remove an hour's batch: its manifest first, so that no reader finds half of it."""
        folder = _folder(hour)
        with self._files.locked(folder):
            self._files.remove([f"{folder}/{_MANIFEST}"])
            _remove_litter(self._files, folder, set())
            self._files.remove_folder(folder)

    @staticmethod
    def _named_by(manifest: Manifest | None) -> set[str]:
        return {part.name for part in manifest.parts} if manifest else set()

    def erasures(self) -> tuple[Erasure, ...]:
        """Return every erasure that was recorded."""
        key = f"{_ERASURES}/{_MANIFEST}"
        try:
            recorded = self._read(key, _ErasureManifest)
        except ValueError:
            raise BatchError(
                f"{self._files.location(key)} is damaged; restore it from a backup: without it, "
                "loads would bring back what was erased"
            ) from None
        return recorded.erasures if recorded else ()

    def record_erasure(self, erasure: Erasure) -> None:
        """Keep an erasure, so that no later load brings its traces back."""
        with self._files.locked(_ERASURES):
            recorded = _ErasureManifest(erasures=(*self.erasures(), erasure))
            _switch_manifest(self._files, _ERASURES, recorded)
            _remove_litter(self._files, _ERASURES, set())

    def reconciliation(self) -> Reconciliation | None:
        """Return the result of the last reconciliation, None where there was none.

        Raises:
            BatchError: what was stored is damaged.
        """
        try:
            return self._read(_RECONCILIATION, Reconciliation)
        except ValueError:
            raise BatchError(
                f"{self._files.location(_RECONCILIATION)} is damaged; remove it: the next run of "
                "reconcile_hours makes it"
            ) from None

    def record_reconciliation(self, reconciliation: Reconciliation) -> None:
        """Keep what a reconciliation found, for the sensor that requests the hours."""
        if litter := self._files.glob(f"{_RECONCILIATION}.*"):  # of a write that was cut
            self._files.remove(litter)
        _switch(self._files, _RECONCILIATION, reconciliation)

    def keep_prices(self, prices: PriceBook) -> None:
        """Keep a price file under its version, so that what it priced can be computed again."""
        if prices.file and not self._files.exists(key := prices_key(prices.file_version)):
            self._files.switch(key, prices.file)

    def keep_report(self, day: date, page: str) -> str:
        """Keep the report of a day in place of an earlier one, and return where it lies."""
        self._files.switch(key := f"reports/{day}.html", page.encode())
        return self._files.location(key)

    def hours(self) -> list[datetime]:
        """Return the hours that have a batch, in their order."""
        return _hours_of(self._files.glob(f"{_HOURS}/{_MANIFEST}"))

    def begun_hours(self) -> list[datetime]:
        """Return the hours that have a folder: also those whose first batch is being written."""
        return _hours_of(self._files.glob(_HOURS))

    @contextmanager
    def loading(self, table: str) -> Iterator[None]:
        """Hold the right to load into a table from this store.

        Raises:
            BatchError: another process loads and did not finish in time.
        """
        with self._files.locked(f"loading/{table}"):
            yield

    def billing_history(self) -> pa.Table:
        """Return every billing version ever seen: rows of ``billing.HISTORY_SCHEMA``."""
        key = f"{_HISTORY}/{_MANIFEST}"
        is_intact = False
        with suppress(ValueError):  # reported below
            if (manifest := self._read(key, _HistoryManifest)) is None:
                return HISTORY_SCHEMA.empty_table()
            key = f"{_HISTORY}/{manifest.part.name}"
            is_intact = self._files.checksum(key) == manifest.part.checksum
        if not is_intact:
            raise BatchError(
                f"billing history: {self._files.location(key)} is missing or damaged; restore the "
                "folder from a backup: versions that the billing table no longer has exist nowhere "
                "else"
            )
        with translated(self._files.location(key)):
            return pq.read_table(
                self._files.path(key), schema=HISTORY_SCHEMA, filesystem=self._files.filesystem
            )

    @contextmanager
    def extending_billing_history(self) -> Iterator["HistoryWriter"]:
        """Hold the billing history for adding versions to it."""
        with self._files.locked(_HISTORY):
            yield HistoryWriter(self._files, self.billing_history())


class HourWriter:
    """Makes one new batch of an hour."""

    def __init__(self, store: BatchStore, files: Files, hour: datetime) -> None:
        """Write into the hour's folder, which the caller holds."""
        self._store = store
        self._files = files
        self._hour = hour
        self.batch_id = uuid4().hex

    def part_writer(self, stream: int) -> PartWriter:
        """Return the writer of one of the streams that together make the batch."""
        return PartWriter(self._files, f"{_folder(self._hour)}/{self.batch_id}-{stream}")

    def paths(self, parts: Sequence[Part]) -> list[PartPath]:
        """Return where part files of this hour lie."""
        return _paths(self._files, self._hour, parts)

    def publish(self, manifest: Manifest) -> Manifest:
        """Switch the hour to a batch; return the manifest that holds now.

        Where the rows are those of the current batch, its files stay and the new ones are litter.
        """
        current = self._store.manifest(manifest.hour)
        if current and manifest.has_content_of(current) and self._store.is_intact(current):
            kept = {name: getattr(current, name) for name in ("batch_id", "written_at", "parts")}
            manifest = manifest.model_copy(update=kept)
        if manifest != current:
            _switch_manifest(self._files, _folder(self._hour), manifest)
        return manifest


class HistoryWriter:
    """Adds versions to the billing history."""

    def __init__(self, files: Files, history: pa.Table) -> None:
        """Extend the history read under the lock."""
        self._files = files
        self.history = history

    def append(self, versions: pa.Table) -> None:
        """Keep the versions beside all earlier ones; a history is small, so it is one file."""
        self.history = pa.concat_tables([self.history, versions])
        key = f"{_HISTORY}/{uuid4().hex}.parquet"
        with translated(self._files.location(key)):
            pq.write_table(
                self.history,
                self._files.path(key),
                filesystem=self._files.filesystem,
                compression="zstd",
            )
        part = _describe(self._files, key, self.history.num_rows)
        _switch_manifest(self._files, _HISTORY, _HistoryManifest(part=part))
        _remove_litter(self._files, _HISTORY, {part.name})


def _completed(rows: pa.RecordBatch, columns: Sequence[str] | None) -> pa.RecordBatch:
    """Add the columns that a batch from before them lacks: NULL, or ''."""
    names = list(columns or ARROW_SCHEMA.names)
    if rows.schema.names == names:
        return rows
    fields = [ARROW_SCHEMA.field(name) for name in names]
    blank = {True: None, False: ""}
    return pa.RecordBatch.from_arrays(
        [
            rows.column(each.name)
            if each.name in rows.schema.names
            else pa.repeat(pa.scalar(blank[each.nullable], each.type), rows.num_rows)
            for each in fields
        ],
        schema=pa.schema(fields),
    )


def prices_key(file_version: str) -> str:
    """Return where a price file of some version is kept."""
    return f"prices/{file_version.removeprefix('file:')}.toml"


def _is_newer(manifest: bytes | None) -> bool:
    try:
        return _Versioned.model_validate_json(manifest or b"").version > MANIFEST_VERSION
    except ValueError:
        return False


def _folder(hour: datetime) -> str:
    return f"{hour.astimezone(UTC):{_HOUR_FOLDER}}"


def _hours_of(keys: Sequence[str]) -> list[datetime]:
    folders = {key.removesuffix(f"/{_MANIFEST}") for key in keys}
    return sorted(datetime.strptime(folder, _HOUR_FOLDER).replace(tzinfo=UTC) for folder in folders)


def _paths(files: Files, hour: datetime, parts: Sequence[Part]) -> list[PartPath]:
    return [PartPath(hour, files, f"{_folder(hour)}/{part.name}") for part in parts]


def _describe(files: Files, key: str, rows: int) -> Part:
    size, checksum = files.seal(key)
    return Part(name=key.rpartition("/")[2], rows=rows, bytes=size, checksum=checksum)


def _switch_manifest(files: Files, folder: str, manifest: BaseModel) -> None:
    _switch(files, f"{folder}/{_MANIFEST}", manifest)


def _switch(files: Files, key: str, content: BaseModel) -> None:
    files.switch(key, f"{content.model_dump_json(indent=1)}\n".encode())


def _remove_litter(files: Files, folder: str, named: set[str]) -> None:
    kept = {f"{folder}/{name}" for name in (LOCK, _MANIFEST, *named)}
    if litter := [key for key in files.glob(f"{folder}/*") if key not in kept]:
        files.remove(litter)
