"""Records: small JSON files that are switched in one step, and folders whose manifest rules.

A folder of an hour, of the billing history or of the erasures has a ``_manifest.json``. It names
the other files that count; a file that it does not name is litter of a write that was interrupted.
Readers of a folder of Parquet files (pyarrow, pandas, Spark, Athena) skip names that begin with an
underscore or a dot.
"""

from collections.abc import Collection
from contextlib import suppress
from typing import TypeVar

from pydantic import BaseModel

from llm_trace_pipeline.batches.files import LOCK, Files

MANIFEST = "_manifest.json"

_EARLIER_MANIFEST = "manifest.json"  # its name until readers of folders were thought of
_READS = 10  # of a record, before it counts as damaged

_Record = TypeVar("_Record", bound=BaseModel)


def read_record(files: Files, key: str, kind: type[_Record]) -> _Record | None:
    """Return what a record holds; None: there is no such file.

    Raises:
        ValueError: the record is damaged.
    """
    # An object's size is asked for before its content. Where another process switches the object in
    # between, the content comes cut, and the next reading is whole.
    for _ in range(_READS - 1):
        with suppress(ValueError):
            return _read_once(files, key, kind)
    return _read_once(files, key, kind)


def read_manifest(files: Files, folder: str, kind: type[_Record]) -> _Record | None:
    """Return what the manifest of a folder holds; None: the folder has none.

    Raises:
        ValueError: the manifest is damaged.
    """
    # The last look: a writer may put the new name into the place of the earlier one meanwhile.
    for name in (MANIFEST, _EARLIER_MANIFEST, MANIFEST):
        if (record := read_record(files, f"{folder}/{name}", kind)) is not None:
            return record
    return None


def manifest_key(files: Files, folder: str) -> str:
    """Return the key of a folder's manifest, under its present or its earlier name."""
    keys = [f"{folder}/{name}" for name in (MANIFEST, _EARLIER_MANIFEST)]
    return next((key for key in keys if files.exists(key)), keys[0])


def folders_with_manifest(files: Files, pattern: str) -> set[str]:
    """Return the keys of the folders that match and have a manifest."""
    names = (MANIFEST, _EARLIER_MANIFEST)
    return {key.rpartition("/")[0] for name in names for key in files.glob(f"{pattern}/{name}")}


def switch_manifest(files: Files, folder: str, record: BaseModel) -> None:
    """Make the manifest of a folder hold a record, in one atomic step."""
    switch_record(files, f"{folder}/{MANIFEST}", record)


def remove_manifest(files: Files, folder: str) -> None:
    """Remove the manifest of a held folder."""
    # The earlier one first: it must not count again.
    files.remove([f"{folder}/{name}" for name in (_EARLIER_MANIFEST, MANIFEST)])


def _read_once(files: Files, key: str, kind: type[_Record]) -> _Record | None:
    content = files.read(key)
    return None if content is None else kind.model_validate_json(content)


def switch_record(files: Files, key: str, record: BaseModel) -> None:
    """Make a file hold a record, in one atomic step."""
    files.switch(key, f"{record.model_dump_json(indent=1)}\n".encode())


def remove_litter(files: Files, folder: str, named: Collection[str] = ()) -> None:
    """Remove the files of a held folder that are neither its manifest nor named by it."""
    found = {key.rpartition("/")[2] for key in files.glob(f"{folder}/*")}
    manifest = MANIFEST if MANIFEST in found else _EARLIER_MANIFEST
    if litter := found.difference(named, (LOCK, manifest)):
        files.remove([f"{folder}/{name}" for name in litter])
