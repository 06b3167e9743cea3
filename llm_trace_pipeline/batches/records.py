"""Records: small JSON files that are switched in one step, and folders whose manifest rules.

A folder of an hour, of the billing history or of the erasures has a ``manifest.json``. It names the
other files that count; a file that it does not name is litter of a write that was interrupted.
"""

from collections.abc import Collection
from contextlib import suppress
from typing import TypeVar

from pydantic import BaseModel

from llm_trace_pipeline.batches.files import LOCK, Files

MANIFEST = "manifest.json"

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


def _read_once(files: Files, key: str, kind: type[_Record]) -> _Record | None:
    content = files.read(key)
    return None if content is None else kind.model_validate_json(content)


def switch_record(files: Files, key: str, record: BaseModel) -> None:
    """Make a file hold a record, in one atomic step."""
    files.switch(key, f"{record.model_dump_json(indent=1)}\n".encode())


def remove_litter(files: Files, folder: str, named: Collection[str] = ()) -> None:
    """Remove the files of a held folder that are neither its manifest nor named by it."""
    kept = {f"{folder}/{name}" for name in (LOCK, MANIFEST, *named)}
    if litter := [key for key in files.glob(f"{folder}/*") if key not in kept]:
        files.remove(litter)
