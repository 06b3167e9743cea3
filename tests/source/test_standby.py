"""A standby: an hour is read once the standby has replayed all of it."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from adbc_driver_postgresql import dbapi

from llm_trace_pipeline.batches.files import LocalFiles
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.demo import postgres as demo
from llm_trace_pipeline.errors import SourceError
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.source import standby
from llm_trace_pipeline.source.postgres import Source
from llm_trace_pipeline.source.snapshot import Census, Snapshot
from llm_trace_pipeline.source.standby import lag_of
from llm_trace_pipeline.upkeep.preflight_source import check_source
from tests.harness.operational import Operational, execute, trace
from tests.harness.pipeline import extract
from tests.harness.processes import wait_for
from tests.harness.rows import T0

UNTIL = T0 + HOUR


@pytest.fixture
def primary_and_standby() -> Iterator[tuple[Operational, str]]:
    """A server of its own, since a standby copies every database, and the URL of its standby."""
    folder = Path(tempfile.mkdtemp(prefix="llm-traces-standby-"))
    folder.chmod(0o755)
    first, second = folder / "first", folder / "second"
    try:
        primary = Operational(demo.embedded_postgres(first))
        second.mkdir()
        demo._make_folder(second / "postgres")  # noqa: SLF001 -- of the server's own account
        copy = f"-d {primary.url} -D {second / 'postgres'} -R -X stream -c fast --no-sync"
        status, output = demo._run("pg_basebackup", copy.split())  # noqa: SLF001 -- as above
        assert status == 0, output
        # The primary's, whose sockets lie in the copied folder.
        (second / "postgres" / ".s.PGSQL.5432.lock").unlink()
        yield primary, demo.embedded_postgres(second)
    finally:
        demo.leave_postgres(second)
        demo.leave_postgres(first)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_standby_that_lags_is_refused_until_it_has_caught_up(
    primary_and_standby: tuple[Operational, str],
) -> None:
    primary, url = primary_and_standby
    source = Source(url)
    wait_for(
        lambda: check_source(source, datetime.now(UTC)) == [], "the standby has all"
    )  # nothing is missing
    primary.execute("INSERT INTO steps (id) VALUES ('step-1')")
    wait_for(lambda: ask(url, "pg_last_xact_replay_timestamp()") is not None, "it replayed")
    ask(url, "pg_wal_replay_pause()")
    replayed_until = ask(url, "pg_last_xact_replay_timestamp()")
    until = replayed_until + HOUR
    assert check_source(source, until) == []  # an hour old, but all there is
    received = ask(url, "pg_last_wal_receive_lsn()::text")
    primary.execute("INSERT INTO steps (id) VALUES ('step-2')")
    wait_for(lambda: ask(url, "pg_last_wal_receive_lsn()::text") != received, "it received more")
    [problem] = check_source(source, until)
    assert "a standby, 1:00:00 behind the end of the last hour" in problem.message
    assert problem.is_fatal
    assert check_source(source, replayed_until) == []
    ask(url, problem.repair.partition(";")[0].removeprefix("SELECT "))
    wait_for(lambda: check_source(source, until) == [], "it caught up")


def test_an_hour_is_extracted_once_the_standby_has_all_of_it(
    primary_and_standby: tuple[Operational, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, url = primary_and_standby
    source, store = Source(url), BatchStore(LocalFiles(tmp_path))
    primary.insert("provider_traces", trace(id="early"))
    wait_for(lambda: ask(url, "count(*) FROM provider_traces") == 1, "the row is there")
    ask(url, "pg_wal_replay_pause()")
    received = ask(url, "pg_last_wal_receive_lsn()::text")
    primary.insert("provider_traces", trace(id="late"))
    wait_for(lambda: ask(url, "pg_last_wal_receive_lsn()::text") != received, "it received more")
    until = ask(url, "pg_last_xact_replay_timestamp()") + HOUR
    with monkeypatch.context() as context:
        context.setattr(standby, "WAIT_SECONDS", 0)
        with pytest.raises(
            SourceError, match=r"^the operational database is a standby, 1:00:00 behind .*; SELECT"
        ):
            standby.wait_until_replayed(source, until)
    waited = 0

    def resume(_: float) -> None:
        nonlocal waited
        waited += 1
        if waited == 3:
            ask(url, "pg_wal_replay_resume()")
            monkeypatch.undo()

    monkeypatch.setattr(time, "sleep", resume)
    standby.wait_until_replayed(source, until)
    assert waited == 3
    assert extract(source, store).rows == 2


@pytest.mark.parametrize("times", [1, standby.ATTEMPTS], ids=["once", "every time"])
def test_an_hour_is_read_anew_where_the_replay_cancelled_it(
    primary_and_standby: tuple[Operational, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    times: int,
) -> None:
    primary, url = primary_and_standby
    source, store = Source(url), BatchStore(LocalFiles(tmp_path))
    execute(url, "ALTER SYSTEM SET max_standby_streaming_delay = 0")
    ask(url, "pg_reload_conf()")
    primary.insert("provider_traces", *(trace(id=f"{number}") for number in range(9)))
    wait_for(lambda: ask(url, "count(*) FROM provider_traces") == 9, "the rows are there")
    census, cancelled = Snapshot.census, 0

    def conflicts() -> int:
        return int(ask(url, "sum(confl_snapshot)::int FROM pg_stat_database_conflicts"))

    def census_in_the_way(snapshot: Snapshot, hour: datetime) -> Census:
        nonlocal cancelled
        found = census(snapshot, hour)
        if cancelled < times:
            before = conflicts()
            primary.execute(f"DELETE FROM provider_traces WHERE id = '{cancelled}'")
            primary.execute("VACUUM provider_traces")
            wait_for(lambda: conflicts() > before, "the replay cancelled the snapshot")
            cancelled += 1
        return found

    monkeypatch.setattr(Snapshot, "census", census_in_the_way)
    if times == 1:
        assert extract(source, store).rows == 8
    else:
        with pytest.raises(SourceError, match=r"^.* conflict with recovery; set hot_standby"):
            extract(source, store)
    assert cancelled == times


def test_a_primary_is_not_waited_for(
    operational: Operational, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby, "WAIT_SECONDS", 0)
    standby.wait_until_replayed(Source(operational.url), datetime.now(UTC) + HOUR)


def ask(url: str, expression: str) -> Any:
    with dbapi.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT {expression}")
        row = cursor.fetchone()
        assert row
        return row[0]


@pytest.mark.parametrize(
    ("asked", "error", "reason"),
    [
        (
            "SELECT aurora_has_no_such()",
            standby.UnknownLagError,
            "cannot be told: .* does not exist",
        ),
        ("SELECT 1 FROM pg_stat_no_such", standby.UnknownLagError, "cannot be told"),
        ("SELECT 1 / 0", SourceError, "^the operational database: .*division by zero"),
    ],
)
def test_a_lag_that_could_not_be_asked_for_is_not_taken_for_none(
    operational: Operational,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    error: type[SourceError],
    reason: str,
) -> None:
    monkeypatch.setattr(standby, "read_sql", lambda _: asked)
    with Source(operational.url).session() as session:
        with pytest.raises(SourceError, match=reason) as caught:
            standby.ask_lag(session, UNTIL)
        assert type(caught.value) is error
        assert session.rows("SELECT 1 AS one") == [{"one": 1}]  # it can still be asked


@pytest.mark.parametrize(
    ("replayed_until", "is_caught_up", "lag"),
    [
        pytest.param(UNTIL, False, None, id="everything_of_the_hour_is_replayed"),
        pytest.param(UNTIL - HOUR * 9, True, None, id="the_primary_is_idle"),
        pytest.param(UNTIL - timedelta(minutes=7), False, "0:07:00 behind", id="it_lags"),
        pytest.param(None, False, "an unknown time behind", id="nothing_is_known"),
    ],
)
def test_a_standby_is_refused_where_the_hour_is_not_replayed(
    replayed_until: datetime | None, is_caught_up: bool, lag: str | None
) -> None:
    found = lag_of(
        until=UNTIL, replayed_until=replayed_until, is_caught_up=is_caught_up, is_paused=False
    )
    assert bool(found) == bool(lag)
    if found:
        assert f"a standby, {lag} the end of the last hour to load, 2026-03-01 10:00 UTC" in (
            found.message
        )
