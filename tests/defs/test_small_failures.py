"""A failure stays as small as its hour, and nothing is tried again that cannot get better."""

from contextlib import suppress
from typing import Any

import pytest
from dagster import AssetKey, DagsterInstance

from llm_trace_pipeline.batches.extract import extract_hour
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.defs.hourly_step import StoreDownError, _process, can_pass
from llm_trace_pipeline.defs.runs import hours_of_run
from llm_trace_pipeline.defs.sensors import others_of
from llm_trace_pipeline.errors import (
    ClickHouseError,
    LostTracesError,
    SourceError,
    TransientClickHouseError,
)
from llm_trace_pipeline.hours import HOUR, key_of
from llm_trace_pipeline.settings import Settings
from tests.harness.jobs import Jobs
from tests.harness.operational import Operational, trace
from tests.harness.rows import T0

HOURS = [T0, T0 + HOUR, T0 + 2 * HOUR]
NO_RETRY = "dagster/max_retries"


def tags(jobs: Jobs, run_id: str) -> dict[str, str]:
    run = jobs.instance.get_run_by_id(run_id)
    assert run
    return dict(run.tags)


def test_a_pruned_hour_keeps_batch_and_rows_and_is_a_warning(
    operational: Operational, store: BatchStore, jobs: Jobs
) -> None:
    operational.insert("provider_traces", *(trace(hour, id=key_of(hour)) for hour in HOURS))
    assert jobs.load(HOURS[0], HOURS[-1]).success
    batch = store.manifest(HOURS[1])
    operational.execute(f"DELETE FROM provider_traces WHERE id = '{key_of(HOURS[1])}'")
    again = jobs.load(HOURS[0], HOURS[-1])
    assert again.success
    assert store.manifest(HOURS[1]) == batch
    assert [row["id"] for row in jobs.rows()] == [key_of(hour) for hour in HOURS]
    outcome = dict(jobs.materializations("trace_batches"))[key_of(HOURS[1])]["outcome"].value
    assert outcome == "kept: the source lost traces"
    [warned] = [
        each
        for each in again.get_asset_check_evaluations()
        if each.check_name == "rows_match_source" and each.partition == key_of(HOURS[1])
    ]
    assert (warned.passed, warned.severity.value) == (False, "WARN")
    assert str(warned.description).startswith(f"{key_of(HOURS[1])}: the source has 0 traces, ")

    on_request = {"ops": {"trace_batches": {"config": {"fail_on_loss": True}}}}
    red = jobs.load(HOURS[0], HOURS[-1], run_config=on_request)
    assert not red.success
    assert tags(jobs, red.run_id)[NO_RETRY] == "0"
    assert store.manifest(HOURS[1]) == batch


def test_the_hours_beside_one_that_failed_are_loaded_and_rolled_up(
    operational: Operational, jobs: Jobs
) -> None:
    operational.insert("provider_traces", trace(HOURS[0] - HOUR), trace(HOURS[2], id="after"))
    operational.insert("steps", {"id": "step-1", "created_at": HOURS[1] + HOUR / 2})
    failed = jobs.load(HOURS[0], HOURS[-1])
    assert not failed.success
    assert jobs.materializations("llm_traces") == []
    run = jobs.instance.get_run_by_id(failed.run_id)
    assert run
    requests = others_of(jobs.instance, run)
    assert [hours_of_run(request.tags) for request in requests] == [[HOURS[0]], [HOURS[2]]]
    for request in requests:
        asked = jobs.run(
            "hourly_llm_traces", tags=dict(request.tags), asset_selection=request.asset_selection
        )
        assert asked.success
    for asset in ("llm_traces", "llm_usage_hourly"):
        assert {hour for hour, _ in jobs.materializations(asset)} == {
            key_of(HOURS[0]),
            key_of(HOURS[2]),
        }
    good = jobs.load(HOURS[0], HOURS[0])
    run = jobs.instance.get_run_by_id(good.run_id)
    assert run
    assert others_of(jobs.instance, run) == []


def exhausted(text: str) -> ClickHouseError:
    """Return the error of the last of several attempts."""
    error = ClickHouseError(text)
    error.__cause__ = TransientClickHouseError(text)
    return error


def test_the_hours_that_wait_for_clickhouse_are_not_tried() -> None:
    tried: list[Any] = []

    def process(hours: Any) -> Any:
        tried.extend(hours)
        raise exhausted("ClickHouse: cannot be reached: [Errno 111]")

    found = list(_process([[HOURS[0]], HOURS[1:]], process, lambda: False))
    assert tried == HOURS[:1]
    assert [each.hour for each in found] == HOURS
    assert all(isinstance(each.outcome, StoreDownError) for each in found)
    said = str(found[0].outcome)
    assert said.startswith(f"hour {key_of(T0)}: ClickHouse does not answer, so that this hour and ")
    assert said.endswith("make preflight says more: ClickHouse: cannot be reached: [Errno 111]")
    # A server that answers, and refuses an hour, is asked for the others.
    tried.clear()
    assert len(list(_process([[HOURS[0]], [HOURS[1]]], process, lambda: True))) == 2
    assert tried == HOURS[:2]


def test_what_may_pass_is_tried_again() -> None:
    assert can_pass(TransientClickHouseError("overloaded"))
    assert can_pass(exhausted("overloaded"))
    assert can_pass(SourceError("cannot connect"))
    assert can_pass(StoreDownError("ClickHouse does not answer"))
    assert not can_pass(ClickHouseError("no such grant"))
    assert not can_pass(LostTracesError("pruned"))


def test_hours_that_were_done_before_a_signal_are_recorded(
    operational: Operational,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Any:
        if HOURS[1] in arguments:
            raise KeyboardInterrupt
        return extract_hour(*arguments, **options)

    operational.insert("provider_traces", trace(T0, id="a"))
    monkeypatch.setattr("llm_trace_pipeline.defs.assets.extract_hour", interrupted)
    with DagsterInstance.ephemeral() as instance:
        jobs = Jobs(settings, instance)
        with suppress(KeyboardInterrupt):
            jobs.load(HOURS[0], HOURS[-1], asset_selection=[AssetKey("trace_batches")])
        done = jobs.materializations("trace_batches")
    assert [hour for hour, _ in done] == [key_of(T0)]
