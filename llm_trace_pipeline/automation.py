"""What runs by itself: the job of an hour, and the schedule that loads each hour once it closed."""

from dagster import (
    DefaultScheduleStatus,
    build_schedule_from_partitioned_job,
    define_asset_job,
    in_process_executor,
)

from llm_trace_pipeline.assets import billing_history, llm_traces, trace_batches
from llm_trace_pipeline.partitions import SCHEDULE_MINUTE

hourly_llm_traces = define_asset_job(
    "hourly_llm_traces",
    selection=[billing_history, trace_batches, llm_traces],
    # A process per step would cost seconds of start-up each.
    executor_def=in_process_executor,
    description="Load an hour: from the operational database to a Parquet batch to ClickHouse.",
)

hourly_llm_traces_schedule = build_schedule_from_partitioned_job(
    hourly_llm_traces,
    name="hourly_llm_traces_schedule",
    minute_of_hour=SCHEDULE_MINUTE,
    default_status=DefaultScheduleStatus.RUNNING,
    description="Loads the hour that closed.",
)
