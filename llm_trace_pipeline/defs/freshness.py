"""Late is seen: checks that the newest hour or day is there, and a sensor that evaluates them.

The sensor runs although a schedule is off or its runs wait, and starts no run. A check asks for the
newest partition that is due, so that a backfill of an old hour makes nothing look fresh.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import dagster as dg
from pydantic import RootModel

from llm_trace_pipeline.defs.partitions import SCHEDULE_MINUTE
from llm_trace_pipeline.defs.runs import HOURLY_JOB, LLM_TRACES, LLM_USAGE_HOURLY, TRACE_BATCHES
from llm_trace_pipeline.defs.stores import Stores
from llm_trace_pipeline.hours import HOUR, floor, key_of, midnight
from llm_trace_pipeline.settings import Settings

_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Punctual:
    """An asset, the job that keeps it fresh, and the check that says whether it is.

    Args:
        asset: the asset.
        check: the name of the check.
        claim: the description of the check.
        job: the job; its schedule is named after it.
        period: of the schedule, an hour or a day.
        offset: of the schedule within the period.
        grace: how long after its tick the schedule's run may end.
        proof: what tells that it did: the partition of the period before, any materialization since
            the tick, or a run of the job since then.
    """

    asset: str
    check: str
    claim: str
    job: str
    period: timedelta
    offset: timedelta
    grace: timedelta
    proof: Literal["partition", "materialization", "run"]

    @property
    def spec(self) -> dg.AssetCheckSpec:
        """What Dagster shows of the check."""
        return dg.AssetCheckSpec(self.check, asset=self.asset, description=self.claim)

    @property
    def schedule(self) -> str:
        """The name of the schedule."""
        return f"{self.job}_schedule"

    def tick(self, now: datetime) -> datetime:
        """Return the newest tick of the schedule whose run has to have ended by now."""
        since = now - self.grace - self.offset
        return (floor(since) if self.period == HOUR else midnight(since)) + self.offset

    def partition(self, tick: datetime) -> str | None:
        """Return the key of the partition that the schedule asks for with a tick."""
        if self.proof != "partition":
            return None
        begins = tick - self.offset - self.period
        return key_of(begins) if self.period == HOUR else f"{begins:%Y-%m-%d}"

    def is_there(self, instance: dg.DagsterInstance, tick: datetime) -> bool:
        """Whether what a tick asked for was done."""
        if self.proof == "run":
            runs = dg.RunsFilter(
                job_name=self.job, statuses=[dg.DagsterRunStatus.SUCCESS], created_after=tick
            )
            return bool(instance.get_run_records(runs, limit=1))
        partition = self.partition(tick)
        wanted = dg.AssetRecordsFilter(
            asset_key=dg.AssetKey(self.asset),
            asset_partitions=[partition] if partition else None,
            after_timestamp=None if partition else tick.timestamp(),
        )
        return bool(instance.fetch_materializations(wanted, limit=1).records)

    def evaluate(self, instance: dg.DagsterInstance, now: datetime) -> dg.AssetCheckEvaluation:
        """Return what the check says now; no store is opened."""
        tick = self.tick(now)
        since, is_off = _state(instance, self.schedule)
        partition = self.partition(tick)
        wanted = partition or f"{self.job} since {tick:%Y-%m-%d %H:%M} UTC"
        is_there = self.is_there(instance, tick)
        is_late = not is_there and (is_off or (since is not None and since < tick))
        if is_there:
            text = f"{wanted}: it is there"
        elif is_late:
            text = f"{wanted}: it is not there, {_minutes(self.grace)} minutes after it was due"
        else:
            text = f"{self.schedule} was not due since it was switched on"
        return dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(self.asset),
            check_name=self.check,
            passed=not (is_late or is_off),
            severity=dg.AssetCheckSeverity.ERROR if is_late else dg.AssetCheckSeverity.WARN,
            description=f"{text}; {self.schedule} is switched off" if is_off else text,
            # Not as the evaluation's partition: without a run, Dagster takes one evaluation a key.
            metadata={"due": wanted},
        )


_HOURLY = (HOURLY_JOB, HOUR, timedelta(minutes=SCHEDULE_MINUTE), timedelta(minutes=10))
PUNCTUAL = (
    *(
        Punctual(
            asset,
            "is_in_time",
            "The hour that closed is there ten minutes after hourly_llm_traces_schedule has "
            "ticked for it.",
            *_HOURLY,
            "partition",
        )
        for asset in (LLM_TRACES, TRACE_BATCHES, LLM_USAGE_HOURLY)
    ),
    Punctual(
        "billing_history",
        "is_in_time",
        "The billing table was read ten minutes after hourly_llm_traces_schedule has ticked.",
        *_HOURLY,
        "materialization",
    ),
    Punctual(
        "usage_report",
        "is_in_time",
        "The report of the day before is there by 01:40 UTC.",
        *("daily_usage_report", _DAY, timedelta(minutes=90), timedelta(minutes=10)),
        "partition",
    ),
    Punctual(
        LLM_TRACES,
        "is_reconciled",
        "reconcile_hours has compared the stores within the last two hours.",
        *("reconcile_hours", HOUR, timedelta(minutes=40), timedelta(minutes=60)),
        "run",
    ),
    Punctual(
        LLM_TRACES,
        "is_thinned_out",
        "Where a retention is set, what is past it was dropped by 01:40 UTC.",
        *("apply_retention", _DAY, timedelta(minutes=40), timedelta(minutes=60)),
        "run",
    ),
)
FRESHNESS_CHECKS = tuple(each.spec for each in PUNCTUAL)


@dg.multi_asset_check(name="freshness", specs=FRESHNESS_CHECKS, can_subset=True)
def freshness(
    context: dg.AssetCheckExecutionContext, stores: Stores
) -> Iterator[dg.AssetCheckResult]:
    """Ask Dagster's records whether the newest hour and day are there."""
    for found in _evaluate(context.instance, stores.settings):
        if found.asset_check_key in context.selected_asset_check_keys:
            yield dg.AssetCheckResult(
                asset_key=found.asset_key,
                check_name=found.check_name,
                passed=found.passed,
                severity=found.severity,
                description=found.description,
            )


class Seen(RootModel[dict[str, str]]):
    """The sensor's cursor: what each check has said last."""


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks whether the newest hour and day are there, also while a schedule is off.",
)
def freshness_sensor(context: dg.SensorEvaluationContext, stores: Stores) -> dg.SensorResult:
    """Record what the checks say, where that is something new."""
    before = Seen.model_validate_json(context.cursor).root if context.cursor else {}
    found = {
        found.asset_check_key.to_user_string(): found
        for found in _evaluate(context.instance, stores.settings)
    }
    said = {name: str(each.description) for name, each in found.items()}
    new = [each for name, each in found.items() if before.get(name) != said[name]]
    return dg.SensorResult(
        asset_events=new,
        skip_reason=None if new else "nothing has changed",
        cursor=Seen(said).model_dump_json(),
    )


def _evaluate(
    instance: dg.DagsterInstance, settings: Settings
) -> Iterator[dg.AssetCheckEvaluation]:
    has_retention = settings.retention_days is not None or settings.batch_retention_days is not None
    now = datetime.now(UTC)
    for each in PUNCTUAL:
        if each.job != "apply_retention" or has_retention:
            yield each.evaluate(instance, now)


def _state(instance: dg.DagsterInstance, schedule: str) -> tuple[datetime | None, bool]:
    """Return since when Dagster lets a schedule tick, None if it never did, and whether it is off.

    A schedule has no record before a daemon has run. An instance that lives for one run keeps none.
    """
    states = instance.all_instigator_state() if instance.schedule_storage else ()
    for state in states:
        if state.instigator_name == schedule:
            started = getattr(state.instigator_data, "start_timestamp", None)
            since = datetime.fromtimestamp(started, UTC) if started else None
            return since, state.status.value == "STOPPED"
    return None, False


def _minutes(span: timedelta) -> int:
    return int(span.total_seconds()) // 60
