"""The TTL of a table: which hours it has taken rows of, so that they cannot be loaded.

A load of such an hour would be merged away, found missing and loaded again, for ever.
"""

import re
from collections.abc import Iterator
from datetime import datetime

from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.clickhouse.tables import layout_of
from llm_trace_pipeline.errors import ClickHouseError
from llm_trace_pipeline.hours import BEGINNING, HOUR
from llm_trace_pipeline.sql import quote_identifier, quote_text, read_sql, render

_TTL = re.compile(r" TTL (.*?)(?: SETTINGS |$)")
_KEEPS_ROWS = re.compile(r" (?:TO (?:DISK|VOLUME) '|RECOMPRESS )")
_WHAT_IT_DOES = re.compile(r" (?:DELETE|WHERE|GROUP BY)\b.*")
_PIECE = re.compile(r"'(?:[^'\\]|\\.)*'|.")


def ttl_that_deletes(engine_full: str) -> list[str]:
    """Return the parts of a table's TTL that delete or add up rows, by its ``engine_full``."""
    said = _TTL.search(engine_full)
    return [part for part in _parts(said[1]) if not _KEEPS_ROWS.search(part)] if said else []


def _parts(said: str) -> Iterator[str]:
    """Split at commas that are in no parentheses and no text."""
    part, depth = "", 0
    for piece in _PIECE.findall(said):
        depth += (piece == "(") - (piece == ")")
        if piece == "," and not depth:
            yield part.strip()
            part = ""
        else:
            part += piece
    yield part.strip()


def kept_by_ttl(database: Database, table: str, time_column: str) -> datetime:
    """Return the first hour of which the TTL of a table has taken no row; without a TTL, the first.

    A TTL of other columns than the time is left alone: nobody knows which hours it concerns.

    Raises:
        ClickHouseError: a statement failed.
    """
    kept = BEGINNING
    layout = layout_of(database, table)
    for part in ttl_that_deletes(layout["engine_full"]) if layout else []:
        columns = database.rows(
            read_sql("clickhouse/columns.sql"), {"database": database.name, "table": table}
        )
        [kind] = [each["type"] for each in columns if each["name"] == time_column]
        statement = render(
            "clickhouse/past_ttl.sql",
            expression=_WHAT_IT_DOES.sub("", part),
            column=quote_identifier(time_column),
            type=quote_text(kind),
        )
        try:
            [past] = database.rows(statement)
        except ClickHouseError as error:
            if error.name != "UNKNOWN_IDENTIFIER":
                raise
        else:
            kept = max(kept, past["last_past"] + HOUR)
    return kept
