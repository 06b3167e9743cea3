"""Demos of the tests: where they may lie, and when they begin."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from llm_trace_pipeline.hours import HOUR, floor


@contextmanager
def passable_folder(name: str) -> Iterator[Path]:
    """Make a folder that a demo may lie in, and remove it after.

    It is no ``tmp_path``, whose parents are closed to the account that PostgreSQL runs as under
    root.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"llm-traces-{name}-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def begin_demo(state: Path, hours: int) -> datetime:
    """Have a demo begin so many hours before this one; return its first hour."""
    first = floor(datetime.now(UTC)) - hours * HOUR
    state.mkdir()
    begun = json.dumps({"first_hour": first.isoformat()})
    (state / "demo.json").write_text(begun, encoding="utf-8")
    return first
