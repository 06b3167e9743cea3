"""A snapshot: one state of the operational database, and the questions that are asked of it."""

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Lock
from typing import Any

import pyarrow as pa

from llm_trace_pipeline.errors import SourceError
from llm_trace_pipeline.hours import HOUR, Window
from llm_trace_pipeline.source.session import Session
from llm_trace_pipeline.sql import read_sql, render, without_comments

# Tables that a deployment may lack; an empty relation of the same columns stands in.
OPTIONAL_TABLES = ("provider_trace_metadata", "step_metrics")

_KEYS_PER_QUERY = 10_000


@dataclass(frozen=True)
class Census:
    """How many rows the source holds of one hour; see ``sql/operational/census.sql``."""

    rows: int
    deleted: int
    newest_change: datetime | None


@dataclass(frozen=True)
class Ledger(Census):
    """The census of one hour, and the hash of its rows; see ``sql/operational/ledger.sql``."""

    source_hash: str


EMPTY_LEDGER = Ledger(rows=0, deleted=0, newest_change=None, source_hash="0")


@dataclass(frozen=True)
class Untraced:
    """The steps of an hour without a trace; see ``sql/operational/unaccounted_steps.sql``."""

    steps: int
    calls: int  # of these, the steps that called a model


@dataclass(frozen=True)
class FoldedRow:
    """A stored row that gives way to another row of its id; see ``sql/operational/folded.sql``."""

    origin: int
    id: str
    is_deleted: bool


# The condition that a trace is of a stream. A stream has all calls of an agent, so that they follow
# each other; a call without an agent goes to any stream. A CASE hides the number from the planner,
# which would expect so few rows that it read the joined tables anew for every row that comes.
_SLICE = (
    "CASE WHEN (hashtext(coalesce(t.agent_id, t.id)) & 2147483647) % {count} = {number} "
    "THEN true END"
)
_WHOLE = "true"
# Sorting a stream takes this much of the server's memory, and more of its disk where payloads are
# short and stand in the rows. Long payloads are stored apart, and only their places are sorted. A
# fourth of what 250,000 rows of 0.9 KB need was as fast as all of it.
_SORT_MEMORY = "64MB"

# The bounds of a statement's window in SQL. Where no index finds an hour, the window has the places
# of the hour's first and last row too.
_Bounds = dict[str, str]
# A streamed statement takes no bound values; see Session.set.
_AS_SETTINGS: _Bounds = {
    "start": "current_setting('llm_traces.start')::timestamptz",
    "end": "current_setting('llm_traces.end')::timestamptz",
    "first": "current_setting('llm_traces.first')::tid",
    "last": "current_setting('llm_traces.last')::tid",
}
# Other statements take values: a setting is read anew for every row that is scanned (0.9 s instead
# of 0.1 for 500,000). The values have no time zone: after a statement with a value that has one the
# driver commits, and the snapshot is gone.
_AS_VALUES: _Bounds = {
    "start": "($1 AT TIME ZONE 'UTC')",
    "end": "($2 AT TIME ZONE 'UTC')",
    "first": "$3::tid",
    "last": "$4::tid",
}

# The first and the last place in provider_traces that a row of an hour may have.
Place = tuple[str, str]
_NOWHERE = ("(0,0)", "(0,0)")  # PostgreSQL counts the rows of a page from 1

OpenSession = Callable[[], AbstractContextManager[Session]]


class Traces:
    """The traces of an hour, while threads read them, and what else is known of their steps.

    Attributes:
        streams: the traces, as rows of ``sql/operational/traces.sql``. Every stream is read by a
            thread of its own: driver and server work outside the interpreter's lock.
    """

    def __init__(
        self,
        streams: Sequence[Iterator[pa.RecordBatch]],
        siblings_sql: str,
        open_follower: Callable[[], Session],
    ) -> None:
        """Open nothing yet.

        Args:
            streams: see the attribute.
            siblings_sql: the statement of ``sql/operational/siblings.sql``.
            open_follower: opens a connection that sees the snapshot of the streams.
        """
        self.streams = streams
        self._siblings_sql = siblings_sql
        self._open_follower = open_follower
        self._session: Session | None = None
        self._lock = Lock()

    def siblings(self, step_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return the traces of the steps named, in whatever hour, the steps' own among them.

        Any thread may ask while the streams are read. The first call opens a connection for all
        calls, which is closed with the streams.

        Returns:
            A dict a row of ``sql/operational/siblings.sql``.

        Raises:
            SourceError: the source cannot be asked.
        """
        found: list[dict[str, Any]] = []
        with self._lock:
            for ids in _chunks(step_ids):
                self._session = self._session or self._open_follower()
                found += self._session.rows(self._siblings_sql, ids)
        return found


class Snapshot:
    """One state of the operational database, which several connections can see."""

    def __init__(
        self,
        open_session: OpenSession,
        leader: Session,
        places: Mapping[datetime, Place] | None = None,
    ) -> None:
        """Find out which optional tables this deployment has.

        Args:
            open_session: opens another connection, where an hour has many rows.
            leader: the connection whose snapshot it is.
            places: where the rows of every hour lie; the snapshot is then asked for hours alone.
                None: an index finds the hours, or their places are not known.
        """
        self._open_session = open_session
        self._places = places
        self.leader = leader
        # Relations that every statement may read, and the files that hold them.
        self._shared = {
            f"{name} AS": f"operational/absent/{name}.sql"
            for name in OPTIONAL_TABLES
            if not self._has_rows(name)
        } | {
            # So that a statement reads only the columns and the hours it asks for.
            "all_traces AS NOT MATERIALIZED": "operational/all_traces.sql",
            "all_steps AS NOT MATERIALIZED": "operational/all_steps.sql",
            "superseded_steps AS": "operational/superseded_steps.sql",
        }

    def _has_rows(self, table: str) -> bool:
        """Whether a table is there and not empty.

        An empty table counts as absent: the planner then leaves out its joins, one of which reads
        all traces.
        """
        [found] = self.leader.rows("SELECT to_regclass($1) IS NOT NULL AS exists", table)
        if not found["exists"]:
            return False
        try:
            with self.leader.savepoint():
                return bool(self.leader.rows(f"SELECT 1 AS one FROM {table} LIMIT 1"))
        except SourceError:  # a statement that needs the rows says why they cannot be read
            return True

    def statement(self, name: str, bounds: _Bounds = _AS_SETTINGS, slice_: str = _WHOLE) -> str:
        """Return a statement of ``sql/operational``, with the relations that all of them share.

        Args:
            name: the file without its ending, such as ``traces``.
            bounds: where the statement's window comes from: settings, or the values $1 to $4.
            slice_: the condition that a trace is of a stream.
        """
        window = "window" if self._places is None else "placed"
        parts = {
            **bounds,
            "slice": slice_,
            "row_hash": without_comments(read_sql("operational/row_hash.sql")),
            "window": without_comments(_rendered(f"operational/{window}.sql", bounds)),
        }
        shared = ",\n".join(
            f"{relation} (\n{_rendered(file, parts)})" for relation, file in self._shared.items()
        )
        return f"WITH {shared}\n{_rendered(f'operational/{name}.sql', parts)}"

    def rows_in(self, name: str, window: Window) -> list[dict[str, Any]]:
        """Execute a statement about a window whose result is small; a dict per row."""
        sql = self.statement(name, _AS_VALUES)
        start, end = (at.astimezone(UTC).replace(tzinfo=None) for at in (window.start, window.end))
        place = self._place_of(window.start) if "$3" in sql else ()
        return self.leader.rows(sql, start, end, *place)

    def _place_of(self, hour: datetime) -> Place:
        return (self._places or {}).get(hour, _NOWHERE)

    def ledger(self, window: Window) -> dict[datetime, Ledger]:
        """Return the ledgers of a window by hour; an hour without rows is absent."""
        return {row.pop("hour"): Ledger(**row) for row in self.rows_in("ledger", window)}

    def ledger_of(self, hour: datetime) -> Ledger:
        """Return the ledger of one hour."""
        return self.ledger(Window.of([hour])).get(hour, EMPTY_LEDGER)

    def census(self, hour: datetime) -> Census:
        """Return the census of one hour, which costs much less than its ledger."""
        [counts] = self.rows_in("census", Window.of([hour]))
        return Census(**counts)

    def folded(self, hour: datetime) -> list[FoldedRow]:
        """Return the rows of an hour that give way to another row of the same id."""
        return [FoldedRow(**row) for row in self.rows_in("folded", Window.of([hour]))]

    def too_wide(self, hour: datetime) -> list[str]:
        """Return the ids of an hour's rows that PostgreSQL cannot send whole."""
        return sorted({row["id"] for row in self.rows_in("too_wide", Window.of([hour]))})

    def untraced(self, hour: datetime, traced: int = 0) -> Untraced:
        """Return how many steps of an hour have no trace, and should have one.

        Args:
            hour: start of the hour.
            traced: how many different steps came with ``step_is_of_hour`` beside the traces. Where
                these are all steps, as they nearly always are, they need not be looked for.
        """
        window = Window.of([hour])
        [counts] = self.rows_in("steps_of_hour", window)
        if counts["number"] == traced:
            return Untraced(0, 0)
        [counts] = self.rows_in("unaccounted_steps", window)
        return Untraced(**counts)

    def present(self, trace_keys: Sequence[str]) -> set[str]:
        """Return the traces that the source still has, in whatever hour, of those named."""
        found: set[str] = set()
        for keys in _chunks(trace_keys):
            ids = [*keys, *(f"provider_trace-{key}" for key in keys)]
            found |= {row["trace_key"] for row in self.leader.rows(self.statement("present"), ids)}
        return found

    @contextmanager
    def traces(
        self,
        hour: datetime,
        connections: int = 1,
        folded: Sequence[FoldedRow] = (),
        too_wide: Sequence[str] = (),
    ) -> Iterator[Traces]:
        """Hand out the traces of an hour, as rows of ``sql/operational/traces.sql``.

        Every stream is in the order of that statement: the calls of an agent follow each other.

        Args:
            hour: start of the hour.
            connections: how many connections share the hour: every one reads other agents.
            folded: rows to leave out.
            too_wide: ids of rows to hand out without their payloads.

        Returns:
            The traces, with one stream a connection. A stream raises a SourceError where its rows
            cannot be read; the snapshot can still be asked.
        """
        # A setting would be read anew for every row that is scanned (0.03 s for 50,000).
        start, end = (f"timestamptz '{at.isoformat()}'" for at in (hour, hour + HOUR))
        bounds = _AS_SETTINGS | {"start": start, "end": end}
        slices = [_SLICE.format(count=connections, number=number) for number in range(connections)]
        if connections == 1:
            slices = [_WHOLE]
        first, last = self._place_of(hour)
        values = {
            "folded": json.dumps([{"origin": row.origin, "id": row.id} for row in folded]),
            "too_wide": json.dumps(too_wide),
            "first": first,
            "last": last,
        }
        # Before any stream begins: a stream of the leader is inside a savepoint, where a snapshot
        # cannot be exported.
        [exported] = self.leader.rows("SELECT pg_export_snapshot() AS name")
        with ExitStack() as stack:

            def open_follower() -> Session:
                try:
                    session = stack.enter_context(self._open_session())
                except SourceError as error:
                    raise SourceError(
                        f"another connection to the operational database is refused: {error}; "
                        "EXTRACT_CONNECTIONS, and one more, must be allowed",
                        error.sqlstate,
                    ) from None
                session.run(f"SET TRANSACTION SNAPSHOT '{exported['name']}'")
                return session

            sessions = [self.leader, *(open_follower() for _ in range(connections - 1))]
            streams = [
                stack.enter_context(
                    closing(self._stream(session, self.statement("traces", bounds, slice_), values))
                )
                for session, slice_ in zip(sessions, slices, strict=True)
            ]
            yield Traces(streams, self.statement("siblings"), open_follower)

    def _stream(
        self, session: Session, statement: str, values: Mapping[str, str]
    ) -> Generator[pa.RecordBatch, None, None]:
        # The slices are read in parallel already; workers of PostgreSQL's own would only compete
        # with them (2 cores: 1.2 s for half an hour's query, 1.5 s with workers).
        session.run("SET LOCAL max_parallel_workers_per_gather = 0")
        session.run(f"SET LOCAL work_mem = '{_SORT_MEMORY}'")
        session.set(**values)
        with session.savepoint():
            yield from session.batches(statement)


def _chunks(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield as many keys at a time as one query takes."""
    for begin in range(0, len(keys), _KEYS_PER_QUERY):
        yield keys[begin : begin + _KEYS_PER_QUERY]


def _rendered(name: str, parts: Mapping[str, str]) -> str:
    """Return a statement; a part that it has no placeholder for is left out."""
    text = read_sql(name)
    return render(name, **{part: sql for part, sql in parts.items() if f"{{{part}}}" in text})
