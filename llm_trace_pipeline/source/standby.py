"""A standby: rows that it has not replayed yet would be missing, and its replay cancels queries."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from llm_trace_pipeline.errors import RecoveryConflictError, SourceError
from llm_trace_pipeline.source.postgres import Source
from llm_trace_pipeline.source.session import Session
from llm_trace_pipeline.sql import read_sql

WAIT_SECONDS = 600.0
ATTEMPTS = 4  # at what the replay cancelled

_POLL_SECONDS = 1.0
_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lag:
    """How far a standby is behind the primary, and the repair."""

    message: str
    repair: str


def lag_of(
    *, until: datetime, replayed_until: datetime | None, is_caught_up: bool, is_paused: bool
) -> Lag | None:
    """Return the lag of a standby; None: it has replayed everything before ``until``.

    Args:
        until: the end of the last hour to load.
        replayed_until: when the last transaction that was replayed was committed.
        is_caught_up: whether everything that came over a living connection is replayed.
        is_paused: whether somebody has stopped the replay.
    """
    if is_caught_up or (replayed_until and replayed_until >= until):
        return None
    lag = f"{until - replayed_until} behind" if replayed_until else "an unknown time behind"
    repair = "SELECT pg_wal_replay_resume(); then wait" if is_paused else "wait"
    return Lag(
        f"the operational database is a standby, {lag} the end of the last hour to load, "
        f"{until:%Y-%m-%d %H:%M} UTC: what it has not replayed yet would be missing",
        f"{repair} until SELECT pg_last_xact_replay_timestamp(); is later, or set "
        "OPERATIONAL_DATABASE_URL to the primary",
    )


# No such function, no such relation, not supported. No other failure says anything about the lag.
_NOT_THERE = frozenset({"42883", "42P01", "0A000"})


class UnknownLagError(SourceError):
    """The server cannot tell how far a standby is; Amazon Aurora is such a server."""


def ask_lag(session: Session, until: datetime) -> Lag | None:
    """Return the lag of a standby; None: it has replayed everything before ``until``.

    Raises:
        UnknownLagError: this server cannot tell.
        SourceError: the server cannot be asked.
    """
    try:
        with session.savepoint():
            [state] = session.rows(read_sql("preflight/standby.sql"))
    except SourceError as error:
        if error.sqlstate in _NOT_THERE:
            raise UnknownLagError(f"whether this standby lags cannot be told: {error}") from None
        raise
    return lag_of(until=until, **state)


def wait_until_replayed(source: Source, until: datetime) -> None:
    """Wait until a standby has replayed everything before some time. A primary needs no wait.

    Raises:
        SourceError: the standby still lags after ``WAIT_SECONDS``, or cannot be asked.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    while lag := _lag(source, until):
        if time.monotonic() >= deadline:
            raise SourceError(f"{lag.message}; {lag.repair}")
        _log.info("%s; waiting for it, %.0f s at most", lag.message, deadline - time.monotonic())
        time.sleep(_POLL_SECONDS)  # a standby tells nobody what it has replayed


def _lag(source: Source, until: datetime) -> Lag | None:
    # Every look has a session of its own: a transaction that stays open can hold up the replay.
    with source.session() as session:
        [server] = session.rows("SELECT pg_is_in_recovery() AS is_standby")
        try:
            return ask_lag(session, until) if server["is_standby"] else None
        except UnknownLagError as error:  # make preflight says so too
            _log.info("%s", error)
            return None


def retried(read: Callable[[], _Result]) -> _Result:
    """Read from the source, anew where the replay of a standby cancels it, and return the result.

    Args:
        read: begins with a snapshot of its own, which does not see what was in the replay's way.

    Raises:
        RecoveryConflictError: it was cancelled every time.
        SourceError: anything else that the database says.
    """
    for attempt in range(1, ATTEMPTS):
        try:
            return read()
        except RecoveryConflictError as error:
            _log.info("%s; attempt %d of %d", error, attempt, ATTEMPTS)
    return read()
