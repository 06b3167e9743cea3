"""A session of the operational PostgreSQL: one connection, inside one read-only transaction."""

import re
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import adbc_driver_manager
import pyarrow as pa
from adbc_driver_postgresql import dbapi

from llm_trace_pipeline.errors import RecoveryConflictError, SourceError
from llm_trace_pipeline.sql import ROOT, without_comments

# A record batch from PostgreSQL ends with the row that exceeds this size. A row has less than 1 GB
# (too_wide.sql), so that no column of a batch comes near the 2 GB that Arrow's offsets can address.
BATCH_BYTES = 8 * 2**20

# What the role, the database or a variable of libpq may have set otherwise.
OWN_SETTINGS = {
    "TimeZone": "UTC",
    "client_encoding": "UTF8",
    "application_name": "llm_trace_pipeline",
    # A policy would hide rows without a word; PostgreSQL then refuses the statement instead.
    "row_security": "off",
    # No statement may hold the database's old row versions for ever. The slowest one known, the
    # ledger of 30 days and 10 million traces, takes three minutes.
    "statement_timeout": "1h",
    # A snapshot is idle while other connections read it.
    "idle_in_transaction_session_timeout": "1h",
}
_TRANSACTION_TIMEOUT_VERSION = 170000  # the first that has such a setting; 0: no limit

_UNDEFINED = {"42P01": "table", "42703": "column"}

SHOW_ALL_ROWS = (
    "ALTER ROLE … BYPASSRLS lets the role see all rows, and so does a view of the table's owner "
    "that its search path finds first"
)


@contextmanager
def open_session(url: str) -> Iterator["Session"]:
    """Hold one connection in a read-only transaction.

    Args:
        url: libpq URL.

    Raises:
        SourceError: the database cannot be reached.
    """
    try:
        connection = dbapi.connect(url, autocommit=True)
    except adbc_driver_manager.Error as error:
        reason = _refusal(str(error), url)
        raise SourceError(f"cannot connect to OPERATIONAL_DATABASE_URL: {reason}") from None
    with closing(connection):
        session = Session(connection)
        session.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        own = dict(OWN_SETTINGS)
        if session.server_version >= _TRANSACTION_TIMEOUT_VERSION:
            own["transaction_timeout"] = "0"
        for name, value in own.items():
            session.run(f"SET LOCAL {name} = '{value}'")
        yield session


def _refusal(message: str, url: str) -> str:
    """Return why there is no connection, without what a URL that cannot be parsed may tell."""
    if answer := re.search("connection to server.*", message, re.DOTALL):
        return answer[0].strip()
    parameter = re.search(r'invalid (?:URI query parameter|\w+ value): "\w+"', message)
    if parameter and "@" not in url.rpartition("?")[2]:  # else it may be a piece of a password
        return parameter[0]
    return "it is no valid libpq URL"


class Session:
    """One connection inside its read-only transaction."""

    def __init__(self, connection: dbapi.Connection) -> None:
        """Use an open connection."""
        self._connection = connection
        self._cursor = connection.cursor(
            adbc_stmt_kwargs={"adbc.postgresql.batch_size_hint_bytes": str(BATCH_BYTES)}
        )

    @property
    def server_version(self) -> int:
        """The version of PostgreSQL as a number, such as 180004 for 18.4."""
        return int(str(self._connection.adbc_get_info()["vendor_version"]))

    def now(self) -> datetime:
        """Return when the transaction began, by the clock of the database, in UTC."""
        [clock] = self.rows("SELECT now() AS at")
        at: datetime = clock["at"]
        return at.astimezone(UTC)

    def run(self, sql: str) -> None:
        """Execute a statement that returns nothing."""
        with _translated(), self._connection.cursor() as cursor:
            cursor.adbc_statement.set_sql_query(sql)
            cursor.adbc_statement.execute_update()

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Keep the transaction, and so its snapshot, usable where a statement fails.

        A stream inside that is not read to its end leaves it as usable.
        """
        self.run("SAVEPOINT usable")
        try:
            yield
        except (SourceError, GeneratorExit):
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
        """Execute a query and hand out its batches; a thread reads the next batch meanwhile.

        Raises:
            SourceError: the query failed, at its start or on the way.
        """
        with closing(self._stream(sql)) as stream, ThreadPoolExecutor(1) as reader:
            upcoming = reader.submit(next, stream, None)
            while (batch := upcoming.result()) is not None:
                upcoming = reader.submit(next, stream, None)
                yield batch

    def _stream(self, sql: str) -> Generator[pa.RecordBatch, None, None]:
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


def _without_extensions(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the columns as their storage types: json comes as an extension of string."""
    columns = [
        column.storage if isinstance(column, pa.ExtensionArray) else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)


@contextmanager
def _translated() -> Iterator[None]:
    """Turn an error of the driver into one line; a missing table or column is named in it."""
    try:
        yield
    except (adbc_driver_manager.Error, pa.ArrowException, OSError) as error:
        # An error that comes with a later batch is pyarrow's, without a code.
        code = getattr(error, "sqlstate", None)
        message = " ".join(re.sub("Query was:.*", "", str(error), flags=re.DOTALL).split())
        kind = _UNDEFINED.get(code or "")
        named = re.search(r'(?:relation|column) "?([\w.]+)"? does not exist', message)
        if kind and named:
            raise SourceError(
                f"the operational database has no {kind} {named[1]}, which is read by "
                f"{files_that_name(named[1])}: edit it there if yours is called otherwise",
                code,
            ) from None
        if hiding := re.search('row-level security policy for table "(.+?)"', message):
            raise SourceError(
                f"a row-level security policy hides rows of {hiding[1]}; {SHOW_ALL_ROWS}",
                code,
            ) from None
        if "conflict with recovery" in message:
            raise RecoveryConflictError(
                "the operational database, a standby, cancelled a query by a conflict with "
                "recovery; set hot_standby_feedback = on there, or a longer "
                "max_standby_streaming_delay",
                code,
            ) from None
        raise SourceError(f"the operational database: {message}", code) from None


def files_that_name(identifier: str) -> str:
    """Return the files under ``sql/operational`` whose statements read a table or column."""
    bare = identifier.rpartition(".")[2]
    files = [
        str(path.relative_to(ROOT.parent))
        for path in sorted((ROOT / "operational").glob("*.sql"))
        if re.search(rf"\b{re.escape(bare)}\b", without_comments(path.read_text(encoding="utf-8")))
    ]
    return " and ".join(files) or "sql/operational"
