"""The code location: everything that Dagster shows and runs."""

import warnings

import dagster as dg

from llm_trace_pipeline.defs.alerts import alerts_sensor
from llm_trace_pipeline.defs.assets import (
    billing_history,
    llm_traces,
    llm_usage_hourly,
    observe_source,
    trace_batches,
    usage_report,
)
from llm_trace_pipeline.defs.checks import reconciliation
from llm_trace_pipeline.defs.freshness import freshness, freshness_sensor
from llm_trace_pipeline.defs.jobs import (
    apply_retention,
    apply_retention_schedule,
    daily_usage_report,
    daily_usage_report_schedule,
    hourly_llm_traces,
    hourly_llm_traces_schedule,
    reconcile_hours,
    reconcile_hours_schedule,
    repair_hours,
    restore_hours,
)
from llm_trace_pipeline.defs.sensors import changed_hours_sensor, other_hours_sensor
from llm_trace_pipeline.defs.stores import Stores

with warnings.catch_warnings():
    warnings.simplefilter("ignore", dg.BetaWarning)
    # With links to the code that makes them.
    _assets = dg.with_source_code_references(
        [
            observe_source,
            billing_history,
            trace_batches,
            llm_traces,
            llm_usage_hourly,
            usage_report,
        ]
    )

defs = dg.Definitions(
    assets=_assets,
    asset_checks=[reconciliation, freshness],
    jobs=[
        hourly_llm_traces,
        repair_hours,
        restore_hours,
        reconcile_hours,
        apply_retention,
        daily_usage_report,
    ],
    schedules=[
        hourly_llm_traces_schedule,
        reconcile_hours_schedule,
        apply_retention_schedule,
        daily_usage_report_schedule,
    ],
    sensors=[changed_hours_sensor, other_hours_sensor, alerts_sensor, freshness_sensor],
    resources={"stores": Stores()},
    executor=dg.in_process_executor,
)
