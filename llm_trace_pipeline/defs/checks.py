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
    PROVIDER_TRACES,
    TRACE_BATCHES,
    hours_being_loaded,
    hours_of_run,
)
from llm_trace_pipeline.defs.source import Newest, newest_of
from llm_trace_pipeline.defs.stores import Stores
from llm_trace_pipeline.hours import key_of, ranges
from llm_trace_pipeline.trace.tally import EXAMPLES
from llm_trace_pipeline.upkeep.reconcile import (
    Reconciliation,
    hours_to_reconcile,
    read_reconciliation,
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
    said: str  # what was compared, with both numbers
    metadata: Mapping[str, Any]
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR


def check_batch(manifest: Manifest) -> list[Finding]:
    """Return what the checks of ``trace_batches`` say of an hour."""
    without_billing = manifest.organizations_without_billing
    return [
        Finding(
            "rows_match_source",
            manifest.is_complete,
            _equal(manifest.expected_rows, "rows of the source", manifest.rows, "of the batch")
            + ("" if manifest.is_complete else f", {manifest.distinct_ids:,} ids"),
            {
                "source rows": manifest.expected_rows,
                "batch rows": manifest.rows,
                "distinct ids": manifest.distinct_ids,
            },
        ),
        Finding(
            "billing_is_known",
            without_billing == 0,
            f"{without_billing:,} organizations without billing"
            + _such_as(manifest.organizations_without_billing_ids),
            {
                "organizations without billing": without_billing,
                "examples": list(manifest.organizations_without_billing_ids),
            },
            dg.AssetCheckSeverity.WARN,
        ),
        Finding(
            "prices_are_known",
            manifest.unpriced == 0,
            f"{manifest.unpriced:,} of {manifest.rows:,} calls without price"
            + _such_as(manifest.unpriced_models),
            {
                "calls without price": manifest.unpriced,
                "models, such as": list(manifest.unpriced_models),
            },
            dg.AssetCheckSeverity.WARN,
        ),
        Finding(
            "usage_is_known",
            manifest.unmetered == 0,
            f"{manifest.unmetered:,} of {manifest.rows:,} calls without usage"
            + _such_as(manifest.unmetered_models),
            {
                "calls without usage": manifest.unmetered,
                "models, such as": list(manifest.unmetered_models),
            },
            dg.AssetCheckSeverity.WARN,
        ),
        Finding(
            "steps_have_traces",
            manifest.steps_without_trace == 0,
            f"{manifest.steps_without_trace:,} steps without trace, "
            f"{manifest.source_rows:,} traces",
            {"steps without trace": manifest.steps_without_trace, "traces": manifest.source_rows},
            dg.AssetCheckSeverity.WARN,
        ),
    ]


def check_load(result: Loaded) -> list[Finding]:
    """Return what the checks of ``llm_traces`` say of an hour."""
    expected, rows = int(result.expected.figures["rows"]), int(result.found["rows"])
    ids = int(result.found["distinct ids"])
    return [
        Finding(
            "rows_match_batch",
            not result.differences,
            _equal(expected, "rows of the batch", rows, "of ClickHouse")
            + "".join(f"; {text}" for text in result.differences),
            {
                "batch rows": expected,
                "ClickHouse rows": rows,
                "differences": list(result.differences),
            },
        ),
        Finding(
            "ids_are_unique",
            ids == rows,
            _equal(rows, "rows", ids, "ids"),
            {"rows": rows, "distinct ids": ids},
        ),
    ]


def check_rollup(results: Sequence[Loaded]) -> list[Finding]:
    """Return what the check of ``llm_usage_hourly`` says of an hour, of all shards of it."""
    differences = [text for result in results for text in result.differences]
    expected, found = (
        sum(int(figures["calls"]) for figures in of_shards)
        for of_shards in (
            [result.expected.figures for result in results],
            [result.found for result in results],
        )
    )
    return [
        Finding(
            "rollup_matches_traces",
            not differences,
            _equal(expected, "calls of llm_traces", found, "of the roll-up")
            + "".join(f"; {text}" for text in differences),
            {"calls": expected, "differences": differences},
        )
    ]


def _equal(one: int, name: str, other: int, of_other: str) -> str:
    return f"{one:,} {name} {'=' if one == other else '≠'} {other:,} {of_other}"


def _such_as(examples: Sequence[str]) -> str:
    return f", such as {', '.join(examples)}" if examples else ""


# Some of the checks may stay without a result, which is what can_subset says.
@dg.multi_asset_check(
    name="reconciliation", specs=RECONCILIATION_CHECKS, pool="clickhouse", can_subset=True
)
def reconciliation(
    context: dg.AssetCheckExecutionContext, stores: Stores
) -> Iterator[dg.AssetCheckResult]:
    """Compare the hours of the last days in the source, in the batches and in ClickHouse."""
    if hours_of_run(context.run.tags):
        # Dagster adds the checks of an asset to what is materialized by hand. What they found last
        # still holds, and must not give way to "skipped".
        selected = {key.name for key in context.selected_asset_check_keys}
        if last := read_reconciliation(stores.batches().files):
            for result in check_reconciliation(last):
                if result.check_name in selected:
                    yield result
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


def check_reconciliation(
    found: Reconciliation, compared: int | None = None
) -> Iterator[dg.AssetCheckResult]:
    """Return what the checks of all hours together say.

    Args:
        found: the reconciliation.
        compared: how many hours were compared; None: it is an earlier reconciliation.
    """
    of_source = [*found.drifted, *found.stale, *found.unreadable]
    yield _result(
        found,
        compared,
        of_source,
        "source_matches_batches",
        "differ from the source; changed_hours_sensor loads them",
        {
            "hours that the source has other rows of": _describe(found, found.drifted),
            "hours with billing or prices restated since": _describe(found, found.stale),
            "hours that cannot be compared": _describe(found, found.unreadable),
        },
    )
    yield _result(
        found,
        compared,
        found.pruned,
        "source_keeps_loaded_traces",
        "lost traces in the source; their batches and their rows in ClickHouse are kept. To lose "
        "these traces on purpose, materialize trace_batches with the run config accept_loss: true",
        {"hours that the source lost traces of": _describe(found, found.pruned)},
    )
    yield _result(
        found,
        compared,
        found.damaged,
        "clickhouse_matches_batches",
        "differ from their batch; changed_hours_sensor repairs them, and so does the command",
        {
            "hours that differ": _describe(found, found.damaged),
            "repair": dg.MetadataValue.json(repair_commands(found)),
        },
    )


def _result(
    found: Reconciliation,
    compared: int | None,
    hours: Collection[datetime],
    check: str,
    what: str,
    metadata: Mapping[str, Any],
) -> dg.AssetCheckResult:
    """Return the result of one check of all hours; what to do is said where there is something."""
    of_table = check == "clickhouse_matches_batches"
    scope = (
        f"{compared:,} hours" if compared is not None else f"as of {found.at:%Y-%m-%d %H:%M} UTC"
    )
    keys = [key_of(hour) for hour in sorted(hours)]
    more = f" and {len(keys) - EXAMPLES:,} more" if len(keys) > EXAMPLES else ""
    differ = f"{', '.join(keys[:EXAMPLES])}{more}: {what}"
    return dg.AssetCheckResult(
        check_name=check,
        asset_key=LLM_TRACES if of_table else TRACE_BATCHES,
        passed=not keys,
        severity=dg.AssetCheckSeverity.ERROR if of_table else dg.AssetCheckSeverity.WARN,
        description=f"{scope}: {differ if keys else 'none differs'}",
        metadata={**({"hours compared": compared} if compared is not None else {}), **metadata},
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
