"""The code location: everything that Dagster shows and runs."""

from dagster import Definitions, in_process_executor

from llm_trace_pipeline.assets import billing_history, llm_traces, provider_traces, trace_batches
from llm_trace_pipeline.automation import hourly_llm_traces, hourly_llm_traces_schedule
from llm_trace_pipeline.resources import Pipeline

defs = Definitions(
    assets=[provider_traces, billing_history, trace_batches, llm_traces],
    jobs=[hourly_llm_traces],
    schedules=[hourly_llm_traces_schedule],
    resources={"pipeline": Pipeline()},
    executor=in_process_executor,
)
