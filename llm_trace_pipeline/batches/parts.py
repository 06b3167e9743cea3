"""The part files of a batch: Parquet, in row groups and files of bounded bytes."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq

from llm_trace_pipeline.batches.files import Files, translated
from llm_trace_pipeline.batches.manifest import Part
from llm_trace_pipeline.errors import BatchError
from llm_trace_pipeline.hours import key_of
from llm_trace_pipeline.trace.columns import ARROW_SCHEMA, COLUMNS, PAYLOAD_COLUMNS

ROW_GROUP_BYTES = 32 * 2**20  # of Arrow data; bounds the memory of writer and reader alike
PART_BYTES = 512 * 2**20  # of Arrow data
PAGE_BYTES = 2**18  # a quarter of pyarrow's default: wide rows are compressed in 8 % less time
# Of zstd. The calls of an agent lie side by side and repeat each other; a higher level looks back
# further. Calls of 65 KB took 0.045 of their text with level 1, 0.039 with 2 and 0.034 with 3. On
# text that does not repeat, extraction took 3 % more CPU with level 2 than with 1, 16 % with 3.
_COMPRESSION_LEVEL = 2

_DICTIONARY_COLUMNS = [
    f"{column.name}.list.element" if pa.types.is_list(column.arrow_type) else column.name
    for column in COLUMNS
    if column.repeats
]
_STATISTICS_COLUMNS = [column.name for column in COLUMNS if column.name not in PAYLOAD_COLUMNS]


@dataclass(frozen=True)
class PartPath:
    """The place of a part file of an hour."""

    hour: datetime
    part: Part
    files: Files
    key: str

    @property
    def url(self) -> str | None:
        """The address at which another machine reads the file; None: only this one can."""
        return self.files.url(self.key)

    def __str__(self) -> str:
        """Return the name by which an operator finds the file: its path or its URI."""
        return self.files.location(self.key)

    @property
    def is_intact(self) -> bool:
        """Whether the file exists and holds the bytes that were written."""
        return self.files.checksum(self.key) == self.part.checksum

    @property
    def exists(self) -> bool:
        """Whether the file is there."""
        return self.files.exists(self.key)

    @contextmanager
    def open(self) -> Iterator[pq.ParquetFile]:
        """Open the file for reading.

        Raises:
            BatchError: the file is missing or cannot be read.
        """
        path, filesystem = self.files.path(self.key), self.files.filesystem
        # A row group is fetched from a bucket as a whole: 163 MB at 30 ms a request took 8 s, and
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
    """Writes one stream of record batches as part files of bounded bytes."""

    def __init__(self, files: Files, prefix: str) -> None:
        """Begin without a file; see ``writing_parts``."""
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
        """Add rows of ``ARROW_SCHEMA``."""
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
                    compression_level=_COMPRESSION_LEVEL,
                    use_dictionary=_DICTIONARY_COLUMNS,
                    data_page_size=PAGE_BYTES,
                    # The statistics of payloads would hold the smallest and the largest whole.
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
            self.parts.append(seal_part(self._files, self._key, self._part_rows))
            self._part_rows = 0

    def complete(self) -> None:
        """Write the rows that are pending, and complete the last part."""
        if self._pending:
            self._write_row_group()
        self._close_part()

    def give_up(self) -> None:
        """Close the part that was begun."""
        if self._writer is not None:
            with suppress(OSError):  # the error that ends the write is on its way already
                self._writer.close()


@contextmanager
def writing_parts(files: Files, prefix: str) -> Iterator[PartWriter]:
    """Write part files; they are complete at the end of the block.

    Args:
        files: where the part files go.
        prefix: of their keys: ``<prefix>-0.parquet`` and so on. Without a row, no file is made.
    """
    writer = PartWriter(files, prefix)
    try:
        yield writer
        writer.complete()
    except BaseException:  # also where the process is told to end: no file stays open
        writer.give_up()
        raise


def seal_part(files: Files, key: str, rows: int) -> Part:
    """Seal a written file, and return its entry in a manifest."""
    size, checksum = files.seal(key)
    return Part(name=key.rpartition("/")[2], rows=rows, bytes=size, checksum=checksum)
