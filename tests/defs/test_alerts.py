"""What is posted to the webhook: each failure once, and none is lost while nobody takes it."""

import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetKey,
    DagsterInstance,
    SensorResult,
    build_sensor_context,
)
from pydantic import SecretStr

from llm_trace_pipeline.definitions import defs
from llm_trace_pipeline.defs import alerts
from llm_trace_pipeline.defs.stores import Stores
from llm_trace_pipeline.defs.webhook import Alert, WebhookError, post
from llm_trace_pipeline.hours import HOUR, key_of
from llm_trace_pipeline.settings import Settings
from tests.harness.jobs import Jobs
from tests.harness.operational import Operational, trace
from tests.harness.receiver import PATH, Receiver, running_receiver
from tests.harness.rows import T0

SENSOR = defs.resolve_sensor_def("alerts_sensor")
INTERRUPTED = "llm_traces/interrupted"
LAST_TRY = {"dagster/max_retries": "0"}
UI = "https://dagster.example.com"


class Deployment(Jobs):
    """A deployment whose sensor ticks the way the daemon lets it tick."""

    cursor: str | None = None

    def tick(self) -> str:
        """Let the sensor look once; return what its tick says."""
        context = build_sensor_context(
            instance=self.instance, cursor=self.cursor, resources={"stores": Stores()}
        )
        result = SENSOR(context)
        assert isinstance(result, SensorResult)
        self.cursor = result.cursor
        return str(result.skip_reason.skip_message if result.skip_reason else "")

    def fail(self, **tags: str) -> str:
        """Load two hours, the first of which has a step without trace; return the run."""
        only_batches = [AssetKey("trace_batches")]
        result = self.load(T0, T0 + HOUR, asset_selection=only_batches, tags=tags)
        assert not result.success
        return result.run_id

    def lose(self, **tags: str) -> str:
        """Record a run whose process is gone; return it."""
        run = self.instance.create_run_for_job(defs.resolve_job_def("reconcile_hours"), tags=tags)
        self.instance.report_run_failed(run, "Its process is gone.")
        return run.run_id

    def find(self, *, passed: bool, text: str = "") -> None:
        """Record what a check of all hours has found."""
        self.instance.report_runless_asset_event(
            AssetCheckEvaluation(
                asset_key=AssetKey("llm_traces"),
                check_name="clickhouse_matches_batches",
                passed=passed,
                description=text,
                metadata={},
            )
        )


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as receiver:
        yield receiver


@pytest.fixture
def deployment(
    operational: Operational,
    settings: Settings,
    receiver: Receiver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Deployment]:
    """A deployment that retries, with records on disk as `make dev` has them."""
    monkeypatch.setenv("ALERT_WEBHOOK_URL", receiver.url)
    monkeypatch.setenv("DAGSTER_UI_URL", f"{UI}/")
    operational.insert("provider_traces", trace(T0 - HOUR, id="before"))
    operational.insert("provider_traces", trace(T0 + 2 * HOUR, id="after"))
    operational.insert("steps", {"id": "step-1", "created_at": T0 + HOUR * 0.5})
    home = tmp_path / "dagster"
    home.mkdir()
    retries = {"run_retries": {"enabled": True, "max_retries": 2}}
    with DagsterInstance.local_temp(str(home), overrides=retries) as instance:
        deployment = Deployment(settings, instance)
        assert deployment.tick() == "what fails from now on is posted"
        yield deployment


def test_a_run_is_told_once_when_it_failed_for_good(
    deployment: Deployment, receiver: Receiver
) -> None:
    first = deployment.lose()
    for _ in range(2):
        assert deployment.tick() == "nothing has failed"  # since it is going to be retried
    interrupted = deployment.lose(**LAST_TRY)
    deployment.instance.add_run_tags(interrupted, {INTERRUPTED: interrupted})
    # A retry has the tags of the run that it retries.
    second = deployment.fail(**{"dagster/parent_run_id": first, INTERRUPTED: interrupted})
    deployment.instance.add_run_tags(first, {"dagster/auto_retry_run_id": second})
    assert deployment.tick() == "1 alerts were posted"
    [alert] = receiver.take()
    message = (
        f"hour {key_of(T0)}: provider_traces and provider_trace_metadata are empty, but 1 steps "
    )
    assert alert.pop("message").startswith(message)
    text = alert.pop("text")
    assert text.startswith(f"hourly_llm_traces failed, {key_of(T0)}\n{message}")
    assert text.endswith(f"\n{UI}/runs/{second}")
    assert alert == {
        "kind": "run_failed",
        "title": f"hourly_llm_traces failed, {key_of(T0)}",
        "job": "hourly_llm_traces",
        "hours": [key_of(T0)],
        "what_to_do": "repair what the message names (docs/runbook.md), then retry the run on its "
        f"page, or make backfill FROM={key_of(T0)} TO={key_of(T0)}",
        "url": f"{UI}/runs/{second}",
    }
    assert deployment.tick() == "nothing has failed"
    assert receiver.take() == []


def test_a_retry_that_never_begins_is_told(
    deployment: Deployment, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = deployment.lose()
    deployment.tick()
    now = time.time()
    monkeypatch.setattr(alerts, "time", SimpleNamespace(time=lambda: now + 1801, monotonic=float))
    deployment.tick()
    [alert] = receiver.take()
    assert alert["url"] == f"{UI}/runs/{run}"
    assert (alert["job"], alert["message"]) == ("reconcile_hours", "Its process is gone.")


def test_a_receiver_that_is_down_loses_nothing(
    deployment: Deployment, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [deployment.lose(**LAST_TRY) for _ in range(2)]
    receiver.status = 503
    for _ in range(2):
        assert deployment.tick() == (
            "ALERT_WEBHOOK_URL did not take an alert (HTTP status 503); it is posted again in a "
            "minute"
        )
    assert len(receiver.refused) == 2  # the others wait behind the first
    receiver.status = 200
    assert deployment.tick() == "2 alerts were posted"
    assert [alert["url"] for alert in receiver.take()] == [f"{UI}/runs/{run}" for run in runs]
    assert PATH not in caplog.text
    assert PATH not in str(deployment.cursor)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:1/s3cr3t", "ConnectionRefusedError"),
        ("http://no-such-host.invalid/s3cr3t", "gaierror"),
    ],
)
def test_a_receiver_that_is_not_there_is_named_without_its_address(
    address: str, reason: str
) -> None:
    alert = Alert(kind="run_failed", title="", job="", hours=[], message="", what_to_do="", url="")
    with pytest.raises(WebhookError) as caught:
        post(SecretStr(address), alert)
    assert f"({reason})" in str(caught.value)
    assert "s3cr3t" not in "".join(traceback.format_exception(caught.value))


def test_a_check_is_told_when_it_newly_fails(deployment: Deployment, receiver: Receiver) -> None:
    for passed in (True, False, False, True):
        deployment.find(passed=passed, text="2026-03-01-09:00: 519 rows are 518")
        deployment.tick()
    [alert] = receiver.take()
    assert alert["kind"] == "check_failed"
    assert alert["title"] == "clickhouse_matches_batches of llm_traces failed"
    assert alert["message"] == "2026-03-01-09:00: 519 rows are 518"
    assert alert["what_to_do"] == "see clickhouse_matches_batches in docs/runbook.md"
    assert alert["url"] == f"{UI}/assets/llm_traces?view=checks"
    deployment.find(passed=False)
    deployment.tick()
    assert len(receiver.take()) == 1


def test_a_warning_of_hours_is_told_once_a_day_at_most(
    deployment: Deployment, receiver: Receiver
) -> None:
    for hours in ((T0 + 2 * HOUR, T0 + 2 * HOUR), (T0 + HOUR, T0 + 2 * HOUR)):
        loaded = deployment.load(*hours, asset_selection=[AssetKey("trace_batches")])
        assert loaded.success
        deployment.tick()
    [alert] = receiver.take()
    assert alert["title"] == f"billing_is_known of trace_batches warns, {key_of(T0 + 2 * HOUR)}"
    assert alert["message"] == (
        f"{key_of(T0 + 2 * HOUR)}: 1 organizations without billing, such as org-1"
    )
    assert alert["hours"] == [key_of(T0 + 2 * HOUR)]


def test_without_an_address_nothing_is_read_or_kept(
    deployment: Deployment, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.delenv("ALERT_WEBHOOK_URL")
        deployment.lose(**LAST_TRY)
        assert deployment.tick() == "ALERT_WEBHOOK_URL is not set"
    assert deployment.tick() == "what fails from now on is posted"
    assert deployment.tick() == "nothing has failed"
    assert receiver.take() == []
