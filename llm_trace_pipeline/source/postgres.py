"""The operational PostgreSQL: one read-only snapshot of it, streamed as Arrow batches."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import adbc_driver_manager
import pyarrow as pa
from adbc_driver_postgresql import dbapi

from llm_trace_pipeline.batches.erasures import Erasure, without_erased
from llm_trace_pipeline.batches.parts import PartWriter
from llm_trace_pipeline.errors import SourceError
from llm_trace_pipeline.hours import HOUR, Window
from llm_trace_pipeline.sql import ROOT, read_sql, render, without_comments
from llm_trace_pipeline.trace.billing import BillingMatcher
from llm_trace_pipeline.trace.payloads import KEEP_ALL, PayloadPolicy
from llm_trace_pipeline.trace.prices import PACKAGED, PriceBook
from llm_trace_pipeline.trace.rows import transform
from llm_trace_pipeline.trace.tally import Tally

# Of one Arrow batch from PostgreSQL, which ends with the row that exceeds it. A row has less than
# 1 GB (too_wide.sql), so that no column of a batch comes near the 2 GB that its offsets can tell.
BATCH_BYTES = 8 * 2**20

# How many windows a connection reads of an hour: many, so that none waits for the others at the
# end; few, since each plans its query anew and may scan steps.
WINDOWS_PER_CONNECTION = 2

# No statement may hold the database's old row versions for ever. The slowest one known, the ledger
# of 30 days and 10 million traces, takes three minutes.
STATEMENT_TIMEOUT = "1h"

# Tables that a deployment may lack; an empty relation of the same columns stands in.
OPTIONAL_TABLES = ("provider_trace_metadata", "step_metrics")

_KEYS_PER_QUERY = 10_000
_UNDEFINED = {"42P01": "table", "42703": "column"}


class Source:
    """The operational database, read in one read-only snapshot."""

    def __init__(
        self,
        url: str,
        connections: int = 1,
        payloads: PayloadPolicy = KEEP_ALL,
        prices: PriceBook = PACKAGED,
    ) -> None:
        """Open nothing yet.

        Args:
            url: libpq URL.
            connections: how many connections share the reading of an hour.
            payloads: what is kept of the payloads that are read.
            prices: what the calls that are read cost.
        """
        self.url = url
        self.connections = connections
        self.payloads = payloads
        self.prices = prices

    @contextmanager
    def session(self) -> Iterator["Session"]:
        """Hold one connection in a read-only transaction.

        Raises:
            SourceError: the database cannot be reached.
        """
        try:
            connection = dbapi.connect(self.url, autocommit=True)
        except adbc_driver_manager.Error as error:
            # What libpq says of a URL that it cannot parse quotes parts of it, passwords included.
            _, is_answer, reason = str(error).partition("connection to server")
            reason = f"connection to server{reason}" if is_answer else "it is no valid libpq URL"
            raise SourceError(
                f"cannot connect to OPERATIONAL_DATABASE_URL: {reason.strip()}"
            ) from None
        with closing(connection):
            session = Session(connection)
            session.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            session.run("SET LOCAL TimeZone = 'UTC'")
            session.run("SET LOCAL application_name = 'llm_trace_pipeline'")
            session.run(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'")
            yield session

    @contextmanager
    def snapshot(
        self,
        after: datetime | None = None,  # noqa: ARG002 -- a snapshot that is taken now is later
    ) -> Iterator["Snapshot"]:
        """Hold one snapshot of the database, seen alike by all its connections.

        Args:
            after: the snapshot must be of a later moment.

        Raises:
            SourceError: the database cannot be reached.
        """
        with self.session() as leader:
            yield Snapshot(self, leader)

    @contextmanager
    def followers(self, leader: "Session", count: int) -> Iterator[list["Session"]]:
        """Hold connections that see the snapshot of another one.

        Raises:
            SourceError: the database cannot be reached.
        """
        with ExitStack() as stack:
            followers = [stack.enter_context(self.session()) for _ in range(count)]
            if followers:
                [exported] = leader.rows("SELECT pg_export_snapshot() AS name")
                for follower in followers:
                    follower.run(f"SET TRANSACTION SNAPSHOT '{exported['name']}'")
            yield followers


class SourceOfHours(Source):
    """The operational database, for a run that reads contiguous hours one after the other.

    Where no index finds an hour, each would scan the whole table several times. There, one scan
    tells where in the table the hours lie, and all of them are read in the snapshot of that scan,
    in which it holds. Only one connection stays open between two hours.
    """

    def __init__(self, source: Source, window: Window) -> None:
        """Open nothing yet."""
        super().__init__(source.url, source.connections, source.payloads, source.prices)
        self._window = window
        self._scan: _Scan | None = None
        self._needs_scan = True
        self._stack = ExitStack()

    @contextmanager
    def snapshot(self, after: datetime | None = None) -> Iterator["Snapshot"]:
        """Hold a snapshot that was taken after some moment, if one is given.

        Raises:
            SourceError: the database cannot be reached.
        """
        if self._needs_scan and self._scan is None:
            self._scan = self._scan_table()
        if self._scan is None or (after and after >= self._scan.at):
            with super().snapshot() as own:
                yield own
            return
        try:
            yield Snapshot(self, self._scan.leader, self._scan.places)
        except BaseException:  # an hour that fails takes no other with it: the next one scans anew
            self.close()
            raise

    def _scan_table(self) -> "_Scan | None":
        at = datetime.now(UTC)
        with ExitStack() as stack:
            leader = stack.enter_context(self.session())
            leader.set(tables='{"provider_traces": []}')
            [table] = leader.rows(read_sql("preflight/tables.sql"))
            # A view has no places; a table that is missing is for the statements to name.
            self._needs_scan = table["kind"] in ("r", "p") and not table["has_index"]
            if not self._needs_scan:
                return None
            rows = Snapshot(self, leader).rows_in("places", self._window)
            self._stack = stack.pop_all()
        return _Scan(at, leader, {row["hour"]: (row["first"], row["last"]) for row in rows})

    def close(self) -> None:
        """Give up the shared snapshot."""
        self._scan = None
        self._stack.close()


class Session:
    """One connection inside its read-only transaction."""

    def __init__(self, connection: dbapi.Connection) -> None:
        """Use an open connection."""
        self._connection = connection
        self._cursor = connection.cursor(
            adbc_stmt_kwargs={"adbc.postgresql.batch_size_hint_bytes": str(BATCH_BYTES)}
        )

    def run(self, sql: str) -> None:
        """Execute a statement that returns nothing."""
        with _translated(), self._connection.cursor() as cursor:
            cursor.adbc_statement.set_sql_query(sql)
            cursor.adbc_statement.execute_update()

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Keep the transaction, and so its snapshot, usable where a statement fails."""
        self.run("SAVEPOINT usable")
        try:
            yield
        except SourceError:
            with suppress(SourceError):  # the connection is lost: the first error says why
                self.run("ROLLBACK TO SAVEPOINT usable")
                self.run("RELEASE SAVEPOINT usable")
            raise
        self.run("RELEASE SAVEPOINT usable")  # inside it, the snapshot cannot be exported

    def set(self, **values: str) -> None:
        """Set values that statements read by ``current_setting('llm_traces.<name>')``.

        A bound parameter would make the driver gather the whole result in memory (862 MB for an
        hour of 385 MB, against 155 MB): it streams by COPY, which takes none.
        """
        for name, value in values.items():
            with _translated(), self._connection.cursor() as cursor:
                cursor.execute("SELECT set_config($1, $2, false)", (f"llm_traces.{name}", value))
                cursor.fetchall()

    def batches(self, sql: str) -> Iterator[pa.RecordBatch]:
        """Execute a query and hand out its batches while they arrive."""
        with _translated():
            self._cursor.execute(sql)
            reader = self._cursor.fetch_record_batch()
        with closing(reader):
            while True:
                with _translated():
                    try:
                        batch = reader.read_next_batch()
                    except StopIteration:
                        return
                yield _without_extensions(batch)

    def table(self, sql: str, *values: object) -> pa.Table:
        """Execute a query whose result is small, with values for $1 and so on."""
        with _translated():
            self._cursor.execute(sql, values or None)
            return self._cursor.fetch_arrow_table()

    def rows(self, sql: str, *values: object) -> list[dict[str, Any]]:
        """Execute a query whose result is small, with values for $1 and so on; a dict per row."""
        rows: list[dict[str, Any]] = self.table(sql, *values).to_pylist()
        return rows


@dataclass(frozen=True)
class Census:
    """How many rows the source holds of one hour; see ``sql/operational/census.sql``."""

    rows: int
    deleted: int
    newest_change: datetime | None


@dataclass(frozen=True)
class Ledger(Census):
    """What the source holds of one hour; see ``sql/operational/ledger.sql``."""

    source_hash: str


EMPTY_LEDGER = Ledger(rows=0, deleted=0, newest_change=None, source_hash="0")

# Where a statement's window comes from: its bounds, and where no index finds an hour, the places of
# its first and last row.
_Bounds = dict[str, str]
# A streamed statement takes no bound values; see Session.set.
_AS_SETTINGS: _Bounds = {
    "start": "current_setting('llm_traces.start')::timestamptz",
    "end": "current_setting('llm_traces.end')::timestamptz",
    "first": "current_setting('llm_traces.first')::tid",
    "last": "current_setting('llm_traces.last')::tid",
}
# Any other does: a setting is read anew for every row that is scanned (0.9 s instead of 0.1 for
# 500,000). Without a time zone: after a statement with a value that has one the driver commits, and
# the snapshot is gone.
_AS_VALUES: _Bounds = {
    "start": "($1 AT TIME ZONE 'UTC')",
    "end": "($2 AT TIME ZONE 'UTC')",
    "first": "$3::tid",
    "last": "$4::tid",
}

# The first and the last place in provider_traces that a row of an hour may have.
Place = tuple[str, str]
_NOWHERE = ("(0,0)", "(0,0)")  # rows are counted from 1


@dataclass(frozen=True)
class _Scan:
    """Where the hours of a run lie, as one connection sees it."""

    at: datetime  # before the snapshot was taken
    leader: Session
    places: dict[datetime, Place]


class Snapshot:
    """One state of the operational database, which several connections can see."""

    def __init__(
        self, source: Source, leader: Session, places: Mapping[datetime, Place] | None = None
    ) -> None:
        """Find out which optional tables this deployment has.

        Args:
            source: opens more connections, where much is to be read.
            leader: the connection whose snapshot it is.
            places: where the rows of each hour lie; only hours are then asked for. None: an index
                finds them, or they are not known.
        """
        self._source = source
        self._places = places
        self.leader = leader
        # Relations that every statement may read, and the files that hold them.
        self._shared = {
            f"{name} AS": f"operational/absent/{name}.sql"
            for name in OPTIONAL_TABLES
            # An empty table counts as absent too: the planner then leaves out its joins, one of
            # which reads all traces.
            if not (
                self.leader.rows(f"SELECT to_regclass('{name}') IS NOT NULL AS exists")[0]["exists"]
                and self.leader.rows(f"SELECT EXISTS (SELECT FROM {name}) AS has_rows")[0][
                    "has_rows"
                ]
            )
        } | {
            # So that a statement reads only the columns and the hours it asks for.
            "all_traces AS NOT MATERIALIZED": "operational/all_traces.sql",
            "superseded_steps AS": "operational/superseded_steps.sql",
        }

    def statement(self, name: str, bounds: _Bounds = _AS_SETTINGS) -> str:
        """Return one statement of ``sql/operational`` with the relations that all of them share."""
        window = "window" if self._places is None else "placed"
        parts = {
            **bounds,
            "row_hash": without_comments(read_sql("operational/row_hash.sql")),
            "window": without_comments(_rendered(f"operational/{window}.sql", bounds)),
        }
        shared = ",\n".join(
            f"{relation} (\n{_rendered(file, parts)})" for relation, file in self._shared.items()
        )
        return f"WITH {shared}\n{_rendered(f'operational/{name}.sql', parts)}"

    def rows_in(self, name: str, window: Window) -> list[dict[str, Any]]:
        """Execute a statement whose result is small for a window."""
        sql = self.statement(name, _AS_VALUES)
        start, end = (at.astimezone(UTC).replace(tzinfo=None) for at in (window.start, window.end))
        place = self._place_of(window.start) if "$3" in sql else ()
        return self.leader.rows(sql, start, end, *place)

    def _place_of(self, hour: datetime) -> Place:
        return (self._places or {}).get(hour, _NOWHERE)

    def ledger(self, window: Window) -> dict[datetime, Ledger]:
        """Return what the source holds of each hour of a window; hours without rows are absent."""
        return {row.pop("hour"): Ledger(**row) for row in self.rows_in("ledger", window)}

    def ledger_of(self, hour: datetime) -> Ledger:
        """Return what the source holds of one hour."""
        return self.ledger(Window.of([hour])).get(hour, EMPTY_LEDGER)

    def census(self, hour: datetime) -> Census:
        """Return how many rows the source holds of one hour; much cheaper than its ledger."""
        [counts] = self.rows_in("census", Window.of([hour]))
        return Census(**counts)

    def folded(self, window: Window) -> list[dict[str, Any]]:
        """Return the window's rows that give way to another row of the same id."""
        return self.rows_in("folded", window)

    def too_wide(self, hour: datetime) -> list[str]:
        """Return the ids of the hour's rows that PostgreSQL cannot send whole."""
        return sorted({row["id"] for row in self.rows_in("too_wide", Window.of([hour]))})

    def present(self, trace_keys: Sequence[str]) -> set[str]:
        """Return those of some traces that the source still has, in whatever hour."""
        found: set[str] = set()
        for begin in range(0, len(trace_keys), _KEYS_PER_QUERY):
            keys = trace_keys[begin : begin + _KEYS_PER_QUERY]
            self.leader.set(ids=json.dumps([*keys, *(f"provider_trace-{key}" for key in keys)]))
            found |= {row["trace_key"] for row in self.leader.rows(self.statement("present"))}
        return found

    def write_traces(
        self,
        hour: datetime,
        folded: list[dict[str, Any]],
        too_wide: list[str],
        erasures: Sequence[Erasure],
        billing: BillingMatcher,
        writers: Sequence[PartWriter],  # one for each session that takes part
    ) -> Tally:
        """Stream the hour's traces through the transformation into part files.

        Each session works in a thread of its own, on one window of the hour after the other: the
        drivers, Arrow and the codec all work outside the interpreter's lock.

        Raises:
            SourceError: the rows cannot be read; the snapshot can still be asked.
        """
        losers = json.dumps([{"origin": row["origin"], "id": row["id"]} for row in folded])
        sql = self.statement("traces")

        count = len(writers) * WINDOWS_PER_CONNECTION if len(writers) > 1 else 1
        bounds = [hour + HOUR * number / count for number in range(count + 1)]
        waiting = iter(list(pairwise(bounds)))  # of which each thread takes the next one

        def write_windows(session: Session, writer: PartWriter) -> Tally:
            # The windows are what is read in parallel; workers of PostgreSQL's own would only
            # compete with them (2 cores: 1.2 s for half an hour's query, 1.5 s with workers).
            session.run("SET LOCAL max_parallel_workers_per_gather = 0")
            first, last = self._place_of(hour)
            session.set(folded=losers, too_wide=json.dumps(too_wide), first=first, last=last)
            tally = Tally()
            with writer, session.savepoint():
                for start, end in waiting:
                    session.set(start=start.isoformat(), end=end.isoformat())
                    for stored in ahead(session.batches(sql)):
                        kept = without_erased(stored, erasures)
                        batch, counted = transform(
                            kept, billing, self._source.payloads, self._source.prices
                        )
                        writer.write(batch)
                        tally.add(counted)
                        tally.erased += stored.num_rows - kept.num_rows
                        tally.add_source_hashes(stored.column("row_hash"))
            return tally

        total = Tally()
        with (
            self._source.followers(self.leader, len(writers) - 1) as followers,
            ThreadPoolExecutor(len(writers)) as pool,
        ):
            for tally in pool.map(write_windows, [self.leader, *followers], writers):
                total.add(tally)
        return total


def _rendered(name: str, parts: dict[str, str]) -> str:
    """Return a statement with those of the parts that it has a placeholder for."""
    text = read_sql(name)
    return render(name, **{part: sql for part, sql in parts.items() if f"{{{part}}}" in text})


def ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Hand out batches while the next one is read in another thread."""
    with ThreadPoolExecutor(1) as reader:
        upcoming = reader.submit(next, batches, None)
        while (batch := upcoming.result()) is not None:
            upcoming = reader.submit(next, batches, None)
            yield batch


def _without_extensions(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the columns as what they are stored as: json comes as an extension of string."""
    columns = [
        column.storage if isinstance(column, pa.ExtensionArray) else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the driver's errors into one line that says what is missing, and where it is named."""
    try:
        yield
    except (adbc_driver_manager.Error, pa.ArrowException, OSError) as error:
        # An error that comes with a later batch is pyarrow's, without a code.
        code = getattr(error, "sqlstate", None)
        message = re.sub(r"\s*Query was:.*", "", str(error), flags=re.DOTALL).strip()
        kind = _UNDEFINED.get(code or "")
        named = re.search(r'(?:relation|column) "?([\w.]+)"? does not exist', message)
        if kind and named:
            raise SourceError(
                f"the operational database has no {kind} {named[1]}, which is read by "
                f"{files_that_name(named[1])}: edit it there if yours is called otherwise",
                code,
            ) from None
        raise SourceError(f"the operational database: {message}", code) from None


def files_that_name(identifier: str) -> str:
    """Return the statements that read a table or column."""
    bare = identifier.rpartition(".")[2]
    files = [
        str(path.relative_to(ROOT.parent))
        for path in sorted((ROOT / "operational").glob("*.sql"))
        if re.search(rf"\b{re.escape(bare)}\b", without_comments(path.read_text(encoding="utf-8")))
    ]
    return " and ".join(files) or "sql/operational"
