"""What the columns of a table hold, where somebody else made it with narrower ones than ours.

``llm_traces`` may exist already: with ``UInt32`` counts, ``DateTime64(3)`` times, a ``UUID`` as
``id``, texts that may be ``NULL``. Such a table is loaded as far as its types can hold a batch:

- Its rows are read as ours (``Held.rows``): a ``UUID`` as text, a missing text as ''.
- What a column rounds is compared rounded (``Held.as_held``): times to its unit, down, as
  ClickHouse does; a ``UUID`` to lower case with hyphens.
- A value that a column would change otherwise is refused before the table is touched
  (``Held.refuse``).

Where all types are ours, rows are read from the table as it is, and nothing is rounded or refused.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.errors import ClickHouseError
from llm_trace_pipeline.hours import key_of
from llm_trace_pipeline.sql import quote_identifier, read_sql
from llm_trace_pipeline.trace.columns import COLUMNS, Column

_OURS = {column.name: column for column in COLUMNS}
_WRAPPER = re.compile(r"\b(?:LowCardinality|Nullable)\(((?:[^()]|\([^()]*\))*)\)")
_ZONE = re.compile(r", '[^']*'|\('[^']*'\)")  # of a time: it changes no moment
_INTEGER = re.compile(r"(U?)Int(\d+)")
_TIME = re.compile(r"DateTime(?:64\((\d)\))?")
_FIXED = re.compile(r"FixedString\((\d+)\)")
# What ClickHouse reads as a UUID: hyphens may be missing.
_UUID = r"^([0-9a-f]{8})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{12})$"
_UUID_OR_HEX = r"^(?:[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-fA-F]{32})$"


class NotHeldError(ClickHouseError):
    """A column of the table cannot hold a value of an hour; the table is as it was."""


@dataclass(frozen=True)
class HeldColumn:
    """A column of a table, and the column of ``llm_traces`` that it stands for."""

    ours: Column
    type: str  # as ClickHouse tells it, with MATERIALIZED or such where the table computes it
    is_key: bool  # of the sorting or the partition key
    computed: str  # MATERIALIZED or such; '' if values can be inserted

    @property
    def name(self) -> str:
        """The name, which is the same on both sides."""
        return self.ours.name

    @cached_property
    def bare_type(self) -> str:
        """The type without what changes no value: a dictionary, NULL, a time zone."""
        return _bare(self.type)

    @property
    def is_nullable(self) -> bool:
        """Whether the column holds NULL, where it is no list."""
        return self.type.removeprefix("LowCardinality(").startswith("Nullable(")

    @property
    def is_ours(self) -> bool:
        """Whether a query reads the values as ours, without a cast."""
        if self.name == "created_at":  # a query compares any time with any other
            return True
        is_nullable = "Nullable(" in self.type
        return self.bare_type == _bare(self.ours.clickhouse_type) and (
            is_nullable == self.ours.is_nullable
        )

    @property
    def wanted_type(self) -> str:
        """Our type; NULL stays where the column has it already, since its rows may have it."""
        ours = self.ours.clickhouse_type
        return f"Nullable({ours})" if self.is_nullable and not self.ours.is_nullable else ours

    @property
    def alteration(self) -> str:
        """The part of an ALTER TABLE that gives the column our type."""
        change = f"REMOVE {self.computed}" if self.computed else self.wanted_type
        return f"MODIFY COLUMN {quote_identifier(self.name)} {change}"

    @property
    def unit(self) -> int:
        """The unit of a column of times, in microseconds; 1 where it holds them all."""
        if not (found := _TIME.fullmatch(self.bare_type)):
            return 1
        return int(10 ** max(0, 6 - int(found[1] or 0)))

    @property
    def is_rounded(self) -> bool:
        """Whether the column may hold another value than it is given."""
        return self.unit > 1 or self.bare_type == "UUID"

    @property
    def most(self) -> int | None:
        """The largest number that the column holds; None: it holds all of ours."""
        found = _INTEGER.fullmatch(self.bare_type)
        ours = _INTEGER.fullmatch(_bare(self.ours.clickhouse_type))
        if not (found and ours):
            return None
        bits = int(found[2]) - (not found[1])
        return 2**bits - 1 if bits < int(ours[2]) else None

    @property
    def lost(self) -> str:
        """What the column cannot hold, as a message tells it; '' if it holds all."""
        if not self.is_of_our_kind:
            return "any value"
        if self.ours.is_nullable and not self.is_nullable:
            return "NULL"
        if self.most is not None:
            return f"more than {self.most}"
        if fixed := _FIXED.fullmatch(self.bare_type):
            return f"a text of other than {fixed[1]} octets"
        return "what is no UUID" if self.bare_type == "UUID" else ""

    @property
    def holds_most(self) -> bool:
        """Whether only unusual values cannot be held."""
        is_id = self.bare_type == "UUID" and self.name == "id"
        return not self.lost or self.most is not None or is_id

    @property
    def is_of_our_kind(self) -> bool:
        """Whether the column holds values such as ours: numbers, times, texts."""
        if self.bare_type == _bare(self.ours.clickhouse_type):
            return True
        kind = self.ours.arrow_type
        if pa.types.is_string(kind):
            return self.bare_type == "UUID" or _FIXED.fullmatch(self.bare_type) is not None
        if pa.types.is_integer(kind):
            is_flag = self.bare_type == "Bool" and self.ours.clickhouse_type == "UInt8"
            return is_flag or _INTEGER.fullmatch(self.bare_type) is not None
        return pa.types.is_timestamp(kind) and _TIME.fullmatch(self.bare_type) is not None

    def as_ours(self) -> str:
        """Return the SQL expression of the values as ours."""
        name, ours = quote_identifier(self.name), self.ours.clickhouse_type
        if self.is_ours:
            return name
        if pa.types.is_list(self.ours.arrow_type):
            return f"arrayMap(each -> ifNull(toString(each), ''), {name}) AS {name}"
        if self.ours.is_nullable:
            return f"CAST({name} AS {ours}) AS {name}"
        blank = "''" if ours == "String" else "0"
        return f"ifNull(CAST({name} AS Nullable({ours})), {blank}) AS {name}"

    def rounded(self, values: pa.Array) -> pa.Array:
        """Return values as the column holds them."""
        if self.bare_type == "UUID":
            lower = pc.utf8_lower(values)
            return pc.replace_substring_regex(lower, _UUID, r"\1-\2-\3-\4-\5")
        micros = values.cast(pa.int64())
        whole = pc.multiply(pc.divide(micros, self.unit), self.unit)
        return whole.cast(values.type)

    def not_held(self, values: pa.Array) -> pa.BooleanArray:
        """Return which values the column cannot hold."""
        is_lost = pa.repeat(pa.scalar(False), len(values))
        if self.ours.is_nullable and not self.is_nullable:
            is_lost = pc.is_null(values)
        if self.most is not None:
            is_more = pc.greater(values, pa.scalar(self.most, values.type))
            is_lost = pc.or_(is_lost, pc.fill_null(is_more, fill_value=False))
        if fixed := _FIXED.fullmatch(self.bare_type):
            is_lost = pc.not_equal(pc.binary_length(values), int(fixed[1]))
        if self.bare_type == "UUID":
            is_lost = pc.invert(pc.match_substring_regex(values, _UUID_OR_HEX))
        return is_lost


class Held:
    """How a table holds the rows of ``llm_traces``."""

    def __init__(self, database: Database, table: str) -> None:
        """Ask ClickHouse about the columns of a table.

        Raises:
            ClickHouseError: they cannot be read, or one is missing, is computed by the table, or
                holds other kinds of values than ours.
        """
        self._table = database.qualified(table)
        self._is_of_cluster = database.shard is not None
        self.columns = columns_of(database, table)
        if missing := _OURS.keys() - {column.name for column in self.columns}:
            names = ", ".join(name for name in _OURS if name in missing)
            raise ClickHouseError(
                f"{self._table} has no column {names}",
                "make preflight has the statement that adds it",
            )
        for column in self.columns:
            if not column.is_of_our_kind:
                raise ClickHouseError(
                    f"{self._table}: column {column.name} is {column.type}, not "
                    f"{column.wanted_type}: no hour can be loaded",
                    self._repair(column),
                )

    @property
    def rows(self) -> str:
        """What a query names after FROM to read all columns as ours."""
        if all(column.is_ours for column in self.columns):
            return self._table
        return f"(SELECT {', '.join(each.as_ours() for each in self.columns)} FROM {self._table})"

    @property
    def rounded(self) -> list[str]:
        """The columns that may hold another value than they are given."""
        return [column.name for column in self.columns if column.is_rounded]

    def as_held(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Return rows of a batch as the table holds them; columns may be missing."""
        for column in self.columns:
            if column.is_rounded and column.name in rows.schema.names:
                place = rows.schema.get_field_index(column.name)
                values = column.rounded(rows.column(column.name))
                rows = rows.set_column(place, rows.schema.field(place), values)
        return rows

    @property
    def limited(self) -> list[str]:
        """The columns that cannot hold every value."""
        return [column.name for column in self.columns if column.lost]

    def refuse(self, hour: datetime, rows: pa.RecordBatch) -> None:
        """Raise a NotHeldError that names the first value of an hour that a column cannot hold.

        Args:
            hour: the hour.
            rows: its rows, with their ids and the limited columns.
        """
        for column in self.columns:
            if not column.lost:
                continue
            values = rows.column(column.name)
            place = pc.index(column.not_held(values), value=True).as_py()
            if place >= 0:
                value = values[place].as_py()
                raise NotHeldError(
                    f"hour {key_of(hour)}: {self._table}: column {column.name} is {column.type}, "
                    f"which cannot hold {'NULL' if value is None else repr(value)} of row "
                    f"{rows.column('id')[place]}; the hour stays as it was",
                    self._repair(column),
                )

    def _repair(self, column: HeldColumn) -> str:
        if column.is_key or self._is_of_cluster:
            return "make preflight says how to mend the table; then materialize llm_traces again"
        return f"ALTER TABLE {self._table} {column.alteration}; then materialize llm_traces again"


def columns_of(database: Database, table: str) -> list[HeldColumn]:
    """Return the columns of a table that ``llm_traces`` has, in its order."""
    found = database.rows(
        read_sql("clickhouse/columns.sql"), {"database": database.name, "table": table}
    )
    columns = {row["name"]: row for row in found}
    return [
        HeldColumn(
            ours,
            f"{row['type']} {row['computed']}".strip(),
            is_key=bool(row["is_key"]),
            computed=row["computed"],
        )
        for name, ours in _OURS.items()
        if (row := columns.get(name))
    ]


def _bare(clickhouse_type: str) -> str:
    """Return a type without what changes no value."""
    bare = clickhouse_type
    while (shorter := _WRAPPER.sub(r"\1", bare)) != bare:
        bare = shorter
    return _ZONE.sub("", bare) if bare.startswith("DateTime") else bare
