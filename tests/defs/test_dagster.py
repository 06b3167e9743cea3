"""The assets under Dagster: one materialization per hour, checks, and what a failure leaves."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetKey,
    DagsterEventType,
    ExecuteInProcessResult,
)

from llm_trace_pipeline.batches.extract import extract_hour
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.clickhouse.loads import Loaded, Loader
from llm_trace_pipeline.clickhouse.tables import has_table
from llm_trace_pipeline.definitions import defs
from llm_trace_pipeline.defs import assets
from llm_trace_pipeline.defs.runs import tags_of
from llm_trace_pipeline.errors import ClickHouseError
from llm_trace_pipeline.hours import HOUR, Window, key_of
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.source.postgres import Source
from tests.harness.jobs import Jobs
from tests.harness.operational import Operational, trace
from tests.harness.rows import T0


def evaluations(result: ExecuteInProcessResult, check: str) -> dict[str | None, bool]:
    """Return a check's outcome for each hour, and None: for all of them."""
    return {
        evaluation.partition: evaluation.passed
        for evaluation in result.get_asset_check_evaluations()
        if evaluation.check_name == check
    }


def failure_of(result: ExecuteInProcessResult) -> Any:
    """Return what the first step that failed says."""
    failed = result.filter_events(lambda event: event.is_step_failure)[0]
    return failed.step_failure_data.user_failure_data


def test_a_run_reads_nothing_before_a_standby_has_all_of_its_hours(
    operational: Operational,
    store: BatchStore,
    jobs: Jobs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wait(source: Source, until: datetime) -> None:
        assert source
        assert until == T0 + 2 * HOUR
        operational.insert("provider_traces", trace(T0, id="a"), trace(T0 + HOUR, id="b"))

    monkeypatch.setattr(assets, "wait_until_replayed", wait)
    assert jobs.load(T0, T0 + HOUR).success
    found = [store.manifest(hour) for hour in (T0, T0 + HOUR)]
    assert [manifest.rows for manifest in found if manifest] == [1, 1]


@pytest.mark.parametrize("has_index", [True, False], ids=["indexed", "without an index"])
def test_each_hour_of_a_run_is_one_materialization(
    operational: Operational,
    jobs: Jobs,
    has_index: bool,
) -> None:
    if not has_index:
        operational.execute("DROP INDEX ix_provider_traces_created_at")
    hours = [T0, T0 + HOUR, T0 + 2 * HOUR]
    operational.insert(
        "provider_traces",
        trace(hours[0], id="a"),
        trace(hours[0], id="b"),
        trace(hours[2], id="c", response_json="[" * 2000 + "]" * 2000),
    )
    result = jobs.load(hours[0], hours[-1])
    assert result.success
    for asset in ("trace_batches", "llm_traces"):
        found = jobs.materializations(asset)
        assert [partition for partition, _ in found] == [key_of(hour) for hour in hours]
        figures = [metadata for _, metadata in found]
        assert [each["rows"].value for each in figures] == [2, 0, 1]
        assert [each["rows unreadable"].value for each in figures] == [0, 0, 1]
        assert figures[2]["rows unreadable, such as"].value == ["c"]
        assert figures[0]["total tokens"].value == 30
        assert figures[0]["billing matches"].value == {"none": 2}
        assert figures[0]["created_at, first"].value == T0.timestamp()
        for each in (figures[0], figures[2]):
            for name in ("bytes", "parts", "bytes of payload"):
                assert each[name].value > 0
    rolled_up = jobs.materializations("llm_usage_hourly")
    assert [partition for partition, _ in rolled_up] == [key_of(hour) for hour in hours]
    assert [metadata["calls"].value for _, metadata in rolled_up] == [2, 0, 1]
    for check in (
        *("rows_match_source", "rows_match_batch", "ids_are_unique", "rollup_matches_traces"),
    ):
        assert evaluations(result, check) == dict.fromkeys([*map(key_of, hours), None], True)
    assert evaluations(result, "billing_is_known") == {
        key_of(hours[0]): False,
        key_of(hours[1]): True,
        key_of(hours[2]): False,
        None: False,
    }
    assert jobs.rows() == [{"id": "a"}, {"id": "b"}, {"id": "c"}]


def test_calls_without_usage_are_warned_of_apart_from_models_without_a_price(
    operational: Operational, jobs: Jobs
) -> None:
    answer = '{"model": "gpt-4o", "choices": [{"message": {"role": "assistant", "content": "ok"}}]}'
    self_hosted = '{"model": "own", "model_endpoint_type": "vllm"}'
    operational.insert(
        "provider_traces",
        trace(id="a"),
        trace(id="b", response_json=answer),
        trace(id="c", response_json='{"error": {"type": "rate_limit_error", "message": "no"}}'),
        trace(T0 + HOUR, id="d", llm_config=self_hosted),
        trace(T0 + 2 * HOUR, id="e"),
    )
    result = jobs.load(T0, T0 + 2 * HOUR)
    assert result.success
    hours = [key_of(T0 + number * HOUR) for number in range(3)]
    without = {
        "usage_is_known": [False, True, True],
        "prices_are_known": [True, False, True],
    }
    for check, passed in without.items():
        assert evaluations(result, check) == dict(
            zip((*hours, None), (*passed, False), strict=True)
        )
    [found] = [
        evaluation.metadata
        for evaluation in result.get_asset_check_evaluations()
        if (evaluation.check_name, evaluation.partition) == ("usage_is_known", hours[0])
    ]
    assert found["calls without usage"].value == 1
    assert found["models, such as"].value == ["openai/gpt-4o"]
    for asset in ("trace_batches", "llm_usage_hourly"):
        figures = [metadata for _, metadata in jobs.materializations(asset)]
        assert [each["calls without usage"].value for each in figures] == [1, 0, 0]
        assert [each["calls without price"].value for each in figures] == [0, 1, 0]


def test_a_second_run_changes_nothing(operational: Operational, jobs: Jobs) -> None:
    operational.insert("provider_traces", *(trace(T0 + n * HOUR, id=f"{n}") for n in range(3)))
    assert jobs.load(T0, T0 + 2 * HOUR).success
    first = jobs.rows("*")
    assert jobs.load(T0, T0 + 2 * HOUR).success
    assert jobs.rows("*") == first


def test_an_hour_that_fails_leaves_the_others_done(operational: Operational, jobs: Jobs) -> None:
    operational.insert(
        "provider_traces", trace(T0 - HOUR, id="before"), trace(T0 + 2 * HOUR, id="after")
    )
    # A step that nobody accounts for, in the middle hour.
    operational.insert("steps", {"id": "step-1", "created_at": T0 + HOUR * 1.5})
    result = jobs.load(T0, T0 + 2 * HOUR)
    assert not result.success
    done = jobs.materializations("trace_batches")
    assert [partition for partition, _ in done] == [key_of(T0), key_of(T0 + 2 * HOUR)]
    assert [metadata["rows"].value for _, metadata in done] == [0, 1]
    failure = failure_of(result).description
    assert failure.startswith("1 of 3 hours failed")
    assert f"hour {key_of(T0 + HOUR)}: " in failure
    assert "accept_loss: true" in failure

    accepted = {"ops": {"trace_batches": {"config": {"accept_loss": True}}}}
    assert jobs.load(T0, T0 + 2 * HOUR, run_config=accepted).success


def test_what_fails_several_hours_is_said_once_and_names_them(
    operational: Operational,
    jobs: Jobs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hours = [T0 + number * HOUR for number in range(6)]
    operational.insert("provider_traces", *(trace(hour) for hour in hours))

    def refuse(_: Loader, of: Sequence[datetime], *__: Any, **___: Any) -> list[Loaded]:
        if of[0] in (hours[3], hours[5]):
            raise ClickHouseError(f"hour {key_of(of[0])}: is odd")
        raise ClickHouseError("ClickHouse: the disk is full", "free it")

    monkeypatch.setattr(Loader, "load", refuse)
    failed = failure_of(jobs.load(hours[0], hours[-1]))
    reasons = [
        (
            "hours 2026-03-01-09:00 to 2026-03-01-11:00, 2026-03-01-13:00: "
            "ClickHouse: the disk is full; free it"
        ),
        "hour 2026-03-01-12:00: is odd",
        "hour 2026-03-01-14:00: is odd",
    ]
    assert failed.description.splitlines()[1:] == reasons
    assert failed.metadata["failed hours"].value == [key_of(hour) for hour in hours]
    logged = [record.message for record in caplog.records if record.message in reasons]
    assert sorted(logged) == sorted(reasons)


def test_a_damaged_batch_fails_its_own_hour_alone(
    operational: Operational, settings: Settings, jobs: Jobs
) -> None:
    hours = [T0, T0 + HOUR, T0 + 2 * HOUR]
    operational.insert("provider_traces", *(trace(hour, id=key_of(hour)) for hour in hours))
    only_batches = jobs.load(hours[0], hours[-1], asset_selection=[AssetKey("trace_batches")])
    assert only_batches.success
    store = BatchStore.of(settings)
    manifest = store.manifest(hours[1])
    assert manifest
    [path] = store.part_paths(manifest)
    part = Path(str(path))
    part.write_bytes(part.read_bytes()[:-1])
    result = jobs.load(hours[0], hours[-1], asset_selection=[AssetKey("llm_traces")])
    failed = failure_of(result)
    assert failed.metadata["failed hours"].value == [key_of(hours[1])]
    assert f"hour {key_of(hours[1])}: part {part} is missing or damaged" in str(failed)
    done = jobs.materializations("llm_traces")
    assert [partition for partition, _ in done] == [key_of(hours[0]), key_of(hours[2])]
    assert jobs.rows() == [{"id": key_of(hours[0])}, {"id": key_of(hours[2])}]


def test_a_wrong_count_blocks_the_hour(
    operational: Operational, settings: Settings, jobs: Jobs
) -> None:
    operational.insert("provider_traces", trace(id="a", step_id="step-1"))
    operational.execute("ALTER TABLE steps DROP CONSTRAINT steps_pkey")
    operational.insert("steps", {"id": "step-1"}, {"id": "step-1"})
    result = jobs.load(T0, T0)
    assert not result.success
    records = jobs.instance.get_records_for_run(
        result.run_id, of_type=DagsterEventType.ASSET_CHECK_EVALUATION
    ).records
    events = [record.event_log_entry.get_dagster_event() for record in records]
    evaluated = [
        (event.asset_check_evaluation_data.check_name, event.asset_check_evaluation_data.passed)
        for event in events
    ]
    assert ("rows_match_source", False) in evaluated
    assert jobs.materializations("trace_batches") == []
    assert jobs.materializations("llm_traces") == []
    with connect(settings) as database:
        assert not has_table(database, "llm_traces")


def test_llm_traces_alone_says_which_batch_is_missing(operational: Operational, jobs: Jobs) -> None:
    operational.insert("provider_traces", trace(id="a"))
    result = jobs.load(T0, T0, asset_selection=[AssetKey("llm_traces")])
    assert not result.success
    failure = result.filter_events(lambda event: event.is_step_failure)[0].step_failure_data
    assert f"hour {key_of(T0)} has no batch; materialize trace_batches for it" in str(failure)


def test_no_secret_reaches_events_or_errors(
    settings: Settings, jobs: Jobs, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    assert settings.operational_database_url is not None
    monkeypatch.setenv(
        "OPERATIONAL_DATABASE_URL", "postgresql://reader:hunter2@127.0.0.1:1/db?connect_timeout=1"
    )
    result = jobs.load(T0, T0)
    assert not result.success
    text = caplog.text + "".join(repr(event) for event in result.all_events)
    assert "cannot connect to OPERATIONAL_DATABASE_URL" in text
    assert "hunter2" not in text


def test_the_graph_has_the_public_names() -> None:
    graph = defs.resolve_asset_graph()
    names = {key.to_user_string() for key in graph.get_all_asset_keys()}
    assert names == {
        *("provider_traces", "billing_history", "trace_batches", "llm_traces"),
        *("llm_usage_hourly", "usage_report"),
    }
    parents = graph.get(AssetKey("trace_batches")).parent_keys
    assert parents == {AssetKey("provider_traces"), AssetKey("billing_history")}
    assert graph.get(AssetKey("llm_traces")).parent_keys == {AssetKey("trace_batches")}
    assert graph.get(AssetKey("usage_report")).parent_keys == {AssetKey("llm_traces")}
    assert graph.get(AssetKey("llm_usage_hourly")).parent_keys == {AssetKey("llm_traces")}


@pytest.mark.parametrize("other", ["only_changed", "accept_loss", "fail_on_loss"])
def test_options_that_say_nothing_together_are_refused(jobs: Jobs, other: str) -> None:
    config = {"ops": {"trace_batches": {"config": {"enrich_only": True, other: True}}}}
    result = jobs.load(T0, T0, run_config=config)
    [failed] = result.filter_events(lambda event: event.is_step_failure)
    assert failed.step_failure_data.error
    cause = failed.step_failure_data.error.cause
    assert cause
    assert cause.message.startswith(
        "llm_trace_pipeline.errors.SettingsError: enrich_only reads no "
    )


def test_the_ready_made_jobs_repair_and_restore(
    operational: Operational, settings: Settings, jobs: Jobs
) -> None:
    hours = [T0, T0 + HOUR]
    operational.insert("provider_traces", *(trace(hour, id=key_of(hour)) for hour in hours))
    assert jobs.load(T0, T0).success
    operational.insert("provider_traces", trace(T0, id="late"))
    tags = tags_of(Window.of(hours))
    assert jobs.run("repair_hours", tags=tags).success
    outcomes = [each["outcome"].value for _, each in jobs.materializations("trace_batches")]
    assert outcomes == ["new batch", "new batch", "new batch"]
    assert jobs.run("repair_hours", tags=tags).success
    outcomes = [each["outcome"].value for _, each in jobs.materializations("trace_batches")]
    assert outcomes[3:] == ["unchanged: the batch was kept"] * 2
    rows = jobs.rows("*")
    with connect(settings) as database:
        database.execute("DROP TABLE llm_traces")
    operational.execute("DROP TABLE provider_traces")
    assert jobs.run("restore_hours", tags=tags).success
    assert jobs.rows("*") == rows


class _OddError(Exception):
    """What nobody foresaw."""


def failing_at(hour: datetime, function: Any) -> Any:
    """Return the function, which fails at one hour in a way that nobody foresaw."""

    def failing(*arguments: Any, **options: Any) -> Any:
        if hour in arguments:
            raise _OddError("of a kind\nthat nobody knows")
        return function(*arguments, **options)

    return failing


def test_what_nobody_foresaw_fails_its_own_hour_alone(
    operational: Operational,
    jobs: Jobs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hours = [T0, T0 + HOUR, T0 + 2 * HOUR]
    operational.insert("provider_traces", *(trace(hour, id=key_of(hour)) for hour in hours))
    monkeypatch.setattr(assets, "extract_hour", failing_at(hours[1], extract_hour))
    result = jobs.load(hours[0], hours[-1])
    assert not result.success
    done = [key_of(hour) for hour in (hours[0], hours[2])]
    assert [partition for partition, _ in jobs.materializations("trace_batches")] == done
    line = (
        f"hour {key_of(hours[1])}: unexpected _OddError: of a kind that nobody knows; "
        "its traceback is in the log"
    )
    assert failure_of(result).description.splitlines()[1:] == [line]
    logged = [record.getMessage() for record in caplog.records]
    assert any(each.startswith(f"hour {key_of(hours[1])}: Traceback") for each in logged)
    assert line in logged
