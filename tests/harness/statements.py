"""What happens around the statements of a load: a stop, another writer, small blocks."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pytest

from llm_trace_pipeline.clickhouse.client import Database

# What a server is sent that may change something.
STATEMENTS: Sequence[tuple[type, str]] = ((Database, "execute"), (Database, "insert_arrow"))

# Blocks of a few rows, so that an hour becomes several parts, as a large one does.
_BLOCK_ROWS = 24
_SMALL_BLOCKS = {
    "min_insert_block_size_bytes": 1,
    "input_format_parquet_max_block_size": _BLOCK_ROWS,
}


class Stopped(BaseException):
    """The process would have ended here."""


@contextmanager
def stopping_after(
    calls: int, to: Sequence[tuple[Any, str]] = STATEMENTS
) -> Iterator[list[tuple[str, Any]]]:
    """Stop right after so many calls; none that follows is made, since nothing runs after an end.

    Args:
        calls: how many are made.
        to: the functions whose calls count, by owner and name.

    Yields:
        What was called so far: the names, and the first arguments after the owner.
    """
    made: list[tuple[str, Any]] = []

    def stopping(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if len(made) >= calls:
                raise Stopped
            result = original(*arguments, **named)
            made.append((name, arguments[1:2]))
            if len(made) >= calls:
                raise Stopped
            return result

        return call

    with pytest.MonkeyPatch.context() as context:
        for owner, name in to:
            context.setattr(owner, name, stopping(name, getattr(owner, name)))
        yield made


def recording(
    to: Sequence[tuple[Any, str]] = STATEMENTS,
) -> AbstractContextManager[list[tuple[str, Any]]]:
    """List the calls as ``stopping_after`` does, and stop none."""
    return stopping_after(sys.maxsize, to)


@contextmanager
def leaving_old_and_new_parts(table: str = "") -> Iterator[None]:
    """Stop in the swap of a table, so that the old and the new parts of a partition are active.

    A kill inside REPLACE leaves this state behind now and then; here it is made on purpose.
    """
    execute = Database.execute

    def leaving_both(self: Database, sql: str, *arguments: Any) -> None:
        if "REPLACE PARTITION" in sql and table in sql:
            execute(self, sql.replace("REPLACE", "ATTACH"), *arguments)
            raise Stopped
        execute(self, sql, *arguments)

    with patch.object(Database, "execute", leaving_both), pytest.raises(Stopped):
        yield


@contextmanager
def stopping_at(*, before: str = "", after: str = "") -> Iterator[None]:
    """Stop before or after the first statement that contains a text."""

    execute = Database.execute

    def stopping(self: Database, sql: str, *arguments: Any) -> None:
        if before and before in sql:
            raise Stopped
        execute(self, sql, *arguments)
        if after and after in sql:
            raise Stopped

    with patch.object(Database, "execute", stopping), pytest.raises(Stopped):
        yield


@contextmanager
def another_writer(
    act: Callable[[], object], *, before: str = "", after: str = "", times: int = 1
) -> Iterator[None]:
    """Act before or after a statement that contains a text, the first so many times."""
    execute = Database.execute
    acted = 0
    is_acting = False

    def act_at(moment: str, sql: str) -> None:
        nonlocal acted, is_acting
        if moment and moment in sql and not is_acting and acted < times:
            is_acting = True
            act()
            is_acting = False
            acted += 1

    def acting(self: Database, sql: str, *arguments: Any) -> None:
        tables = sql.replace(f"`{self.name}`.", "")
        act_at(before, tables)
        execute(self, sql, *arguments)
        act_at(after, tables)

    with patch.object(Database, "execute", acting):
        yield
    assert acted == times


@contextmanager
def small_blocks() -> Iterator[None]:
    """Insert in blocks of a few rows."""
    execute, insert_arrow = Database.execute, Database.insert_arrow

    def inserting(self: Database, sql: str, *arguments: Any) -> None:
        if "INSERT INTO" in sql:
            parameters, settings = arguments
            arguments = (parameters, {**settings, **_SMALL_BLOCKS})
        execute(self, sql, *arguments)

    def inserting_arrow(self: Database, table: str, rows: pa.Table) -> None:
        for start in range(0, rows.num_rows, _BLOCK_ROWS):
            insert_arrow(self, table, rows[start : start + _BLOCK_ROWS])

    with (
        patch.object(Database, "execute", inserting),
        patch.object(Database, "insert_arrow", inserting_arrow),
    ):
        yield
