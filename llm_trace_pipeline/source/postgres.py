"""The operational PostgreSQL, of which every extraction reads one read-only snapshot."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from llm_trace_pipeline.errors import SourceError
from llm_trace_pipeline.hours import Window
from llm_trace_pipeline.source.session import Session, open_session
from llm_trace_pipeline.source.snapshot import OPTIONAL_TABLES, Place, Snapshot
from llm_trace_pipeline.sql import read_sql

# A table that is missing, is of a kind without locks, or may not be read: the statements that read
# it tell. A lock that another statement holds for too long is none of these.
_UNLOCKABLE = {"42P01", "42809", "42501"}
_SERVER_ZONE = "or with the zone that the agent server writes in"


class Source:
    """The operational database."""

    def __init__(self, url: str, connections: int = 1) -> None:
        """Open nothing yet.

        Args:
            url: libpq URL.
            connections: how many connections share the reading of an hour.
        """
        self.url = url
        self.connections = connections

    def session(self) -> AbstractContextManager[Session]:
        """Hold one connection in a read-only transaction; see ``open_session``."""
        return open_session(self.url)

    @contextmanager
    def snapshot(
        self,
        after: datetime | None = None,  # noqa: ARG002 -- a snapshot that is taken now is later
    ) -> Iterator[Snapshot]:
        """Hold one snapshot of the database, seen alike by all its connections.

        Args:
            after: the snapshot must be of a later moment.

        Raises:
            SourceError: the database cannot be reached, or a column would be misread.
        """
        with self.leader() as leader:
            yield Snapshot(self.session, leader)

    @contextmanager
    def leader(self) -> Iterator[Session]:
        """Hold the connection whose snapshot others share.

        Raises:
            SourceError: the database cannot be reached, or a column would be misread.
        """
        with self.session() as leader:
            _hold_tables(leader)
            _refuse_unfit_columns(leader)
            yield leader


@dataclass(frozen=True)
class UnfitColumn:
    """A column whose type would be misread, and the repair."""

    message: str
    repair: str


def unfit_columns(session: Session) -> list[UnfitColumn]:
    """Return the columns whose type would be misread without a word.

    Raises:
        SourceError: the database cannot be asked.
    """
    return [
        _zoneless(row["table"], is_view=row["is_view"])
        if row["column"] == "created_at"
        else UnfitColumn(
            f"{row['table']}: {row['column']} is {row['type']}, and loads read json, jsonb or text",
            f"have a view, which the role's search path finds first, return "
            f"to_json({row['column']}) AS {row['column']}",
        )
        for row in session.rows(read_sql("preflight/unfit_columns.sql"))
    ]


def _zoneless(table: str, *, is_view: bool) -> UnfitColumn:
    # A guess would move rows to other hours.
    return UnfitColumn(
        f"{table}: created_at has no time zone, so nobody knows which hour a row is of",
        f"have the view return created_at AT TIME ZONE 'UTC' AS created_at, {_SERVER_ZONE}"
        if is_view
        else f"ALTER TABLE {table} ALTER created_at TYPE timestamptz "
        f"USING created_at AT TIME ZONE 'UTC'; {_SERVER_ZONE}",
    )


def _hold_tables(session: Session) -> None:
    """Lock the tables against being rewritten, before the first query takes the snapshot.

    A table that an ALTER TABLE or a TRUNCATE rewrites is empty for every snapshot taken before. A
    lock keeps such a statement waiting, and asks for no more than SELECT.
    """
    for table in ("provider_traces", "steps", *OPTIONAL_TABLES):
        try:
            with session.savepoint():
                session.run(f"LOCK TABLE {table} IN ACCESS SHARE MODE")
        except SourceError as error:
            if error.sqlstate not in _UNLOCKABLE:
                raise


def _refuse_unfit_columns(session: Session) -> None:
    if found := unfit_columns(session):
        raise SourceError(f"{found[0].message}; {found[0].repair}")


@dataclass(frozen=True)
class _Scan:
    """Where the hours of a run lie, as one connection sees it."""

    at: datetime  # before the snapshot was taken
    leader: Session
    places: dict[datetime, Place]


class SourceOfHours(Source):
    """The operational database, for a run that reads contiguous hours one after the other.

    Where no index finds an hour, reading an hour scans the whole table several times. There, one
    scan tells where in the table the hours lie. The places hold in the snapshot of that scan, so
    all hours are read in it. Only one connection stays open between two hours.
    """

    def __init__(self, source: Source, window: Window) -> None:
        """Open nothing yet."""
        super().__init__(source.url, source.connections)
        self._window = window
        self._scan: _Scan | None = None
        self._needs_scan = True
        self._stack = ExitStack()

    @contextmanager
    def snapshot(self, after: datetime | None = None) -> Iterator[Snapshot]:
        """Hold the run's snapshot, or one of its own for an hour that asks for a later one."""
        if self._needs_scan and self._scan is None:
            self._scan = self._scan_table()
        if self._scan is None or (after and after >= self._scan.at):
            with super().snapshot() as own:
                yield own
            return
        try:
            yield Snapshot(self.session, self._scan.leader, self._scan.places)
        except BaseException:  # an hour that fails takes no other with it: the next one scans anew
            self.close()
            raise

    def _scan_table(self) -> _Scan | None:
        at = datetime.now(UTC)
        with ExitStack() as stack:
            leader = stack.enter_context(self.leader())
            leader.set(tables='{"provider_traces": []}')
            [table] = leader.rows(read_sql("preflight/tables.sql"))
            # A view has no places; a table that is missing is for the statements to name.
            self._needs_scan = table["kind"] in ("r", "p") and not table["has_index"]
            if not self._needs_scan:
                return None
            rows = Snapshot(self.session, leader).rows_in("places", self._window)
            self._stack = stack.pop_all()
        return _Scan(at, leader, {row["hour"]: (row["first"], row["last"]) for row in rows})

    def close(self) -> None:
        """Give up the shared snapshot."""
        self._scan = None
        self._stack.close()
