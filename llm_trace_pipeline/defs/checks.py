"""The asset checks: claims about an hour, each compared exactly."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from llm_trace_pipeline.batches.history import capture_billing
from llm_trace_pipeline.batches.manifest import Manifest
from llm_trace_pipeline.batches.rules import Rules
from llm_trace_pipeline.clickhouse.loads import Loaded
from llm_trace_pipeline.defs.metadata import describe_source
from llm_trace_pipeline.defs.partitions import HOURLY
from llm_trace_pipeline.defs.runs import (
    LLM_TRACES,
    LLM_USAGE_HOURLY,
    TRACE_BATCHES,
    hours_being_loaded,
    hours_of_run,
)
from llm_trace_pipeline.defs.source import Newest, newest_of
from llm_trace_pipeline.defs.stores import Stores
from llm_trace_pipeline.hours import key_of, ranges
from llm_trace_pipeline.upkeep.reconcile import (
    Reconciliation,
    hours_to_reconcile,
    reconcile,
    record_reconciliation,
)
from llm_trace_pipeline.upkeep.retention import line_before

BATCH_CHECKS = (
    dg.AssetCheckSpec(
        "rows_match_source",
        asset=TRACE_BATCHES,
        blocking=True,
        description="The batch has one row for every trace of the source that is not deleted.",
    ),
    dg.AssetCheckSpec(
        "billing_is_known",
        asset=TRACE_BATCHES,
        description="Every organization with a call in this hour has billing details.",
    ),
    dg.AssetCheckSpec(
        "prices_are_known",
        asset=TRACE_BATCHES,
        description="Every model that was called in this hour has a price.",
    ),
    dg.AssetCheckSpec(
        "usage_is_known",
        asset=TRACE_BATCHES,
        description="Every call of this hour that answered has its tokens, or says what it cost.",
    ),
    dg.AssetCheckSpec(
        "steps_have_traces",
        asset=TRACE_BATCHES,
        description="Every step of this hour that called a model has left a trace in some hour.",
    ),
)
TABLE_CHECKS = (
    dg.AssetCheckSpec(
        "rows_match_batch",
        asset=LLM_TRACES,
        blocking=True,
        description="ClickHouse holds the rows of the batch: count, tokens and content.",
    ),
    dg.AssetCheckSpec(
        "ids_are_unique",
        asset=LLM_TRACES,
        blocking=True,
        description="No id occurs twice in this hour.",
    ),
)
ROLLUP_CHECKS = (
    dg.AssetCheckSpec(
        "rollup_matches_traces",
        asset=LLM_USAGE_HOURLY,
        blocking=True,
        description="The roll-up is what the calls of this hour in llm_traces add up to: counts, "
        "tokens, bytes and costs exactly, by whom and at whose cost; latency within 1 %.",
    ),
)
HOURLY_CHECKS = {spec.name: spec for spec in (*BATCH_CHECKS, *TABLE_CHECKS, *ROLLUP_CHECKS)}
PROVIDER_TRACES = "provider_traces"
# Of all hours of the last days together, by the job reconcile_hours.
RECONCILIATION_CHECKS = (
    dg.AssetCheckSpec(
        "is_written_to",
        asset=PROVIDER_TRACES,
        description="The source has a trace of the last 24 hours.",
    ),
    dg.AssetCheckSpec(
        "source_matches_batches",
        asset=TRACE_BATCHES,
        description="Every hour's batch holds what the source holds now, with billing and "
        "prices as they are known now. changed_hours_sensor loads the hours that differ.",
    ),
    dg.AssetCheckSpec(
        "source_keeps_loaded_traces",
        asset=TRACE_BATCHES,
        description="The source still has every trace that was loaded from it. Hours in which it "
        "lost some keep their batch and are never loaded again by themselves.",
    ),
    dg.AssetCheckSpec(
        "clickhouse_matches_batches",
        asset=LLM_TRACES,
        description="ClickHouse holds the rows of every batch, count, tokens and content, and "
        "llm_usage_hourly what they add up to. changed_hours_sensor repairs the hours that differ.",
    ),
)


@dataclass(frozen=True)
class Finding:
    """The outcome of one check for one hour."""

    check: str
    passed: bool
    metadata: Mapping[str, Any]
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR


def check_batch(manifest: Manifest) -> list[Finding]:
    """Return what the checks of ``trace_batches`` say of an hour."""
    return [
        Finding(
            "rows_match_source",
            manifest.is_complete,
            {
                "source rows": manifest.expected_rows,
                "batch rows": manifest.rows,
                "distinct ids": manifest.distinct_ids,
            },
        ),
        Finding(
            "billing_is_known",
            manifest.organizations_without_billing == 0,
            {
                "organizations without billing": manifest.organizations_without_billing,
                "examples": list(manifest.organizations_without_billing_ids),
            },
            dg.AssetCheckSeverity.WARN,
        ),
        Finding(
            "prices_are_known",
            manifest.unpriced == 0,
            {
                "calls without price": manifest.unpriced,
                "models, such as": list(manifest.unpriced_models),
            },
            dg.AssetCheckSeverity.WARN,
        ),
        Finding(
            "usage_is_known",
            manifest.unmetered == 0,
            {
                "calls without usage": manifest.unmetered,
                "models, such as": list(manifest.unmetered_models),
            },
            dg.AssetCheckSeverity.WARN,
        ),
        Finding(
            "steps_have_traces",
            manifest.steps_without_trace == 0,
            {"steps without trace": manifest.steps_without_trace, "traces": manifest.source_rows},
            dg.AssetCheckSeverity.WARN,
        ),
    ]


def check_load(result: Loaded) -> list[Finding]:
    """Return what the checks of ``llm_traces`` say of an hour."""
    return [
        Finding(
            "rows_match_batch",
            not result.differences,
            {
                "batch rows": result.expected.figures["rows"],
                "ClickHouse rows": result.found["rows"],
                "differences": list(result.differences),
            },
        ),
        Finding(
            "ids_are_unique",
            result.found["distinct ids"] == result.found["rows"],
            {"rows": result.found["rows"], "distinct ids": result.found["distinct ids"]},
        ),
    ]


def check_rollup(results: Sequence[Loaded]) -> list[Finding]:
    """Return what the check of ``llm_usage_hourly`` says of an hour, of all shards of it."""
    differences = [text for result in results for text in result.differences]
    return [
        Finding(
            "rollup_matches_traces",
            not differences,
            {
                "calls": sum(int(result.expected.figures["calls"]) for result in results),
                "differences": differences,
            },
        )
    ]


# Some of the checks may stay without a result, which is what can_subset says.
@dg.multi_asset_check(
    name="reconciliation", specs=RECONCILIATION_CHECKS, pool="clickhouse", can_subset=True
)
def reconciliation(
    context: dg.AssetCheckExecutionContext, stores: Stores
) -> Iterator[dg.AssetCheckResult]:
    """Compare the hours of the last days in the source, in the batches and in ClickHouse."""
    if hours_of_run(context.run.tags):
        # Dagster adds the checks of an asset to what is materialized by hand; an hour's load has
        # checks of its own.
        context.log.info("Left to the job reconcile_hours.")
        return
    store, source = stores.batches(), stores.source()
    rules = Rules.of(stores.settings, capture_billing(source, store.files).history)
    settings, now = stores.settings, datetime.now(UTC)
    kept_from, batches_kept_from = (
        line_before(days, now) for days in (settings.retention_days, settings.batch_retention_days)
    )
    start = datetime.fromtimestamp(HOURLY.start.timestamp(), UTC)
    first = max(start, kept_from, batches_kept_from)
    hours = hours_to_reconcile(store, first, settings.reconcile_days, now)
    loading = hours_being_loaded(context.instance)
    newest = newest_of(source)
    observed = dg.AssetObservation(PROVIDER_TRACES, metadata=describe_source(newest))
    context.op_execution_context.log_event(observed)
    yield check_newest(newest)
    found = reconcile(source, store, stores.clickhouse, hours, rules, kept_from)
    found = without_hours(found, loading | hours_being_loaded(context.instance))
    record_reconciliation(store.files, found)
    yield from check_reconciliation(found, len(hours))


def check_newest(newest: Newest) -> dg.AssetCheckResult:
    """Return whether the source is written to."""
    lag = newest.lag and newest.lag - newest.lag % timedelta(seconds=1)
    return dg.AssetCheckResult(
        check_name="is_written_to",
        asset_key=PROVIDER_TRACES,
        passed=newest.at is not None,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{newest.rows:,} traces in a day, the newest {lag} old"
        if newest.at
        else "no trace in a day: does the agent server still write to this database?",
        metadata=describe_source(newest),
    )


def without_hours(found: Reconciliation, hours: Collection[datetime]) -> Reconciliation:
    """Leave hours out of a reconciliation; the next one tells about them."""
    kept = {
        name: tuple(hour for hour in getattr(found, name) if hour not in hours)
        for name in ("drifted", "stale", "damaged", "pruned", "loaded")
    }
    differences = {hour: text for hour, text in found.differences.items() if hour not in hours}
    return found.model_copy(update={**kept, "differences": differences})


def check_reconciliation(found: Reconciliation, compared: int) -> Iterator[dg.AssetCheckResult]:
    """Return what the checks of all hours together say."""
    yield dg.AssetCheckResult(
        check_name="source_matches_batches",
        asset_key=TRACE_BATCHES,
        passed=not (found.drifted or found.stale or found.unreadable),
        severity=dg.AssetCheckSeverity.WARN,
        description="changed_hours_sensor loads the hours that differ.",
        metadata={
            "hours compared": compared,
            "hours that the source has other rows of": _describe(found, found.drifted),
            "hours with billing or prices restated since": _describe(found, found.stale),
            "hours that cannot be compared": _describe(found, found.unreadable),
        },
    )
    yield dg.AssetCheckResult(
        check_name="source_keeps_loaded_traces",
        asset_key=TRACE_BATCHES,
        passed=not found.pruned,
        severity=dg.AssetCheckSeverity.WARN,
        description="Their batches and their rows in ClickHouse are kept. To lose these traces on "
        "purpose, materialize trace_batches with the run config accept_loss: true.",
        metadata={
            "hours compared": compared,
            "hours that the source lost traces of": _describe(found, found.pruned),
        },
    )
    yield dg.AssetCheckResult(
        check_name="clickhouse_matches_batches",
        asset_key=LLM_TRACES,
        passed=not found.damaged,
        severity=dg.AssetCheckSeverity.ERROR,
        description="changed_hours_sensor repairs these hours; so does the command.",
        metadata={
            "hours compared": compared,
            "hours that differ": _describe(found, found.damaged),
            "repair": dg.MetadataValue.json(repair_commands(found)),
        },
    )


def repair_commands(found: Reconciliation) -> list[str]:
    """Return what makes ClickHouse hold its batches again."""
    return [
        f"make restore FROM={key_of(window.start)} TO={key_of(window.last)}"
        for window in ranges(found.damaged, found.loaded)
    ]


def _describe(found: Reconciliation, hours: Collection[datetime]) -> dg.MetadataValue[Any]:
    return dg.MetadataValue.json(
        {key_of(hour): list(found.differences.get(hour, ())) for hour in hours}
    )
