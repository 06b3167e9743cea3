"""Late is seen: the newest hour is asked for, whatever else was loaded, and with a schedule off."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetCheckKey,
    AssetCheckSeverity,
    AssetKey,
    AssetMaterialization,
    DagsterInstance,
    DagsterRunStatus,
    SensorResult,
    build_sensor_context,
)
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    ScheduleInstigatorData,
)

from llm_trace_pipeline.definitions import defs
from llm_trace_pipeline.defs import freshness
from llm_trace_pipeline.defs.freshness import PUNCTUAL, Punctual
from llm_trace_pipeline.defs.stores import Stores
from llm_trace_pipeline.hours import HOUR, key_of
from llm_trace_pipeline.settings import Settings
from tests.harness.receiver import running_receiver
from tests.harness.rows import DAY, T0

MINUTE = timedelta(minutes=1)
HOURLY, DAILY = "hourly_llm_traces_schedule", "daily_usage_report_schedule"
WARN, ERROR = AssetCheckSeverity.WARN, AssetCheckSeverity.ERROR
DUE = T0 + 20 * MINUTE  # of the hour that ended at T0
NEWEST = key_of(T0 - HOUR)


def punctual(asset: str, check: str = "is_in_time") -> Punctual:
    [found] = [each for each in PUNCTUAL if (each.asset, each.check) == (asset, check)]
    return found


def schedule(
    instance: DagsterInstance,
    name: str = HOURLY,
    since: datetime = T0 - 30 * DAY,
    *,
    is_off: bool = False,
) -> None:
    """Record that a schedule was switched on, or off, as Dagster does."""
    place = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "__repository__")
    status = InstigatorStatus.STOPPED if is_off else InstigatorStatus.DECLARED_IN_CODE
    data = ScheduleInstigatorData("* * * * *", since.timestamp())
    origin = RemoteInstigatorOrigin(place, name)
    state = InstigatorState(origin, InstigatorType.SCHEDULE, status, data)
    known = {each.instigator_name for each in instance.all_instigator_state()}
    (instance.update_instigator_state if name in known else instance.add_instigator_state)(state)


def load(instance: DagsterInstance, key: str | None, *assets: str) -> None:
    for asset in assets:
        instance.report_runless_asset_event(AssetMaterialization(AssetKey(asset), partition=key))


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[DagsterInstance]:
    with DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


def test_the_newest_hour_is_asked_for_and_no_older_one(instance: DagsterInstance) -> None:
    schedule(instance)
    check = punctual("llm_traces")
    load(instance, key_of(T0 - 2 * HOUR), "llm_traces")
    assert check.evaluate(instance, DUE - MINUTE).passed  # the hour before is what is due
    load(instance, key_of(T0 - 90 * DAY), "llm_traces")  # a backfill
    late = check.evaluate(instance, DUE)
    assert (late.passed, late.severity) == (False, ERROR)
    assert late.description == f"{NEWEST}: it is not there, 10 minutes after it was due"
    load(instance, NEWEST, "llm_traces")
    assert check.evaluate(instance, DUE).description == f"{NEWEST}: it is there"
    assert not check.evaluate(instance, DUE + HOUR).passed


@pytest.mark.parametrize(
    ("asset", "due", "partition"),
    [
        ("trace_batches", DUE, NEWEST),
        ("llm_usage_hourly", DUE, NEWEST),
        ("usage_report", T0.replace(hour=1, minute=40), f"{T0 - DAY:%Y-%m-%d}"),
    ],
)
def test_every_partition_has_its_own_time(
    instance: DagsterInstance, asset: str, due: datetime, partition: str
) -> None:
    schedule(instance)
    schedule(instance, DAILY)
    found = punctual(asset).evaluate(instance, due)
    assert (found.passed, found.metadata["due"].value) == (False, partition)
    before = punctual(asset).evaluate(instance, due - MINUTE)
    assert before.metadata["due"].value != partition


def test_billing_is_read_with_every_hour(instance: DagsterInstance) -> None:
    schedule(instance)
    check, now = punctual("billing_history"), datetime.now(UTC)
    load(instance, None, "billing_history")
    assert check.evaluate(instance, now).passed
    found = check.evaluate(instance, now + 2 * HOUR)
    assert not found.passed
    assert str(found.description).startswith("hourly_llm_traces since 20")


def test_a_job_without_partitions_must_have_succeeded(instance: DagsterInstance) -> None:
    schedule(instance, "reconcile_hours_schedule")
    check, now = punctual("llm_traces", "is_reconciled"), datetime.now(UTC)
    job = defs.resolve_job_def("reconcile_hours")
    instance.report_run_failed(instance.create_run_for_job(job))
    assert not check.evaluate(instance, now).passed
    instance.create_run_for_job(job, status=DagsterRunStatus.SUCCESS)
    assert check.evaluate(instance, now).passed
    assert not check.evaluate(instance, now + 3 * HOUR).passed


def test_what_was_due_before_a_schedule_was_switched_on_is_not_asked_for(
    instance: DagsterInstance,
) -> None:
    check = punctual("llm_traces")
    assert check.evaluate(instance, DUE).passed  # nothing was ever switched on
    schedule(instance, since=T0 + 11 * MINUTE)
    assert check.evaluate(instance, DUE + 59 * MINUTE).passed
    assert not check.evaluate(instance, DUE + HOUR).passed


def test_a_schedule_that_is_off_is_a_warning_before_anything_is_late(
    instance: DagsterInstance,
) -> None:
    schedule(instance, is_off=True)
    check = punctual("llm_traces")
    load(instance, NEWEST, "llm_traces")
    off = check.evaluate(instance, DUE)
    assert (off.passed, off.severity) == (False, WARN)
    assert off.description == f"{NEWEST}: it is there; {HOURLY} is switched off"
    late = check.evaluate(instance, DUE + HOUR)
    assert late.severity is ERROR
    assert f"{key_of(T0)}: it is not there" in str(late.description)


class Clock:
    """What the sensor takes for the time."""

    now_is = DUE

    def now(self, _: Any) -> datetime:
        return self.now_is

    fromtimestamp = staticmethod(datetime.fromtimestamp)


def test_the_sensor_tells_the_page_and_the_webhook_once_for_all_assets(
    instance: DagsterInstance,
    settings: Settings,  # noqa: ARG001 -- environment
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(freshness, "datetime", clock)
    cursors: dict[str, str | None] = {}

    def tick(name: str) -> SensorResult:
        context = build_sensor_context(
            instance=instance, cursor=cursors.get(name), resources={"stores": Stores()}
        )
        result = defs.resolve_sensor_def(name)(context)
        assert isinstance(result, SensorResult)
        cursors[name] = result.cursor
        for event in result.asset_events or ():
            instance.report_runless_asset_event(event)
        return result

    def page() -> Any:
        key = AssetCheckKey(AssetKey("llm_traces"), "is_in_time")
        [record] = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
        return record.evaluation

    assets = ("trace_batches", "llm_traces", "llm_usage_hourly")
    schedule(instance)
    load(instance, NEWEST, *assets)
    load(instance, None, "billing_history")
    with running_receiver() as receiver:
        monkeypatch.setenv("ALERT_WEBHOOK_URL", receiver.url)
        tick("alerts_sensor")
        tick("freshness_sensor")
        assert page().passed
        schedule(instance, is_off=True)
        for minutes in (20, 21, 80, 81, 140):
            clock.now_is = T0 + minutes * MINUTE
            tick("freshness_sensor")
            tick("alerts_sensor")
        [alert] = receiver.take()
        assert (page().passed, page().metadata["due"].value) == (False, key_of(T0 + HOUR))
        schedule(instance)
        load(instance, key_of(T0 + HOUR), *assets)
        tick("freshness_sensor")
        tick("alerts_sensor")
        assert receiver.take() == []
        assert page().passed
        assert tick("freshness_sensor").asset_events == []
    assert alert.pop("text").startswith(f"{HOURLY} is late, {NEWEST}\n{NEWEST}: it is there; ")
    assert alert == {
        "kind": "schedule_late",
        "title": f"{HOURLY} is late, {NEWEST}",
        "job": "hourly_llm_traces",
        "hours": [NEWEST],
        "message": f"{NEWEST}: it is there; {HOURLY} is switched off",
        "what_to_do": f"switch {HOURLY} on (Automation), or see why its runs wait or fail (Runs)",
        "url": "http://localhost:3000/assets/llm_traces?view=checks",
    }
