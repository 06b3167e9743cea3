"""From the operational PostgreSQL to one Parquet batch per hour, streamed as Arrow batches."""

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import adbc_driver_manager
import pyarrow as pa
import pyarrow.compute as pc
from adbc_driver_postgresql import dbapi

from llm_trace_pipeline.billing import BillingMatcher, unseen_versions
from llm_trace_pipeline.errors import SourceError
from llm_trace_pipeline.parquet import BatchStore, Manifest, Part, PartWriter, created_at_range
from llm_trace_pipeline.settings import HOUR_FORMAT
from llm_trace_pipeline.statements import ROOT, read_sql
from llm_trace_pipeline.transform import EXAMPLES, Tally, transform

HOUR = timedelta(hours=1)
BATCH_BYTES = 16 * 2**20  # of one Arrow batch from PostgreSQL

# Tables that a deployment may lack; an empty relation of the same columns stands in.
OPTIONAL_TABLES = ("provider_trace_metadata", "step_metrics")

_UNDEFINED = {"42P01": "table", "42703": "column"}


class Source:
    """The operational database, read in one read-only snapshot."""

    def __init__(self, url: str, connections: int = 1) -> None:
        """Open nothing yet.

        Args:
            url: libpq URL.
            connections: how many connections share the reading of an hour.
        """
        self._url = url
        self.connections = connections

    @contextmanager
    def session(self) -> Iterator["Session"]:
        """Hold one connection in a read-only transaction.

        Raises:
            SourceError: the database cannot be reached.
        """
        try:
            connection = dbapi.connect(self._url, autocommit=True)
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
            yield session

    @contextmanager
    def snapshot(self) -> Iterator["Snapshot"]:
        """Hold one snapshot of the database, seen alike by all its connections.

        Raises:
            SourceError: the database cannot be reached.
        """
        with ExitStack() as stack:
            sessions = [stack.enter_context(self.session()) for _ in range(self.connections)]
            leader, *followers = sessions
            exported = leader.rows("SELECT pg_export_snapshot()")[0]["pg_export_snapshot"]
            for follower in followers:
                follower.run(f"SET TRANSACTION SNAPSHOT '{exported}'")
            yield Snapshot(sessions)


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
                yield batch

    def table(self, sql: str) -> pa.Table:
        """Execute a query whose result is small."""
        with _translated():
            self._cursor.execute(sql)
            return self._cursor.fetch_arrow_table()

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """Execute a query whose result is small; one dict per row."""
        rows: list[dict[str, Any]] = self.table(sql).to_pylist()
        return rows


@dataclass(frozen=True)
class Ledger:
    """What the source holds of one hour; see ``sql/operational/ledger.sql``."""

    rows: int
    deleted: int
    newest_change: datetime | None
    source_hash: str


_EMPTY_LEDGER = Ledger(rows=0, deleted=0, newest_change=None, source_hash="0")


class Snapshot:
    """Sessions that see the same state of the operational database."""

    def __init__(self, sessions: Sequence[Session]) -> None:
        """Find out which optional tables this deployment has."""
        self._sessions = sessions
        self.leader = sessions[0]
        found = self.leader.rows(
            "SELECT "
            + ", ".join(f"to_regclass('{name}') IS NOT NULL AS {name}" for name in OPTIONAL_TABLES)
        )[0]
        shared = {
            name: read_sql(f"operational/absent/{name}.sql")
            for name in OPTIONAL_TABLES
            if not found[name]
        }
        # Not materialized, so that a statement reads only the columns and the hours it asks for.
        self._shared = "".join(f"{name} AS (\n{text}),\n" for name, text in shared.items()) + (
            f"all_traces AS NOT MATERIALIZED (\n{read_sql('operational/all_traces.sql')}),\n"
            f"superseded_steps AS (\n{read_sql('operational/superseded_steps.sql')})\n"
        )

    def statement(self, name: str) -> str:
        """Return one statement of ``sql/operational`` with the relations that all of them share."""
        return f"WITH {self._shared}{read_sql(f'operational/{name}.sql')}"

    def ledger(self, start: datetime, end: datetime) -> dict[datetime, Ledger]:
        """Return what the source holds of each hour of a window; hours without rows are absent."""
        self.leader.set(start=start.isoformat(), end=end.isoformat())
        return {
            row.pop("hour"): Ledger(**row) for row in self.leader.rows(self.statement("ledger"))
        }

    def folded(self, start: datetime, end: datetime) -> list[dict[str, Any]]:
        """Return the window's rows that give way to another row of the same id."""
        self.leader.set(start=start.isoformat(), end=end.isoformat())
        return self.leader.rows(self.statement("folded"))

    def write_traces(
        self,
        hour: datetime,
        folded: list[dict[str, Any]],
        billing: BillingMatcher,
        writers: Sequence[PartWriter],
    ) -> tuple[Tally, datetime | None, datetime | None]:
        """Stream the hour's traces through the transformation into part files.

        Each session reads one slice in a thread of its own: the drivers, Arrow and the codec all
        work outside the interpreter's lock.
        """
        losers = json.dumps([{"origin": row["origin"], "id": row["id"]} for row in folded])
        sql = self.statement("traces")

        def write_slice(slice_: int) -> tuple[Tally, list[datetime]]:
            session, writer = self._sessions[slice_], writers[slice_]
            session.set(
                start=hour.isoformat(),
                end=(hour + HOUR).isoformat(),
                slices=str(len(self._sessions)),
                slice=str(slice_),
                folded=losers,
            )
            tally = Tally()
            times: list[datetime] = []
            with writer:
                for source in session.batches(sql):
                    batch, counted = transform(source, billing)
                    writer.write(batch)
                    tally.add(counted)
                    times += [at for at in created_at_range(batch) if at is not None]
                    times = [min(times), max(times)] if times else []
            return tally, times

        total = Tally()
        all_times: list[datetime] = []
        with ThreadPoolExecutor(len(self._sessions)) as pool:
            for tally, times in pool.map(write_slice, range(len(self._sessions))):
                total.add(tally)
                all_times += times
        return total, min(all_times, default=None), max(all_times, default=None)


@dataclass(frozen=True)
class BillingCapture:
    """What one reading of the billing table gave."""

    history: pa.Table  # every version ever seen: rows of billing.HISTORY_SCHEMA
    new: int
    set_aside: tuple[str, ...]  # organizations of versions that say no organization or no date


def capture_billing(source: Source, store: BatchStore) -> BillingCapture:
    """Add the billing versions that are new to the history.

    Raises:
        SourceError: the billing table cannot be read as ``sql/operational/billing.sql`` says.
    """
    with store.extending_billing_history() as writer:
        with source.session() as session:
            versions = session.table(read_sql("operational/billing.sql"))
        unplaced = pc.or_(
            pc.is_null(versions.column("organization_id")),
            pc.is_null(versions.column("valid_from")),
        )
        placed = versions.filter(pc.invert(unplaced))
        new = unseen_versions(writer.history, placed, datetime.now(UTC))
        if new.num_rows:
            writer.append(new)
        aside = versions.filter(unplaced).column("organization_id").fill_null("")
        return BillingCapture(
            writer.history, new.num_rows, tuple(sorted(aside.unique().to_pylist()))
        )


def extract_hour(
    source: Source,
    store: BatchStore,
    history: pa.Table,
    hour: datetime,
    *,
    allow_empty: bool = False,
) -> Manifest:
    """Write one hour's batch: every trace of [hour, hour + 1 h), read in one snapshot.

    A batch that is not complete is described, but does not take the place of the current one.

    Args:
        source: the operational database.
        store: where the batch goes.
        history: the billing history to match against.
        hour: start of the hour.
        allow_empty: accept an hour without traces although the source has steps of that hour.

    Raises:
        SourceError: the source lacks a table or column, or has steps but no trace of the hour.
        BatchError: another process writes this hour.
    """
    billing = BillingMatcher(history)
    with store.writing(hour) as writer, source.snapshot() as snapshot:
        ledger = snapshot.ledger(hour, hour + HOUR).get(hour, _EMPTY_LEDGER)
        if not ledger.rows + ledger.deleted and store.manifest(hour) is None and not allow_empty:
            _refuse_lost_traces(snapshot, hour)
        folded = snapshot.folded(hour, hour + HOUR)
        part_writers = [writer.part_writer(stream) for stream in range(source.connections)]
        tally, earliest, latest = snapshot.write_traces(hour, folded, billing, part_writers)
        parts: list[Part] = [part for each in part_writers for part in each.parts]
        manifest = Manifest(
            hour=hour,
            batch_id=writer.batch_id,
            written_at=datetime.now(UTC),
            parts=tuple(parts),
            rows=tally.rows,
            distinct_ids=tally.distinct_ids,
            tokens=tally.tokens,
            content_hash=f"{tally.content_hash:016x}",
            min_created_at=earliest,
            max_created_at=latest,
            payload_bytes=tally.payload_bytes,
            source_rows=ledger.rows,
            source_deleted=ledger.deleted,
            source_folded=sum(not row["is_deleted"] for row in folded),
            source_hash=ledger.source_hash,
            source_newest_change=ledger.newest_change,
            unreadable=tally.unreadable,
            unreadable_ids=tuple(tally.unreadable_ids),
            billing_matches=tally.billing_matches,
            organizations_without_billing=len(tally.organizations_without_billing),
            organizations_without_billing_ids=tuple(
                sorted(tally.organizations_without_billing)[:EXAMPLES]
            ),
        )
        if manifest.is_complete:
            writer.publish(manifest)
    return manifest


def _refuse_lost_traces(snapshot: Snapshot, hour: datetime) -> None:
    """Refuse an hour in which the agent server worked but left no trace."""
    found = snapshot.leader.rows(snapshot.statement("unaccounted_steps"))[0]
    steps, pruned = (
        found["steps_without_trace"],
        found["has_traces"] and not found["has_earlier_traces"],
    )
    if steps and not pruned:
        raise SourceError(
            f"hour {hour:{HOUR_FORMAT}}: provider_traces and provider_trace_metadata are empty, "
            f"but {steps} steps of this hour have no trace. Does the agent server still write "
            "traces to this database? If these are lost for good, load the hour with the run "
            "config allow_empty: true"
        )


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
                f"{files_that_name(named[1])}: edit it there if yours is called otherwise"
            ) from None
        raise SourceError(f"the operational database: {message}") from None


def files_that_name(identifier: str) -> str:
    """Return the statements that read a table or column."""
    bare = identifier.rpartition(".")[2]
    files = [
        str(path.relative_to(ROOT.parent))
        for path in sorted((ROOT / "operational").glob("*.sql"))
        if re.search(rf"\b{re.escape(bare)}\b", re.sub(r"--.*", "", path.read_text()))
    ]
    return " and ".join(files) or "sql/operational"
