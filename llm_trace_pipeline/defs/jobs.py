"""The jobs, and the schedules by which they run by themselves."""

from datetime import UTC, datetime
from typing import Any, TypeAlias

import dagster as dg

from llm_trace_pipeline.defs.assets import (
    billing_history,
    llm_traces,
    llm_usage_hourly,
    trace_batches,
    usage_report,
)
from llm_trace_pipeline.defs.checks import (
    BATCH_CHECKS,
    ROLLUP_CHECKS,
    TABLE_CHECKS,
    reconciliation,
)
from llm_trace_pipeline.defs.partitions import OWNERS, SCHEDULE_MINUTE
from llm_trace_pipeline.defs.runs import HOURLY_JOB, REPAIR_JOB, RESTORE_JOB, TRACE_BATCHES
from llm_trace_pipeline.defs.stores import Stores
from llm_trace_pipeline.hours import key_of
from llm_trace_pipeline.upkeep.retention import apply_retention as drop_past_retention

_Job: TypeAlias = Any  # Dagster names no type of a job of assets
_CHECKS = (*BATCH_CHECKS, *TABLE_CHECKS, *ROLLUP_CHECKS)


def _loads(
    *assets: dg.AssetsDefinition, name: str, description: str, config: dict[str, Any] | None = None
) -> _Job:
    """Return a job that materializes assets for hours.

    An asset brings all its checks along. A load needs the checks of its own hours alone.
    """
    keys = {key for asset in assets for key in asset.keys}
    checks = [spec.key for spec in _CHECKS if spec.asset_key in keys]
    return dg.define_asset_job(
        name,
        selection=dg.AssetSelection.assets(*assets).without_checks()
        | dg.AssetSelection.checks(*checks),
        config=config,
        owners=OWNERS,
        # A process per step would cost seconds of start-up each.
        executor_def=dg.in_process_executor,
        description=description,
    )


hourly_llm_traces = _loads(
    billing_history,
    trace_batches,
    llm_traces,
    llm_usage_hourly,
    name=HOURLY_JOB,
    description="Load an hour: from the operational database to a Parquet batch to ClickHouse, "
    "and roll it up.",
)

repair_hours = _loads(
    billing_history,
    trace_batches,
    llm_traces,
    llm_usage_hourly,
    name=REPAIR_JOB,
    description="Load again what differs: hours whose source, billing or prices have changed since "
    "their batch, and hours that ClickHouse does not hold as their batch says. The others are "
    "left alone.",
    config={"ops": {TRACE_BATCHES: {"config": {"only_changed": True}}}},
)

restore_hours = _loads(
    llm_traces,
    llm_usage_hourly,
    name=RESTORE_JOB,
    description="Rebuild ClickHouse from the batches. The operational database is not read.",
)

hourly_llm_traces_schedule = dg.build_schedule_from_partitioned_job(
    hourly_llm_traces,
    name="hourly_llm_traces_schedule",
    minute_of_hour=SCHEDULE_MINUTE,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Loads the hour that closed.",
)

reconcile_hours = dg.define_asset_job(
    "reconcile_hours",
    selection=dg.AssetSelection.checks(reconciliation),
    owners=OWNERS,
    executor_def=dg.in_process_executor,
    description="Compare the hours of the last days in the source, the batches and ClickHouse.",
)

reconcile_hours_schedule = dg.ScheduleDefinition(
    name="reconcile_hours_schedule",
    job=reconcile_hours,
    cron_schedule="40 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Looks for hours that are not as they should be.",
)


daily_usage_report = dg.define_asset_job(
    "daily_usage_report",
    selection=dg.AssetSelection.assets(usage_report).without_checks(),
    owners=OWNERS,
    executor_def=dg.in_process_executor,
    description="Write the report of a day.",
)

daily_usage_report_schedule = dg.build_schedule_from_partitioned_job(
    daily_usage_report,
    name="daily_usage_report_schedule",
    hour_of_day=1,  # the day's last hour is loaded before, whatever the minute of its schedule
    minute_of_hour=30,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Writes the report of the day before.",
)


@dg.op(pool="clickhouse")
def drop_what_is_past_the_retention(context: dg.OpExecutionContext, stores: Stores) -> None:
    """Drop old partitions of ClickHouse and old batches, where a retention is set."""
    # A clock that is ahead must not make rows look old: of two clocks, the earlier one counts.
    with stores.source().session() as session:
        now = min(datetime.now(UTC), session.now())
    with stores.clickhouse() as database:
        dropped = drop_past_retention(database, stores.batches(), stores.settings, now)
    context.add_output_metadata(
        {
            "dropped partitions": list(dropped.partitions),
            "dropped batches": [key_of(hour) for hour in dropped.hours],
        }
    )


@dg.job(
    owners=OWNERS,
    executor_def=dg.in_process_executor,
    description="Drop what is older than LLM_TRACES_RETENTION_DAYS and TRACE_BATCH_RETENTION_DAYS.",
)
def apply_retention() -> None:
    """Run the one step."""
    drop_what_is_past_the_retention()


@dg.schedule(
    job=apply_retention,
    name="apply_retention_schedule",
    cron_schedule="40 0 * * *",  # past midnight, a day lies before the line
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Drops what is past the retention, once a day; nothing where none is set.",
)
def apply_retention_schedule(stores: Stores) -> dg.RunRequest | dg.SkipReason:
    """Ask for a run where a retention is set."""
    settings = stores.settings
    if settings.retention_days is None and settings.batch_retention_days is None:
        return dg.SkipReason(
            "neither LLM_TRACES_RETENTION_DAYS nor TRACE_BATCH_RETENTION_DAYS is set"
        )
    return dg.RunRequest()
