"""The preflight on real engines: what is broken is named, and the repair it prints repairs it."""

import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from adbc_driver_postgresql import dbapi
from pydantic import SecretStr

from llm_trace_pipeline.batches.extract import extract_hour
from llm_trace_pipeline.batches.files import LocalFiles
from llm_trace_pipeline.batches.history import capture_billing
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.cli.__main__ import main
from llm_trace_pipeline.cli.preflight import check_before_first_load, check_both_ends
from llm_trace_pipeline.clickhouse.client import Database, connect
from llm_trace_pipeline.clickhouse.tables import define_table
from llm_trace_pipeline.demo import postgres as demo
from llm_trace_pipeline.errors import PipelineError, SourceError
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.source import standby
from llm_trace_pipeline.source.postgres import Source
from llm_trace_pipeline.source.standby import lag_of
from llm_trace_pipeline.sql import render
from llm_trace_pipeline.upkeep import preflight_target
from llm_trace_pipeline.upkeep.preflight_source import check_source
from llm_trace_pipeline.upkeep.preflight_target import check_target
from llm_trace_pipeline.upkeep.problems import Problem
from tests.harness.operational import Operational, trace
from tests.harness.processes import wait_for
from tests.harness.rows import T0

HOURS = [T0]
UNTIL = T0 + HOUR
TABLE = "`default`.`llm_traces`"
READ_TRACES = "sql/operational/all_traces.sql"
READ_STEPS = " and ".join(
    f"sql/operational/{name}.sql" for name in ("ledger", "traces", "unaccounted_steps")
)
INDEX = "CREATE INDEX CONCURRENTLY ON public.provider_traces (created_at);"


@pytest.fixture
def role(operational: Operational) -> Iterator[str]:
    """A role that may read every table."""
    name = f"reader_{uuid4().hex}"
    operational.execute(f"CREATE ROLE {name} LOGIN")
    operational.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}")
    yield name
    operational.execute(f"DROP OWNED BY {name}")
    operational.execute(f"DROP ROLE {name}")


def as_role(operational: Operational, role: str) -> Source:
    return Source(operational.url.replace("postgres@", f"{role}@", 1))


def only(problems: list[Problem]) -> Problem:
    assert len(problems) == 1, problems
    return problems[0]


@pytest.fixture
def target(tmp_path: Path) -> Settings:
    """Settings of a ClickHouse of its own."""
    return Settings.from_environment({"LLM_TRACES_STATE": str(tmp_path)})


@pytest.fixture
def table(target: Settings) -> str:
    """The table, as the pipeline makes it."""
    with connect(target) as database:
        define_table(database, "llm_traces")
    return TABLE


def make_table(settings: Settings, pattern: str, replacement: str) -> None:
    """Make the target with another definition."""
    text = render("clickhouse/llm_traces.sql", table=TABLE, engine="MergeTree")
    changed = re.sub(pattern, replacement, text)
    assert changed != text
    change(settings, changed)


def change(settings: Settings, *statements: str) -> None:
    with connect(settings) as database:
        for statement in statements:
            database.execute(statement)


# Source


def test_nothing_is_said_where_all_is_well(
    settings: Settings, table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert table
    check_before_first_load(settings, HOURS)
    assert capsys.readouterr().out == ""


def test_a_role_with_no_more_than_select_is_enough(operational: Operational, role: str) -> None:
    assert check_source(as_role(operational, role), UNTIL) == []


def test_missing_tables_are_all_named_at_once(source: Source, operational: Operational) -> None:
    operational.execute("DROP TABLE steps, provider_traces, organization_billing_details")
    operational.execute("DROP TABLE provider_trace_metadata, step_metrics")  # may be missing
    problems = check_source(source, UNTIL)
    assert {problem.message.split("table ")[1] for problem in problems} == {
        f"provider_traces, which is read by {READ_TRACES}",
        f"steps, which is read by {READ_STEPS}",
        "organization_billing_details, which is read by sql/operational/billing.sql",
    }
    assert all(problem.is_fatal for problem in problems)


def test_missing_columns_are_all_named_at_once(source: Source, operational: Operational) -> None:
    operational.execute("ALTER TABLE provider_traces DROP run_id, DROP llm_config")
    operational.execute("ALTER TABLE steps DROP reasoning_tokens")
    messages = {problem.message for problem in check_source(source, UNTIL)}
    assert messages == {
        f"public.provider_traces has no column llm_config, run_id, read by {READ_TRACES}",
        f"public.steps has no column reasoning_tokens, read by {READ_STEPS}",
    }


def test_a_column_that_no_statement_reads_may_be_missing(
    source: Source, operational: Operational
) -> None:
    operational.execute("ALTER TABLE provider_traces DROP compaction_settings, DROP source")
    operational.execute("ALTER TABLE steps DROP organization_id, DROP updated_at")
    assert check_source(source, UNTIL) == []


def test_a_missing_index_comes_with_the_statement_that_makes_it(
    source: Source, operational: Operational
) -> None:
    operational.execute("DROP INDEX ix_provider_traces_created_at")
    operational.execute("CREATE INDEX ON provider_traces (created_at) WHERE is_deleted")
    operational.execute("CREATE INDEX ON provider_traces (org_id, created_at)")
    problem = only(check_source(source, UNTIL))
    assert (problem.repair, problem.is_fatal) == (INDEX, False)
    operational.execute(problem.repair)
    assert check_source(source, UNTIL) == []


def test_a_partitioned_table_is_given_its_index_without_concurrently(
    source: Source, operational: Operational
) -> None:
    operational.execute("ALTER TABLE provider_traces RENAME TO old")
    operational.execute(
        "CREATE TABLE provider_traces (LIKE old INCLUDING DEFAULTS) PARTITION BY HASH (id)"
    )
    problem = only(check_source(source, UNTIL))
    assert problem.repair == "CREATE INDEX ON public.provider_traces (created_at);"
    operational.execute(problem.repair)
    assert check_source(source, UNTIL) == []


def test_a_view_needs_no_index(source: Source, operational: Operational) -> None:
    operational.execute("ALTER TABLE provider_traces RENAME TO stored")
    operational.execute("DROP INDEX ix_provider_traces_created_at")
    operational.execute("CREATE VIEW provider_traces AS SELECT * FROM stored")
    assert check_source(source, UNTIL) == []


def test_a_refused_table_comes_with_its_grant(operational: Operational, role: str) -> None:
    operational.execute(f"REVOKE SELECT ON steps FROM {role}")
    problem = only(check_source(as_role(operational, role), UNTIL))
    assert problem.is_fatal
    assert problem.repair == f"GRANT SELECT ON public.steps TO {role};"
    operational.execute(problem.repair)
    assert check_source(as_role(operational, role), UNTIL) == []


def test_tables_off_the_search_path_come_with_the_statements_that_show_them(
    operational: Operational, role: str
) -> None:
    operational.execute('CREATE SCHEMA "Letta"')
    for name in ("provider_traces", "steps", "organization_billing_details"):
        operational.execute(f'ALTER TABLE {name} SET SCHEMA "Letta"')
    problems = check_source(as_role(operational, role), UNTIL)
    assert len(problems) == 3
    repair = {problem.repair for problem in problems}.pop()
    assert f'GRANT USAGE ON SCHEMA "Letta" TO {role};' in repair
    for statement in repair.split(";")[:2]:
        operational.execute(statement)
    assert check_source(as_role(operational, role), UNTIL) == []


@pytest.mark.parametrize(
    ("change_", "message"),
    [
        pytest.param(
            "RENAME plan_type TO plan",
            "public.organization_billing_details has no column plan_type, "
            "read by sql/operational/billing.sql",
            id="a_column_has_another_name",
        ),
        pytest.param(
            "ALTER updated_at TYPE timestamp, ALTER created_at TYPE timestamp",
            "sql/operational/billing.sql does not return valid_from timestamptz",
            id="a_time_has_no_zone",
        ),
    ],
)
def test_a_billing_mapping_that_does_not_fit_is_named(
    source: Source, operational: Operational, change_: str, message: str
) -> None:
    operational.execute(f"ALTER TABLE organization_billing_details {change_}")
    operational.execute(
        "INSERT INTO organization_billing_details (organization_id) VALUES ('org-1'), ('org-2')"
    )
    problem = only(check_source(source, UNTIL))
    assert (problem.message, problem.is_fatal) == (message, True)


def test_billing_versions_that_loads_set_aside_are_counted(
    source: Source, operational: Operational
) -> None:
    operational.execute(
        "ALTER TABLE organization_billing_details "
        "ALTER created_at DROP NOT NULL, ALTER created_at DROP DEFAULT"
    )
    operational.execute(
        "INSERT INTO organization_billing_details (organization_id) VALUES ('org-1'), ('org-2')"
    )
    problem = only(check_source(source, UNTIL))
    assert (problem.message, problem.is_fatal) == (
        (
            "sql/operational/billing.sql returns 2 rows without organization_id or valid_from; "
            "loads leave them aside"
        ),
        False,
    )


def test_a_database_that_is_not_utf8_is_refused(operational: Operational) -> None:
    name = f"latin_{uuid4().hex}"
    operational.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0")
    latin = Operational(re.sub(r"/test_\w+", f"/{name}", operational.url))
    problem = only(check_source(Source(latin.url), UNTIL))
    assert "LATIN1" in problem.message
    assert problem.is_fatal


@pytest.mark.parametrize(
    "url",
    ["postgresql://reader:s3cret@127.0.0.1:1/letta", "postgres//reader:s3cret@127.0.0.1/letta"],
)
def test_a_database_that_cannot_be_reached_is_named_without_its_password(url: str) -> None:
    problem = only(check_source(Source(url), UNTIL))
    assert "OPERATIONAL_DATABASE_URL" in problem.message
    assert problem.is_fatal
    assert "s3cret" not in str(problem)


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
        status, output = demo._run("pg_basebackup", copy.split())  # noqa: SLF001
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
    problem = only(check_source(source, until))
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
    assert extract_hour(source, store, capture_billing(source, store.files).history, T0).rows == 2


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


# Target


def test_a_table_from_before_billing_is_fine(target: Settings, table: str) -> None:
    added = "billing_plan_type billing_cost_source billing_customer_id billing_match payload_hash"
    change(
        target,
        *(f"ALTER TABLE {table} DROP COLUMN {name}" for name in added.split()),
        f"ALTER TABLE {table} MODIFY COMMENT 'Made by somebody else.'",
    )
    assert check_target(target) == []


def test_missing_columns_come_with_the_statement_that_adds_them(
    target: Settings, table: str
) -> None:
    change(
        target,
        f"ALTER TABLE {table} DROP COLUMN is_byok, DROP COLUMN cached_input_tokens",
    )
    problem = only(check_target(target))
    assert problem.message.endswith("has no column is_byok, cached_input_tokens")
    assert problem.is_fatal
    change(target, problem.repair)
    assert check_target(target) == []
    with connect(target) as database:
        assert database.rows(
            "SELECT name, type FROM system.columns WHERE table = 'llm_traces' "
            "AND position IN (12, 18) ORDER BY position"
        ) == [
            {"name": "is_byok", "type": "UInt8"},
            {"name": "cached_input_tokens", "type": "Nullable(UInt64)"},
        ]


@pytest.mark.parametrize(
    ("column", "found", "wanted"),
    [
        ("latency_ms", "UInt32", "UInt64"),
        ("model", "FixedString(64)", "String"),
        ("reasoning_tokens", "UInt64", "Nullable(UInt64)"),
    ],
)
def test_a_wrong_type_comes_with_the_statement_that_mends_it(
    target: Settings, column: str, found: str, wanted: str
) -> None:
    make_table(target, rf"(?m)(?<=^    {column} )\S+", found)
    problem = only(check_target(target))
    assert problem.message == f"{TABLE}: column {column} is {found}, not {wanted}"
    assert problem.is_fatal
    change(target, problem.repair)
    assert check_target(target) == []


@pytest.mark.parametrize(
    ("column", "found"),
    [
        ("model", "String"),
        ("agent_id", "LowCardinality(String)"),
        ("agent_tags", "Array(LowCardinality(String))"),
        ("error_type", "LowCardinality(Nullable(String))"),
        ("is_error", "Nullable(UInt8)"),
        ("created_at", "DateTime64(6, 'Asia/Tokyo')"),
        ("created_at", "DateTime64(6)"),
    ],
)
def test_a_type_that_holds_the_same_values_is_fine(
    target: Settings, column: str, found: str
) -> None:
    make_table(target, rf"(?m)(?<=^    {column} )(DateTime64\(.*?\)|\S+)", found)
    assert check_target(target) == []


def test_a_wrong_type_in_the_sort_key_takes_a_new_table(target: Settings) -> None:
    make_table(target, r"DateTime64\(6", "DateTime64(3")
    problem = only(check_target(target))
    assert "created_at is DateTime64(3, 'UTC'), not DateTime64(6, 'UTC')" in problem.message
    change(target, problem.repair.partition(";")[0])
    assert check_target(target) == []


def test_another_partition_key_is_kept_and_its_cost_is_told(target: Settings) -> None:
    make_table(target, r"toDate\(", "toYYYYMM(")
    problem = only(check_target(target))
    assert "partition key (toYYYYMM(created_at)), not (toDate(created_at))" in problem.message
    assert "every hour loaded clones and verifies its partition" in problem.message
    assert not problem.is_fatal


def test_another_sorting_key_is_kept_and_its_cost_is_told(target: Settings) -> None:
    make_table(target, r"ORDER BY \(organization_id, ", "ORDER BY (")
    problem = only(check_target(target))
    assert "sorting key (created_at, id), not (organization_id, created_at, id)" in problem.message
    assert not problem.is_fatal


def test_a_table_that_is_no_mergetree_is_refused(target: Settings, table: str) -> None:
    change(
        target,
        f"RENAME TABLE {table} TO default.stored",
        f"CREATE VIEW {table} AS SELECT * FROM default.stored",
    )
    problem = only(check_target(target))
    assert "is a View, not a MergeTree" in problem.message
    assert problem.is_fatal


def test_a_table_that_forbids_hours_to_be_replaced_comes_with_the_repair(
    target: Settings, table: str
) -> None:
    mode = "lightweight_mutation_projection_mode"
    change(target, f"ALTER TABLE {table} MODIFY SETTING {mode} = 'throw'")
    problem = only(check_target(target))
    assert not problem.is_fatal
    change(target, problem.repair)
    assert check_target(target) == []


@pytest.mark.parametrize(
    ("version", "is_warned_of"), [((26, 6), False), ((26, 5), True), ((25, 12), True)]
)
def test_an_old_clickhouse_is_warned_of(
    target: Settings,
    monkeypatch: pytest.MonkeyPatch,
    version: tuple[int, int],
    is_warned_of: bool,
) -> None:
    monkeypatch.setattr(Database, "version", version)
    problems = check_target(target)
    assert ["107605" in problem.message for problem in problems] == [True] * is_warned_of
    assert not any(problem.is_fatal for problem in problems)


def test_a_missing_grant_comes_with_the_statement_that_gives_it(
    target: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The embedded user has every privilege that a load needs; this is one that it lacks.
    monkeypatch.setattr(
        preflight_target, "needed_grants", lambda _: ["SELECT ON *.*", "ROLE ADMIN ON *.*"]
    )
    problem = only(check_target(target))
    assert problem.is_fatal
    assert problem.repair == "GRANT ROLE ADMIN ON *.* TO `default`;"


def test_a_database_of_another_name_needs_to_be_made(target: Settings) -> None:
    assert check_target(target.model_copy(update={"clickhouse_database": "tra`ces"})) == []


class Refusing(BaseHTTPRequestHandler):
    """A ClickHouse server that knows nobody."""

    def do_POST(self) -> None:
        body = b"Code: 516. DB::Exception: u: Authentication failed. (AUTHENTICATION_FAILED)"
        self.send_response(403)
        self.send_header("X-ClickHouse-Exception-Code", "516")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST  # noqa: N815 -- the base class's name

    def log_message(self, *_: Any) -> None:
        pass


def test_a_wrong_password_and_a_wrong_port_of_clickhouse_are_told_apart(
    target: Settings,
) -> None:
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        answers = [
            only(
                check_target(
                    target.model_copy(
                        update={
                            "clickhouse_endpoint": f"http://127.0.0.1:{port}",
                            "clickhouse_password": SecretStr("s3cret"),
                        }
                    )
                )
            )
            for port in (server.server_port, 1)
        ]
        server.shutdown()
    assert all(problem.is_fatal and "s3cret" not in str(problem) for problem in answers)
    assert ["CLICKHOUSE_PASSWORD" in problem.repair for problem in answers] == [True, False]
    assert ["CLICKHOUSE_ENDPOINT" in problem.repair for problem in answers] == [False, True]


# Commands


def test_the_command_prints_what_is_fine_what_is_advised_and_fails_with_the_rest(
    settings: Settings,
    operational: Operational,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert settings
    check_both_ends()
    assert capsys.readouterr().out == "operational database: OK\nClickHouse: OK\n"
    operational.execute("DROP INDEX ix_provider_traces_created_at")
    check_both_ends()
    said = capsys.readouterr().out
    assert said.startswith("operational database: see below\nClickHouse: OK\nwarning: ")
    assert said.endswith(f"repair: {INDEX}\n")
    operational.execute("DROP TABLE steps")
    monkeypatch.setattr("sys.argv", ["llm-traces", "preflight"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert INDEX in captured.out
    assert captured.err.startswith("error: the operational database has no table steps")


def test_the_first_load_is_stopped_by_everything_fatal_at_both_ends(
    settings: Settings, table: str, operational: Operational, capsys: pytest.CaptureFixture[str]
) -> None:
    operational.execute("DROP INDEX ix_provider_traces_created_at")
    operational.execute("DROP TABLE steps")
    change(settings, f"ALTER TABLE {table} DROP COLUMN is_error")
    with pytest.raises(PipelineError) as stopped:
        check_before_first_load(settings, HOURS)
    assert str(stopped.value).count("error: ") == 2
    assert "no table steps" in str(stopped.value)
    assert "ADD COLUMN `is_error` UInt8 AFTER `latency_ms`;" in str(stopped.value)
    assert capsys.readouterr().out.count(INDEX) == 1


def test_the_demo_is_checked_without_being_made(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPERATIONAL_DATABASE_URL")
    check_both_ends()
    assert "make run" in capsys.readouterr().out
    assert not (settings.state_dir / "postgres").exists()
