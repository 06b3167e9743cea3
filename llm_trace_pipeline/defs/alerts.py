"""The sensor that tells somebody: what failed and what is late is posted, each once.

It reads the events of the instance in their order, and moves its cursor past an event once the
receiver has taken the alert. A receiver that is down so loses nothing.
"""

import time
from collections.abc import Iterator, Mapping

import dagster as dg
from pydantic import BaseModel

from llm_trace_pipeline.defs.checks import HOURLY_CHECKS
from llm_trace_pipeline.defs.freshness import PUNCTUAL
from llm_trace_pipeline.defs.runs import (
    failed_hours_of,
    has_failed_for_good,
    hours_of_run,
    is_retried,
    reason_of,
    was_interrupted,
)
from llm_trace_pipeline.defs.stores import Stores
from llm_trace_pipeline.defs.webhook import Alert, WebhookError, first_line, post
from llm_trace_pipeline.hours import key_of

# The step that failed is told before the run.
_FAILURES = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}
_EVENTS_PER_TICK = 1000
_SECONDS_PER_TICK = 30.0  # Dagster cuts a tick after a minute
_PATIENCE_SECONDS = 1800.0  # for the retry of a run
_QUIET_SECONDS = 86_400.0  # without a warning of hours, before the next one is news

_LATE = {f"{each.asset}: {each.check}": each for each in PUNCTUAL}


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Posts what failed and what is late to ALERT_WEBHOOK_URL, each once.",
)
def alerts_sensor(
    context: dg.SensorEvaluationContext, stores: Stores
) -> dg.SensorResult | dg.SkipReason:
    """Post what has failed since the last tick; what is not taken stays for the next one."""
    address = stores.settings.alert_webhook_url
    if address is None:
        return dg.SensorResult(skip_reason="ALERT_WEBHOOK_URL is not set", cursor="")
    if not context.cursor:
        told = Told.until_now(context.instance)
        reason = "what fails from now on is posted"
        return dg.SensorResult(skip_reason=reason, cursor=told.model_dump_json())
    told = Told.model_validate_json(context.cursor)
    cursor, posted, reason = context.cursor, 0, "nothing has failed"
    began = time.monotonic()
    for alert in _Events(context.instance, told, stores.settings.dagster_ui_url).read():
        if alert is not None:
            try:
                post(address, alert)
            except WebhookError as error:
                context.log.warning(str(error))
                reason = str(error)
                break
            posted += 1
            reason = f"{posted} alerts were posted"
        cursor = told.model_dump_json()
        if time.monotonic() - began > _SECONDS_PER_TICK:
            break
    return dg.SensorResult(skip_reason=reason, cursor=cursor)


class Failing(BaseModel):
    """A check that fails: its last failure, by which a new one is known."""

    run: str
    at: float


class Told(BaseModel):
    """The sensor's cursor: which events it has read, and what of them is not over."""

    runs: int
    checks: int
    waiting: dict[str, float] = {}  # runs that failed, whose retry did not begin yet, and when
    failing: dict[str, Failing] = {}

    @classmethod
    def until_now(cls, instance: dg.DagsterInstance) -> "Told":
        """Return the cursor that leaves out what was before."""
        last = instance.event_log_storage.get_maximum_record_id() or 0
        return cls(runs=last, checks=last)


class _Events:
    """The events of an instance after a cursor, which moves with every event that is read."""

    def __init__(self, instance: dg.DagsterInstance, told: Told, ui: str) -> None:
        self._instance, self._told, self._ui = instance, told, ui

    def read(self) -> Iterator[Alert | None]:
        """Return an alert or None for each event, once the cursor has moved past the event."""
        told = self._told
        for run_id, failed_at in list(told.waiting.items()):
            yield self._failed(run_id, failed_at)
        for number, entry in self._after(told.runs, dg.DagsterEventType.RUN_FAILURE).items():
            told.runs = number
            yield self._failed(entry.run_id, entry.timestamp)
        for number, entry in self._after(
            told.checks, dg.DagsterEventType.ASSET_CHECK_EVALUATION
        ).items():
            told.checks = number
            if entry.dagster_event:
                yield self._evaluated(entry.run_id, entry.timestamp, entry.dagster_event)

    def _after(self, cursor: int, kind: dg.DagsterEventType) -> Mapping[int, dg.EventLogEntry]:
        return self._instance.event_log_storage.get_logs_for_all_runs_by_log_id(
            cursor, kind, _EVENTS_PER_TICK
        )

    def _failed(self, run_id: str, at: float) -> Alert | None:
        """Return the alert of a failed run; None where a retry follows, or still may."""
        self._told.waiting.pop(run_id, None)
        run = self._instance.get_run_by_id(run_id)
        if run is None or is_retried(run) or was_interrupted(run):
            return None
        if not has_failed_for_good(self._instance, run) and time.time() - at < _PATIENCE_SECONDS:
            self._told.waiting[run_id] = at
            return None
        hours = [key_of(hour) for hour in hours_of_run(run.tags)]
        entries = self._instance.all_logs(run_id, of_type=_FAILURES)
        event = next(entry.dagster_event for entry in entries if entry.dagster_event)
        message = event.message or ""
        if event.is_step_failure:
            hours, message = failed_hours_of(event) or hours, reason_of(event)
        return Alert(
            kind="run_failed",
            title=f"{_job_of(run)} failed{_of(hours)}",
            job=_job_of(run),
            hours=hours,
            message=first_line(message),
            what_to_do="repair what the message names (docs/runbook.md), then retry the run on its "
            "page" + (f", or make backfill FROM={hours[0]} TO={hours[-1]}" if hours else ""),
            url=f"{self._ui}/runs/{run_id}",
        )

    def _evaluated(self, run_id: str, at: float, event: dg.DagsterEvent) -> Alert | None:
        """Return the alert of a check that fails and did not fail before."""
        found = event.asset_check_evaluation_data
        name, asset = found.check_name, found.asset_key.to_user_string()
        of_hours = HOURLY_CHECKS.get(name)
        if of_hours and found.partition is None:
            return None  # the summary of a run's hours, which were read one by one
        key, failing = f"{asset}: {name}", self._told.failing
        before = failing.get(key)
        if found.passed:
            # Warnings of an hour come and go with who calls.
            patience = _QUIET_SECONDS if of_hours and not of_hours.blocking else 0.0
            is_later = before is not None and (before.run != run_id or not run_id)
            if before and is_later and at - before.at >= patience:
                del failing[key]
            return None
        late = _LATE.get(key)
        is_told = before or (
            late and any(late.job == of.job for of in map(_LATE.get, failing) if of)
        )
        failing[key] = Failing(run=run_id, at=at)
        if is_told:
            return None
        run = self._instance.get_run_by_id(run_id) if run_id else None
        hours = [found.partition] if found.partition else []
        severity = "failed" if found.severity is dg.AssetCheckSeverity.ERROR else "warns"
        message = first_line(found.description or "")
        page = f"{self._ui}/assets/{asset}?view=checks"
        if late:
            hours = [str(found.metadata["due"].value)] if late.proof == "partition" else []
            return Alert(
                kind="schedule_late",
                title=f"{late.schedule} is late{_of(hours)}",
                job=late.job,
                hours=hours,
                message=message,
                what_to_do=f"switch {late.schedule} on (Automation), or see why its runs wait or "
                "fail (Runs)",
                url=page,
            )
        return Alert(
            kind="check_failed",
            title=f"{name} of {asset} {severity}{_of(hours)}",
            job=_job_of(run) if run else "",
            hours=hours,
            message=message,
            what_to_do=f"see {name} in docs/runbook.md",
            url=f"{self._ui}/runs/{run_id}" if run else page,
        )


def _job_of(run: dg.DagsterRun) -> str:
    """Return the name of a run's job; Dagster has a hidden one for what is chosen in the UI."""
    return "materialization by hand" if run.job_name.startswith("__") else run.job_name


def _of(hours: list[str]) -> str:
    if not hours:
        return ""
    return f", {hours[0]}" + (f" to {hours[-1]}" if len(hours) > 1 else "")
