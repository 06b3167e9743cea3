"""The batch store: one immutable Parquet batch per hour.

An hour lies under ``llm_traces/YYYY-MM-DD/HH/``. Its ``_manifest.json`` names the part files; it is
switched last, in one atomic step. A reader uses only the files that the manifest names. Files that
an interrupted write left behind are removed by the next write of the hour.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Self
from uuid import uuid4

import pyarrow as pa

from llm_trace_pipeline.batches.files import Files, files_of
from llm_trace_pipeline.batches.manifest import Manifest, is_newer
from llm_trace_pipeline.batches.parts import PartPath, PartWriter, writing_parts
from llm_trace_pipeline.batches.records import (
    folders_with_manifest,
    manifest_key,
    read_manifest,
    remove_litter,
    remove_manifest,
    switch_manifest,
)
from llm_trace_pipeline.errors import BatchError
from llm_trace_pipeline.hours import key_of
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.trace.columns import ARROW_SCHEMA, with_blanks

_HOURS = "llm_traces/????-??-??/??"
_HOUR_FOLDER = "llm_traces/%Y-%m-%d/%H"


class BatchStore:
    """The Parquet batches under one root."""

    def __init__(self, files: Files) -> None:
        """Use the files below a root."""
        self.files = files

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Use the place that ``TRACE_BATCH_URI`` names.

        Raises:
            BatchError: the bucket is missing, or does not let us in.
        """
        return cls(files_of(settings))

    def manifest(self, hour: datetime) -> Manifest | None:
        """Return the manifest of an hour; None: the hour has no batch.

        Raises:
            BatchError: the manifest is damaged, or of a newer version of the program.
        """
        folder = _folder(hour)
        try:
            return read_manifest(self.files, folder, Manifest)
        except ValueError:
            key = manifest_key(self.files, folder)
            if is_newer(self.files.read(key)):
                raise BatchError(
                    f"hour {key_of(hour)}: {self.files.location(key)} was written by a "
                    "newer version of the program; install that"
                ) from None
            raise BatchError(
                f"hour {key_of(hour)}: {self.files.location(key)} is damaged; "
                "restore it from a backup. Only where the source still has all of this hour: "
                "remove it, then materialize trace_batches"
            ) from None

    def part_paths(self, manifest: Manifest) -> list[PartPath]:
        """Return the files of a batch, after comparing their checksums.

        Raises:
            BatchError: a file is missing, or does not hold the bytes that were written.
        """
        paths = self._paths(manifest)
        for path in paths:
            if not path.is_intact:
                raise BatchError(
                    f"hour {key_of(manifest.hour)}: part {path} is missing or damaged; "
                    "materialize trace_batches for this hour again"
                    if self.manifest(manifest.hour) == manifest
                    else f"hour {key_of(manifest.hour)}: its batch was replaced meanwhile; "
                    "run it again"
                )
        return paths

    def _paths(self, manifest: Manifest) -> list[PartPath]:
        hour, folder = manifest.hour, _folder(manifest.hour)
        return [
            PartPath(hour, part, self.files, f"{folder}/{part.name}") for part in manifest.parts
        ]

    def row_groups(
        self, manifest: Manifest, columns: list[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Hand out the rows of a batch, one row group at a time.

        Args:
            manifest: of the batch.
            columns: the columns to read, in the order of ``ARROW_SCHEMA``; None: all.
        """
        for path in self.part_paths(manifest):
            with path.open() as file:
                for group in range(file.num_row_groups):
                    rows = file.read_row_group(group, columns=columns)
                    for batch in rows.combine_chunks().to_batches():
                        yield with_blanks(batch, columns or ARROW_SCHEMA.names)

    def column_batches(
        self, manifest: Manifest, columns: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        """Hand out some columns of a batch. No other column is read, and no checksum is compared.

        The batch may be one that is about to be published.
        """
        for path in self._paths(manifest):
            with path.open() as file:
                for batch in file.iter_batches(columns=list(columns)):
                    yield with_blanks(batch, columns)

    def undamaged(self, manifest: Manifest) -> Manifest:
        """Return the manifest with the parts alone that exist and are undamaged."""
        parts = tuple(path.part for path in self._paths(manifest) if path.is_intact)
        return manifest.model_copy(update={"parts": parts})

    def is_intact(self, manifest: Manifest) -> bool:
        """Whether every file of a batch exists and is undamaged."""
        return self.undamaged(manifest) == manifest

    @contextmanager
    def writing(self, hour: datetime) -> Iterator["HourWriter"]:
        """Hold an hour for one new batch; litter of an earlier write is removed first.

        Raises:
            BatchError: another process writes this hour and did not finish in time.
        """
        with self.files.locked(_folder(hour)):
            writer = HourWriter(self, hour, self._tidied(hour))
            try:
                yield writer
            finally:  # the files of a batch that was refused are litter too
                self._tidied(hour)

    def _tidied(self, hour: datetime) -> Manifest | None:
        """Remove the litter of a held hour, and return its manifest."""
        manifest = self.manifest(hour)
        named = [part.name for part in manifest.parts] if manifest else []
        remove_litter(self.files, _folder(hour), named)
        return manifest

    def remove(self, hour: datetime) -> None:
        """Remove an hour's batch: its manifest first, so that no reader finds half a batch."""
        folder = _folder(hour)
        with self.files.locked(folder):
            remove_manifest(self.files, folder)
            remove_litter(self.files, folder)
            self.files.remove_folder(folder)

    def hours(self) -> list[datetime]:
        """Return the hours that have a batch, in their order."""
        return _hours_of(folders_with_manifest(self.files, _HOURS))

    def begun_hours(self) -> list[datetime]:
        """Return the hours that have a folder, in their order.

        An hour whose first batch is being written has a folder and no batch.
        """
        return _hours_of(set(self.files.glob(_HOURS)))


class HourWriter:
    """Makes one new batch of an hour."""

    def __init__(self, store: BatchStore, hour: datetime, current: Manifest | None) -> None:
        """Write into the hour's folder, which the caller holds.

        Args:
            store: where the folder lies.
            hour: start of the hour.
            current: the manifest of the batch that the hour has.
        """
        self.store = store
        self.hour = hour
        self.current = current
        self.batch_id = uuid4().hex

    def part_writer(self, stream: int = 0) -> AbstractContextManager[PartWriter]:
        """Hold the writer of one stream; the streams together make the batch."""
        return writing_parts(self.store.files, f"{_folder(self.hour)}/{self.batch_id}-{stream}")

    def publish(self, manifest: Manifest) -> Manifest:
        """Switch the hour to a batch; return the manifest that holds now.

        Where the rows equal those of the current batch, its files stay and the new ones are litter.
        """
        current = self.current
        if current and manifest.has_content_of(current) and self.store.is_intact(current):
            kept = {name: getattr(current, name) for name in ("batch_id", "written_at", "parts")}
            manifest = manifest.model_copy(update=kept)
        if manifest != current:
            switch_manifest(self.store.files, _folder(self.hour), manifest)
        return manifest


def _folder(hour: datetime) -> str:
    return f"{hour.astimezone(UTC):{_HOUR_FOLDER}}"


def _hours_of(folders: Collection[str]) -> list[datetime]:
    return sorted(datetime.strptime(folder, _HOUR_FOLDER).replace(tzinfo=UTC) for folder in folders)
