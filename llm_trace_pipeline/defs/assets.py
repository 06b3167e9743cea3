"""The assets: thin functions over extraction and load, one hour of data per partition."""

import logging
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

from dagster import (
    AssetCheckEvaluation,
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetDep,
    AssetExecutionContext,
    AssetMaterialization,
    AssetSpec,
    BackfillPolicy,
    BetaWarning,
    Config,
    DagsterEventType,
    Failure,
    MaterializeResult,
    MetadataValue,
    TimeWindowPartitionMapping,
    asset,
)
from dagster._core.storage.tags import PARENT_RUN_ID_TAG, RESUME_RETRY_TAG
from pydantic import Field

from llm_trace_pipeline.batches.enrich import enrich_hour
from llm_trace_pipeline.batches.extract import capture_billing, extract_hour
from llm_trace_pipeline.batches.store import Manifest
from llm_trace_pipeline.clickhouse.cluster import loader_of
from llm_trace_pipeline.clickhouse.rollup import RollupResult, roll_up
from llm_trace_pipeline.clickhouse.upsert import LoadResult
from llm_trace_pipeline.defs.checks import (
    BATCH_CHECKS,
    LLM_TRACES,
    LLM_USAGE_HOURLY,
    ROLLUP_CHECKS,
    TABLE_CHECKS,
    TRACE_BATCHES,
    Finding,
    check_batch,
    check_load,
    check_rollup,
)
from llm_trace_pipeline.defs.partitions import DAILY, HOURLY
from llm_trace_pipeline.defs.stores import Pipeline
from llm_trace_pipeline.errors import PipelineError
from llm_trace_pipeline.hours import HOUR, HOURS_PER_RUN, Window, by_day, key_of
from llm_trace_pipeline.reports.spend import Days, figures_of, page_of
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.source.postgres import SourceOfHours
from llm_trace_pipeline.source.standby import wait_until_replayed
from llm_trace_pipeline.trace.tally import EXAMPLES
from llm_trace_pipeline.upkeep.retention import line_before

# Backfill policies are what makes a backfill affordable; their status needs no line per import.
warnings.filterwarnings("ignore", category=BetaWarning)

# A run costs seconds of start-up, so a backfill gives each run a day of hours; those that succeeded
# stay done when another one fails.
_A_DAY_PER_RUN = BackfillPolicy.multi_run(max_partitions_per_run=HOURS_PER_RUN)

# Dagster shows this logger's lines in the run (see dagster.yaml), commands print them.
_LOG = logging.getLogger("llm_trace_pipeline")

Metadata = dict[str, Any]
HourOutcome = tuple[Metadata, Sequence[Finding]]
ProcessHours = Callable[[Sequence[datetime]], Mapping[datetime, HourOutcome]]

provider_traces = AssetSpec(
    "provider_traces",
    group_name="llm_traces",
    kinds={"postgres"},
    description="Traces of LLM calls in the operational PostgreSQL, written by the agent server.",
)


@asset(group_name="llm_traces", kinds={"postgres", "parquet"}, pool="billing_history")
def billing_history(pipeline: Pipeline) -> MaterializeResult[None]:
    """Every version of an organization's billing details ever seen; one row per version."""
    captured = capture_billing(pipeline.source(), pipeline.store())
    return MaterializeResult(
        metadata={
            "versions": captured.history.num_rows,
            "new versions": captured.new,
            "organizations": len(captured.history.column("organization_id").unique()),
            "organizations with versions set aside": len(captured.set_aside),
            "set aside, such as": MetadataValue.json(list(captured.set_aside[:EXAMPLES])),
        }
    )


class ExtractConfig(Config):
    """Run config of ``trace_batches``."""

    enrich_only: bool = Field(
        default=False,
        description="Write the batch anew from the old one, with billing and prices as they are "
        "known now, without reading the operational database.",
    )
    only_changed: bool = Field(
        default=False,
        description="Leave an hour alone whose ledger, billing and prices are as its batch says.",
    )
    accept_loss: bool = Field(
        default=False,
        description="Take what the source has, although it lost traces that it once had.",
    )


@asset(
    name=TRACE_BATCHES,
    partitions_def=HOURLY,
    backfill_policy=_A_DAY_PER_RUN,
    deps=[provider_traces, billing_history],
    check_specs=BATCH_CHECKS,
    group_name="llm_traces",
    kinds={"parquet"},
    pool="operational_database",
)
def trace_batches(
    context: AssetExecutionContext, config: ExtractConfig, pipeline: Pipeline
) -> Iterator[MaterializeResult[None] | AssetCheckResult]:
    """One immutable Parquet batch per hour; one row per LLM call, with usage and billing."""
    store = pipeline.store()
    hours = _hours(context)
    stack = ExitStack()
    prices = pipeline.prices()
    if config.enrich_only:
        known = store.billing_history()

        def make(hour: datetime) -> Manifest:
            return enrich_hour(store, known, prices, hour)
    else:
        source = SourceOfHours(pipeline.source(), Window.of(hours))
        stack.callback(source.close)
        wait_until_replayed(source, hours[-1] + HOUR)
        # Also where this asset runs alone: a plan that changed must be known to the match.
        history = capture_billing(source, store).history
        done = _done_before(context)

        def make(hour: datetime) -> Manifest:
            return extract_hour(
                source,
                store,
                history,
                hour,
                only_changed=config.only_changed or key_of(hour) in done,
                accept_loss=config.accept_loss,
            )

    settings = Settings.from_environment()
    kept_from = line_before(settings.batch_retention_days, datetime.now(UTC))

    def process(hours: Sequence[datetime]) -> dict[datetime, HourOutcome]:
        [hour] = hours
        if kept_from and hour < kept_from:
            return {hour: _past_retention("no batch is kept", BATCH_CHECKS)}
        before = store.manifest(hour)
        manifest = make(hour)
        is_kept = before is not None and before.batch_id == manifest.batch_id
        outcome = "unchanged: the batch was kept" if is_kept else "new batch"
        return {hour: ({"outcome": outcome, **_describe_batch(manifest)}, check_batch(manifest))}

    with stack:
        yield from _materialize_hours(context, [[hour] for hour in hours], process)


class LoadConfig(Config):
    """Run config of ``llm_traces``."""

    force: bool = Field(
        default=False,
        description="Write an hour in any case, also where ClickHouse equals its batch already.",
    )


@asset(
    name=LLM_TRACES,
    partitions_def=HOURLY,
    backfill_policy=_A_DAY_PER_RUN,
    deps=[trace_batches],
    check_specs=TABLE_CHECKS,
    group_name="llm_traces",
    kinds={"clickhouse"},
    # Uploads to one partition must not overlap, and one process at a time can hold the embedded
    # engine: every step that touches ClickHouse is in this pool.
    pool="clickhouse",
)
def llm_traces(
    context: AssetExecutionContext, config: LoadConfig, pipeline: Pipeline
) -> Iterator[MaterializeResult[None] | AssetCheckResult]:
    """The ClickHouse table, exact without FINAL; one row per LLM call."""
    store = pipeline.store()
    hours = _hours(context)
    awaiting = set(hours)
    with pipeline.clickhouse() as database:
        settings, now = Settings.from_environment(), datetime.now(UTC)
        kept_from = line_before(settings.retention_days, now)
        batches_kept_from = line_before(settings.batch_retention_days, now)
        loader = loader_of(database, store, kept_from)

        def load(hours: Sequence[datetime]) -> dict[datetime, HourOutcome]:
            outcomes: dict[datetime, HourOutcome] = {}
            for hour in hours:
                if kept_from and hour < kept_from:
                    outcomes[hour] = _past_retention("not loaded", TABLE_CHECKS)
                elif batches_kept_from and hour < batches_kept_from and not store.manifest(hour):
                    outcomes[hour] = _past_retention(
                        "no batch to load; its rows are left alone", TABLE_CHECKS
                    )
            if to_load := [hour for hour in hours if hour not in outcomes]:
                for result in loader.load(to_load, frozenset(awaiting), force=config.force):
                    outcomes[result.expected.hour] = _describe_load(result), check_load(result)
            awaiting.difference_update(hours)
            return outcomes

        yield from _materialize_hours(context, loader.in_groups(hours), load)


@asset(
    name=LLM_USAGE_HOURLY,
    partitions_def=HOURLY,
    backfill_policy=_A_DAY_PER_RUN,
    deps=[llm_traces],
    check_specs=ROLLUP_CHECKS,
    group_name="llm_traces",
    kinds={"clickhouse"},
    pool="clickhouse",
)
def llm_usage_hourly(
    context: AssetExecutionContext, pipeline: Pipeline
) -> Iterator[MaterializeResult[None] | AssetCheckResult]:
    """What llm_traces adds up to; one row per hour, organization, agent, model, plan and so on."""
    settings = Settings.from_environment()
    kept_from = line_before(settings.retention_days, datetime.now(UTC))
    with pipeline.clickhouse() as database:

        def roll(hours: Sequence[datetime]) -> dict[datetime, HourOutcome]:
            past = [hour for hour in hours if kept_from and hour < kept_from]
            results = roll_up(
                database, pipeline.store(), [hour for hour in hours if hour not in past], kept_from
            )
            by_hour: dict[datetime, list[RollupResult]] = {}
            for result in results:
                by_hour.setdefault(result.expected.hour, []).append(result)
            return {hour: _past_retention("not rolled up", ROLLUP_CHECKS) for hour in past} | {
                hour: (_describe_rollup(of_hour), check_rollup(of_hour))
                for hour, of_hour in by_hour.items()
            }

        yield from _materialize_hours(context, by_day(_hours(context)), roll)


@asset(
    partitions_def=DAILY,
    deps=[
        AssetDep(
            llm_traces,
            # The first day may begin before the first hour.
            partition_mapping=TimeWindowPartitionMapping(
                allow_nonexistent_upstream_partitions=True
            ),
        )
    ],
    group_name="llm_traces",
    kinds={"html"},
    pool="clickhouse",
)
def usage_report(context: AssetExecutionContext, pipeline: Pipeline) -> MaterializeResult[None]:
    """What a day cost and whom, as ClickHouse has it now; one HTML page per day."""
    day = context.partition_time_window.start.date()
    store = pipeline.store()
    with pipeline.clickhouse() as database:
        figures = figures_of(database, store, Days(day, day))
    page = page_of(figures, datetime.now(UTC))
    headline = figures.headline
    return MaterializeResult(
        metadata={
            "page": store.keep_report(day, page),
            "spend in USD": str(headline["spend_usd"]),
            "by own keys in USD": str(headline["byok_usd"]),
            "calls": headline["calls"],
            "calls without price": headline["unpriced_calls"],
            "errors": headline["errors"],
            "tokens": headline["tokens"],
            "organizations": headline["organizations"],
            "hours with calls": headline["hours"],
        }
    )


def _past_retention(outcome: str, checks: Sequence[AssetCheckSpec]) -> HourOutcome:
    """Return the outcome of an hour that is dropped, or about to be: it must not come back."""
    metadata = {"outcome": f"past the retention: {outcome}", "rows": 0}
    return metadata, [Finding(check.name, True, metadata) for check in checks]


def _done_before(context: AssetExecutionContext) -> set[str]:
    """Return the hours that the run which this one resumes had finished in this step.

    A run that was killed has recorded no materialization, but the checks of each finished hour.
    """
    tags = context.run.tags
    if RESUME_RETRY_TAG not in tags:
        return set()
    found = context.instance.get_records_for_run(
        tags[PARENT_RUN_ID_TAG], of_type=DagsterEventType.ASSET_CHECK_EVALUATION
    )
    evaluations = [
        record.event_log_entry.get_dagster_event().asset_check_evaluation_data
        for record in found.records
    ]
    of_step = [each for each in evaluations if each.asset_key == context.asset_key]
    failed = {each.partition for each in of_step if each.blocking and not each.passed}
    return {each.partition for each in of_step if each.partition} - failed


def _hours(context: AssetExecutionContext) -> list[datetime]:
    window = context.partition_time_window
    return Window(window.start, window.end).hours


def _materialize_hours(
    context: AssetExecutionContext,
    groups: Sequence[Sequence[datetime]],
    process: ProcessHours,
) -> Iterator[MaterializeResult[None] | AssetCheckResult]:
    """Process the run's hours, and record each by itself.

    An hour that fails, or whose blocking check fails, is not recorded as materialized; the others
    are, and then the step fails with the list of what failed.

    Args:
        context: of the run.
        groups: the hours, those together that are processed together.
        process: returns the outcome of each hour.
    """
    done: dict[str, Metadata] = {}
    failed: dict[str, str] = {}
    findings: list[Finding] = []
    for hour, seconds, outcome in _process(groups, process):
        key = key_of(hour)
        if isinstance(outcome, PipelineError):
            failed[key] = str(outcome)
            _LOG.error(str(outcome))
            continue
        metadata, found = outcome
        for finding in found:
            _log_finding(context, key, finding)
            if not finding.passed and finding.severity is AssetCheckSeverity.ERROR:
                failed[key] = f"hour {key}: check {finding.check} failed: {finding.metadata}"
        findings += found
        if key not in failed:
            done[key] = {
                **metadata,
                "duration (s)": round(seconds, 3),
                "rows/s": round(metadata["rows"] / max(seconds, 1e-3)),
            }
            _LOG.info(
                "%s: hour %s: %s rows in %.2f s",
                context.asset_key.to_user_string(),
                key,
                metadata["rows"],
                seconds,
            )
    if failed:
        for key, metadata in done.items():
            context.log_event(
                AssetMaterialization(context.asset_key, partition=key, metadata=metadata)
            )
        raise Failure(
            f"{len(failed)} of {sum(map(len, groups))} hours failed; the others are done as far as "
            f"{context.asset_key.to_user_string()}:\n" + "\n".join(failed.values()),
            metadata={"failed hours": list(failed)},
        )
    for key, metadata in done.items():
        context.add_asset_metadata(metadata, partition_key=key)
    yield MaterializeResult()
    yield from _summaries(findings)


def _process(
    groups: Sequence[Sequence[datetime]], process: ProcessHours
) -> Iterator[tuple[datetime, float, HourOutcome | PipelineError]]:
    """Return how each hour went, and its share of the seconds that its group took."""
    waiting = deque(groups)
    while waiting:
        group = waiting.popleft()
        started = time.monotonic()
        try:
            outcomes = process(group)
        except PipelineError as error:
            if len(group) > 1:  # one by one, so that only what is wrong fails
                waiting.extendleft([hour] for hour in reversed(group))
            else:
                yield group[0], 0.0, error
            continue
        seconds = (time.monotonic() - started) / len(group)
        for hour, outcome in outcomes.items():
            yield hour, seconds, outcome


def _log_finding(context: AssetExecutionContext, key: str, finding: Finding) -> None:
    """Record a check's outcome for one hour; a step may return only one result per check."""
    context.log_event(
        AssetCheckEvaluation(
            asset_key=context.asset_key,
            check_name=finding.check,
            passed=finding.passed,
            severity=finding.severity,
            metadata=_as_metadata(finding.metadata),
            partition=key,
        )
    )


def _summaries(findings: Sequence[Finding]) -> Iterator[AssetCheckResult]:
    """Return one result per check: all hours together."""
    for name in dict.fromkeys(finding.check for finding in findings):
        of_check = [finding for finding in findings if finding.check == name]
        worst = min(of_check, key=lambda finding: finding.passed)
        yield AssetCheckResult(
            check_name=name,
            passed=worst.passed,
            severity=worst.severity,
            metadata={
                "hours": len(of_check),
                "hours that failed": sum(not finding.passed for finding in of_check),
                **_as_metadata(worst.metadata),
            },
        )


def _as_metadata(values: Mapping[str, Any]) -> Metadata:
    return {
        name: MetadataValue.json(value) if isinstance(value, list) else value
        for name, value in values.items()
    }


def _describe_load(result: LoadResult) -> Metadata:
    return {
        "outcome": "loaded" if result.was_written else "unchanged: nothing was written",
        **_describe_batch(result.expected),
        "repaired hours": [key_of(hour) for hour in result.repaired_hours],
    }


def _describe_rollup(results: Sequence[RollupResult]) -> Metadata:
    """Return the figures of an hour's roll-up; in a cluster, of all shards together."""
    was_written = any(result.was_written for result in results)
    repaired = {hour for result in results for hour in result.repaired_hours}

    totals = {
        name: sum(result.found[name] for result in results)
        for name in ("rows", "calls", "total_tokens", "cost_usd", "unpriced_calls")
    }
    return {
        "outcome": "rolled up" if was_written else "unchanged: nothing was written",
        "rows": totals["rows"],
        "calls": totals["calls"],
        "total tokens": totals["total_tokens"],
        "cost in USD": str(totals["cost_usd"]),
        "calls without price": totals["unpriced_calls"],
        "repaired hours": [key_of(hour) for hour in sorted(repaired)],
    }


def _describe_batch(manifest: Manifest) -> Metadata:
    """Return the figures of an hour that the UI shows."""
    metadata: Metadata = {
        "rows": manifest.rows,
        "bytes": manifest.bytes,
        "payload bytes": manifest.payload_bytes,
        "parts": len(manifest.parts),
        "unreadable rows": manifest.unreadable,
        "unreadable ids": MetadataValue.json(list(manifest.unreadable_ids)),
        "soft-deleted rows": manifest.source_deleted,
        "folded rows": manifest.source_folded,
        "erased rows": manifest.source_erased,
        "billing matches": MetadataValue.json(manifest.billing_matches),
        "tokens": MetadataValue.json(manifest.tokens),
        "cost in USD": str(manifest.cost_usd),
        "calls without price": manifest.unpriced,
        "batch": manifest.batch_id,
    }
    if manifest.min_created_at and manifest.max_created_at:
        metadata["min created_at"] = MetadataValue.timestamp(manifest.min_created_at)
        metadata["max created_at"] = MetadataValue.timestamp(manifest.max_created_at)
    return metadata
