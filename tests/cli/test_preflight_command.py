"""The command that checks both ends, and the first load, which does so by itself."""

import pytest

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.cli.__main__ import main
from llm_trace_pipeline.cli.preflight import check_before_first_load, check_both_ends
from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.clickhouse.tables import define_table
from llm_trace_pipeline.demo.postgres import embedded_postgres, leave_postgres
from llm_trace_pipeline.errors import PipelineError
from llm_trace_pipeline.hours import key_of
from llm_trace_pipeline.settings import Settings
from tests.harness.demo import passable_folder
from tests.harness.operational import CREATE_INDEX, Operational
from tests.harness.rows import T0, make_rows, publish
from tests.harness.warehouse import change

TABLE = "`default`.`llm_traces`"


def make_table(settings: Settings) -> None:
    """Make the table as the pipeline makes it."""
    with connect(settings) as database:
        define_table(database, "llm_traces")


def test_nothing_is_said_where_all_is_well(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    make_table(settings)
    check_before_first_load(settings, [T0])
    assert capsys.readouterr().out == ""


def test_the_command_prints_what_is_fine_what_is_advised_and_fails_with_the_rest(
    settings: Settings,
    operational: Operational,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert settings
    check_both_ends()
    assert (
        capsys.readouterr().out == "operational database: OK\nClickHouse: OK, the embedded engine\n"
    )
    operational.execute("DROP INDEX ix_provider_traces_created_at")
    check_both_ends()
    said = capsys.readouterr().out
    assert said.startswith(
        "operational database: see below\nClickHouse: OK, the embedded engine\nwarning: "
    )
    assert said.endswith(f"repair: {CREATE_INDEX}\n")
    operational.execute("DROP TABLE steps")
    monkeypatch.setattr("sys.argv", ["llm-traces", "preflight"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert CREATE_INDEX in captured.out
    assert captured.err.startswith("error: the operational database has no table steps")


def test_the_first_load_is_stopped_by_everything_fatal_at_both_ends(
    settings: Settings, operational: Operational, capsys: pytest.CaptureFixture[str]
) -> None:
    make_table(settings)
    operational.execute("DROP INDEX ix_provider_traces_created_at")
    operational.execute("DROP TABLE steps")
    change(settings, f"ALTER TABLE {TABLE} DROP COLUMN is_error")
    with pytest.raises(PipelineError) as stopped:
        check_before_first_load(settings, [T0])
    assert str(stopped.value).count("error: ") == 2
    assert "no table steps" in str(stopped.value)
    assert "ADD COLUMN `is_error` UInt8 AFTER `latency_ms`;" in str(stopped.value)
    assert capsys.readouterr().out.count(CREATE_INDEX) == 1


def test_a_restore_is_stopped_before_it_writes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_table(settings)
    change(settings, f"ALTER TABLE {TABLE} DROP COLUMN is_error")
    assert publish(BatchStore.of(settings), T0, make_rows(T0, 3))
    monkeypatch.setattr("sys.argv", ["llm-traces", "restore", key_of(T0), key_of(T0)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == "1 of 1 hours have a batch\n"
    assert said.err.startswith("error: ")
    assert "ADD COLUMN `is_error` UInt8 AFTER `latency_ms`;" in said.err
    with connect(settings) as database:
        assert database.rows(f"SELECT id FROM {TABLE}") == []


def test_the_demo_that_was_made_is_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPERATIONAL_DATABASE_URL", raising=False)
    with passable_folder("preflight") as state:
        monkeypatch.setenv("LLM_TRACES_STATE", str(state))
        try:
            demo = Operational(embedded_postgres(state))
            check_both_ends()
            assert (
                capsys.readouterr().out
                == "operational database: OK\nClickHouse: OK, the embedded engine\n"
            )
            demo.execute("DROP TABLE steps")
            with pytest.raises(PipelineError, match="has no table steps"):
                check_both_ends()
        finally:
            leave_postgres(state)


def test_the_demo_is_checked_without_being_made(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPERATIONAL_DATABASE_URL")
    check_both_ends()
    assert "make run" in capsys.readouterr().out
    assert not (settings.state_dir / "postgres").exists()
