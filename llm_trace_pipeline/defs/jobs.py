"""What runs by itself: each hour once it closed, the comparison of all stores, and its repairs."""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

from dagster import (
    AssetKey,
    AssetSelection,
    DagsterInstance,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    OpExecutionContext,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    build_schedule_from_partitioned_job,
    define_asset_job,
    in_process_executor,
    job,
    op,
    schedule,
    sensor,
)
from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus
from pydantic import AwareDatetime, BaseModel
from xxhash import xxh3_64_hexdigest

from llm_trace_pipeline.batches.store import Reconciliation
from llm_trace_pipeline.defs.assets import (
    billing_history,
    llm_traces,
    llm_usage_hourly,
    trace_batches,
    usage_report,
)
from llm_trace_pipeline.defs.checks import (
    BATCH_CHECKS,
    LLM_TRACES,
    LLM_USAGE_HOURLY,
    RANGE_END_TAG,
    RANGE_START_TAG,
    ROLLUP_CHECKS,
    TABLE_CHECKS,
    TRACE_BATCHES,
    hours_being_loaded,
    is_hour,
    reconciliation,
    without_hours,
)
from llm_trace_pipeline.defs.partitions import SCHEDULE_MINUTE
from llm_trace_pipeline.defs.stores import Pipeline
from llm_trace_pipeline.hours import Window, key_of, parse_hour, ranges
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.upkeep.retention import apply_retention as drop_past_retention

# An hour whose billing is renewed is written anew whether anything changes or not: that costs about
# as much as half the start-up of another run.
_RESTATED_GAP = 2
_PATIENCE = timedelta(hours=6)

hourly_llm_traces = define_asset_job(
    "hourly_llm_traces",
    # Assets bring all their checks along; those of all hours together are not for every load.
    selection=AssetSelection.assets(
        billing_history, trace_batches, llm_traces, llm_usage_hourly
    ).without_checks()
    | AssetSelection.checks(*(spec.key for spec in (*BATCH_CHECKS, *TABLE_CHECKS, *ROLLUP_CHECKS))),
    # A process per step would cost seconds of start-up each.
    executor_def=in_process_executor,
    description="Load an hour: from the operational database to a Parquet batch to ClickHouse, "
    "and roll it up.",
)

hourly_llm_traces_schedule = build_schedule_from_partitioned_job(
    hourly_llm_traces,
    name="hourly_llm_traces_schedule",
    minute_of_hour=SCHEDULE_MINUTE,
    default_status=DefaultScheduleStatus.RUNNING,
    description="Loads the hour that closed.",
)

reconcile_hours = define_asset_job(
    "reconcile_hours",
    selection=AssetSelection.checks(reconciliation),
    executor_def=in_process_executor,
    description="Compare the hours of the last days in the source, the batches and ClickHouse.",
)

reconcile_hours_schedule = ScheduleDefinition(
    name="reconcile_hours_schedule",
    job=reconcile_hours,
    cron_schedule="40 * * * *",
    execution_timezone="UTC",
    default_status=DefaultScheduleStatus.RUNNING,
    description="Looks for hours that are not as they should be.",
)


@sensor(
    job=hourly_llm_traces,
    minimum_interval_seconds=60,
    default_status=DefaultSensorStatus.RUNNING,
    description="Loads the hours that reconcile_hours found to differ, each reconciliation once.",
)
def changed_hours_sensor(
    context: SensorEvaluationContext, pipeline: Pipeline
) -> SensorResult | SkipReason:
    """Request the hours of the last reconciliation; no database is opened here."""
    found = pipeline.store().reconciliation()
    if found is None:
        return SkipReason("reconcile_hours has not run yet")
    asked = Asked.model_validate_json(context.cursor) if context.cursor else Asked()
    if found.id == asked.reconciliation:
        return SkipReason(f"the reconciliation of {found.at:%Y-%m-%d %H:%M} UTC was acted on")
    graph = context.repository_def.asset_graph if context.repository_def else None
    # They differ again in the next reconciliation, if they still do.
    taken = hours_being_loaded(context.instance) | _hours_of_backfills(context.instance, graph)
    wanted = without_hours(found, taken | asked.in_vain(found))
    requests = requests_for(wanted, taken)
    skipped = None if requests else SkipReason("nothing is to be loaded")
    return SensorResult(
        run_requests=requests,
        skip_reason=skipped,
        cursor=asked.and_now(found, wanted).model_dump_json(),
    )


class Asked(BaseModel):
    """What the sensor keeps: the reconciliation it acted on, and what it requested of it and why.

    An hour that differs in the very way in which it differed when it was requested was not helped
    by that. It is requested again some hours later, and stays in the checks until then.
    """

    reconciliation: str = ""
    hours: dict[AwareDatetime, tuple[str, AwareDatetime]] = {}

    def in_vain(self, found: Reconciliation) -> set[datetime]:
        """Return the hours that were requested some hours ago and differ as they did."""
        return {
            hour
            for hour, (way, at) in self.hours.items()
            if way == _way(found, hour) and found.at - at < _PATIENCE
        }

    def and_now(self, found: Reconciliation, wanted: Reconciliation) -> "Asked":
        """Return what to keep after the hours of a reconciliation were requested."""
        kept = {hour: self.hours[hour] for hour in self.in_vain(found)}
        requested = {*wanted.drifted, *wanted.stale, *wanted.damaged}
        new = {hour: (_way(found, hour), found.at) for hour in requested}
        return Asked(reconciliation=found.id, hours={**kept, **new})


def _way(found: Reconciliation, hour: datetime) -> str:
    """Return in which way an hour differs; '' where it does not."""
    if hour in found.stale:
        return f"billing {found.billing_versions}, prices {found.prices}"
    differs = hour in found.drifted or hour in found.damaged
    return xxh3_64_hexdigest(repr(found.differences[hour]).encode()) if differs else ""


def requests_for(found: Reconciliation, taken: Collection[datetime]) -> list[RunRequest]:
    """Return the runs that put hours right.

    An hour that the source lost traces of is never read from the source again. Its billing is
    renewed, and its rows in ClickHouse are repaired: both come from its batch.

    Args:
        found: what differs.
        taken: hours that something else is loading, which are not even covered.
    """
    drifted, stale, damaged = set(found.drifted), set(found.stale), set(found.damaged)
    others = set(found.loaded).difference(taken, drifted, stale, damaged)
    return list(
        chain(
            (
                _request(found, "changed", hours, {"only_changed": True}, None)
                for hours in ranges(drifted, others.difference(found.pruned))
            ),
            (
                # The billing table was read by the reconciliation: no database is needed.
                _request(
                    found,
                    "billing",
                    hours,
                    {"enrich_only": True},
                    (TRACE_BATCHES, LLM_TRACES, LLM_USAGE_HOURLY),
                )
                for hours in ranges(stale, others, gap=_RESTATED_GAP)
            ),
            (
                _request(found, "table", hours, {}, (LLM_TRACES, LLM_USAGE_HOURLY))
                for hours in ranges(damaged, others)
            ),
        )
    )


def _request(
    found: Reconciliation,
    reason: str,
    window: Window,
    config: dict[str, bool],
    assets: tuple[str, ...] | None,
) -> RunRequest:
    first, last = key_of(window.start), key_of(window.last)
    return RunRequest(
        run_key=f"{found.id}:{reason}:{first}:{last}",
        run_config={"ops": {TRACE_BATCHES: {"config": config}}} if config else {},
        # None: the whole job.
        asset_selection=[AssetKey(asset) for asset in assets] if assets else None,
        tags={RANGE_START_TAG: first, RANGE_END_TAG: last, "llm_traces/reason": reason},
    )


def _hours_of_backfills(
    instance: DagsterInstance, graph: BaseAssetGraph[Any] | None
) -> set[datetime]:
    """Return the hours that backfills have yet to load."""
    going_on = [BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING, BulkActionStatus.FAILING]
    hours: set[datetime] = set()
    for backfill in instance.get_backfills(BulkActionsFilter(statuses=going_on)):
        if not backfill.is_asset_backfill:
            hours |= {parse_hour(key) for key in backfill.partition_names or () if is_hour(key)}
        elif graph is not None:
            left = backfill.get_asset_backfill_data(
                graph
            ).get_targeted_partitions_without_materialization_status()
            hours |= {
                parse_hour(each.partition_key)
                for each in left.iterate_asset_partitions()
                if each.partition_key and is_hour(each.partition_key)
            }
    return hours


daily_usage_report = define_asset_job(
    "daily_usage_report",
    selection=AssetSelection.assets(usage_report).without_checks(),
    executor_def=in_process_executor,
    description="Write the report of a day.",
)

daily_usage_report_schedule = build_schedule_from_partitioned_job(
    daily_usage_report,
    name="daily_usage_report_schedule",
    hour_of_day=1,  # the day's last hour is loaded before, whatever the minute of its schedule
    minute_of_hour=30,
    default_status=DefaultScheduleStatus.RUNNING,
    description="Writes the report of the day before.",
)


@op(pool="clickhouse")
def drop_what_is_past_the_retention(context: OpExecutionContext, pipeline: Pipeline) -> None:
    """Drop old partitions of ClickHouse and old batches, where a retention is set."""
    with pipeline.clickhouse() as database:
        dropped = drop_past_retention(
            database, pipeline.store(), Settings.from_environment(), datetime.now(UTC)
        )
    context.add_output_metadata(
        {
            "dropped partitions": list(dropped.partitions),
            "dropped batches": [key_of(hour) for hour in dropped.hours],
        }
    )


@job(
    executor_def=in_process_executor,
    description="Drop what is older than LLM_TRACES_RETENTION_DAYS and TRACE_BATCH_RETENTION_DAYS.",
)
def apply_retention() -> None:
    """Run the one step."""
    drop_what_is_past_the_retention()


@schedule(
    job=apply_retention,
    name="apply_retention_schedule",
    cron_schedule="40 0 * * *",  # past midnight, a day lies before the line
    execution_timezone="UTC",
    default_status=DefaultScheduleStatus.RUNNING,
    description="Drops what is past the retention, once a day; nothing where none is set.",
)
def apply_retention_schedule(_: ScheduleEvaluationContext) -> RunRequest | SkipReason:
    """Ask for a run where a retention is set."""
    settings = Settings.from_environment()
    if settings.retention_days is None and settings.batch_retention_days is None:
        return SkipReason("neither LLM_TRACES_RETENTION_DAYS nor TRACE_BATCH_RETENTION_DAYS is set")
    return RunRequest()
