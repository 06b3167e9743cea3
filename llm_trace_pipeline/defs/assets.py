"""The assets: thin functions over extraction, load and roll-up. A partition is an hour or a day."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from datetime import UTC, datetime

import dagster as dg
from pydantic import Field

from llm_trace_pipeline.batches.enrich import enrich_hour
from llm_trace_pipeline.batches.extract import extract_hour
from llm_trace_pipeline.batches.history import capture_billing, read_history
from llm_trace_pipeline.batches.manifest import Manifest
from llm_trace_pipeline.batches.rules import Rules
from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.clickhouse.cluster import loader_of
from llm_trace_pipeline.clickhouse.rollup import roll_up
from llm_trace_pipeline.clickhouse.traces import in_groups
from llm_trace_pipeline.defs.checks import (
    BATCH_CHECKS,
    ROLLUP_CHECKS,
    TABLE_CHECKS,
    Finding,
    check_batch,
    check_load,
    check_rollup,
)
from llm_trace_pipeline.defs.columns import of_batch, of_history, of_rollup, of_source, of_table
from llm_trace_pipeline.defs.hourly_step import HourOutcome, materialize_hours
from llm_trace_pipeline.defs.metadata import (
    describe_batch,
    describe_load,
    describe_rollup,
    describe_source,
    table_of,
    tags_of_layer,
)
from llm_trace_pipeline.defs.partitions import DAILY, HOURLY, OWNERS, SETTINGS
from llm_trace_pipeline.defs.runs import (
    LLM_TRACES,
    LLM_USAGE_HOURLY,
    PROVIDER_TRACES,
    TRACE_BATCHES,
    hours_done_before,
    refuse_retries,
)
from llm_trace_pipeline.defs.source import newest_of
from llm_trace_pipeline.defs.stores import Stores
from llm_trace_pipeline.errors import ClickHouseError, LostTracesError, SettingsError
from llm_trace_pipeline.hours import HOURS_PER_RUN, Window, by_day, key_of
from llm_trace_pipeline.reports.spend import Days, figures_of, keep_report, page_of
from llm_trace_pipeline.source.postgres import SourceOfHours
from llm_trace_pipeline.source.standby import wait_until_replayed
from llm_trace_pipeline.trace.tally import EXAMPLES
from llm_trace_pipeline.upkeep.retention import kept_since, line_before

_LOG = logging.getLogger("llm_trace_pipeline")

# Backfill policies make a backfill affordable. Their beta status needs no warning at every import.
warnings.filterwarnings("ignore", category=dg.BetaWarning)

_ORGANIZATIONS = 20  # in what the UI shows of a report

# A run costs seconds of start-up, so a backfill gives every run a day of hours.
_A_DAY_PER_RUN = dg.BackfillPolicy.multi_run(max_partitions_per_run=HOURS_PER_RUN)

provider_traces = dg.AssetSpec(
    PROVIDER_TRACES,
    group_name="llm_traces",
    owners=OWNERS,
    kinds={"postgres"},
    tags=tags_of_layer("source", "postgres"),
    metadata={**of_source(), "dagster/table_name": PROVIDER_TRACES},
    description="Traces of LLM calls in the operational PostgreSQL, written by the agent server.",
)


@dg.multi_observable_source_asset(  # type: ignore[untyped-decorator]  # Dagster says no type
    name="observe_source", specs=[provider_traces]
)
def observe_source(stores: Stores) -> dg.ObserveResult:
    """Say what the source has of the last day, and how old its newest trace is."""
    return dg.ObserveResult(
        provider_traces.key, metadata=describe_source(newest_of(stores.source()))
    )


@dg.asset(
    group_name="llm_traces",
    owners=OWNERS,
    kinds={"postgres", "parquet"},
    tags=tags_of_layer("batch", "parquet"),
    metadata={**of_history(), "dagster/uri": f"{SETTINGS.trace_batch_uri}/billing_history"},
    pool="billing_history",
)
def billing_history(stores: Stores) -> dg.MaterializeResult[None]:
    """Every version ever seen of an organization's billing details; one row per version."""
    captured = capture_billing(stores.source(), stores.batches().files)
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": captured.history.num_rows,
            "versions": captured.history.num_rows,
            "new versions": captured.new,
            "organizations": len(captured.history.column("organization_id").unique()),
            "organizations with versions set aside": len(captured.set_aside),
            "set aside, such as": dg.MetadataValue.json(list(captured.set_aside[:EXAMPLES])),
        }
    )


class ExtractConfig(dg.Config):
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
    fail_on_loss: bool = Field(
        default=False,
        description="Fail an hour that the source lost traces of, instead of keeping its batch "
        "with a warning.",
    )

    def refuse_contradictions(self) -> None:
        """Raise a SettingsError where options say nothing together."""
        if self.enrich_only and (self.only_changed or self.accept_loss or self.fail_on_loss):
            raise SettingsError(
                "enrich_only reads no operational database, and only_changed, accept_loss and "
                "fail_on_loss say how to: set one or the other"
            )
        if self.accept_loss and self.fail_on_loss:
            raise SettingsError("accept_loss takes what fail_on_loss refuses: set one or the other")


@dg.asset(
    name=TRACE_BATCHES,
    partitions_def=HOURLY,
    backfill_policy=_A_DAY_PER_RUN,
    deps=[provider_traces, billing_history],
    check_specs=BATCH_CHECKS,
    group_name="llm_traces",
    owners=OWNERS,
    kinds={"parquet"},
    tags=tags_of_layer("batch", "parquet"),
    metadata={**of_batch(), "dagster/uri": f"{SETTINGS.trace_batch_uri}/llm_traces"},
    pool="operational_database",
)
def trace_batches(
    context: dg.AssetExecutionContext, config: ExtractConfig, stores: Stores
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """One immutable Parquet batch per hour; one row per LLM call, with usage and billing."""
    try:
        config.refuse_contradictions()
    except SettingsError:
        refuse_retries(context)
        raise
    store = stores.batches()
    window = _window(context)
    first_kept = line_before(stores.settings.batch_retention_days, datetime.now(UTC))
    with ExitStack() as stack:
        if config.enrich_only:
            rules = Rules.of(stores.settings, read_history(store.files))

            def make(hour: datetime) -> Manifest:
                return enrich_hour(store, rules, hour)
        else:
            source = stack.enter_context(closing(SourceOfHours(stores.source(), window)))
            wait_until_replayed(source, window.end)
            # Billing is read here too: where this asset runs alone, a changed plan must be known.
            rules = Rules.of(stores.settings, capture_billing(source, store.files).history)
            done = hours_done_before(context)

            def make(hour: datetime) -> Manifest:
                return extract_hour(
                    source,
                    store,
                    rules,
                    hour,
                    only_changed=config.only_changed or hour in done,
                    accept_loss=config.accept_loss,
                )

        def process(hours: Sequence[datetime]) -> dict[datetime, HourOutcome]:
            [hour] = hours
            if hour < first_kept:
                return {hour: _past_retention("no batch is kept", BATCH_CHECKS)}
            before = store.manifest(hour)
            try:
                manifest = make(hour)
            except LostTracesError as error:
                if before is None or config.fail_on_loss:
                    raise
                _LOG.warning(str(error))
                return {hour: _kept_despite_loss(before, str(error))}
            is_kept = before is not None and before.batch_id == manifest.batch_id
            outcome = "unchanged: the batch was kept" if is_kept else "new batch"
            return {hour: ({"outcome": outcome, **describe_batch(manifest)}, check_batch(manifest))}

        yield from materialize_hours(context, [[hour] for hour in window.hours], process)


class LoadConfig(dg.Config):
    """Run config of ``llm_traces``."""

    force: bool = Field(
        default=False,
        description="Write an hour in any case, also where ClickHouse equals its batch already.",
    )


@dg.asset(
    name=LLM_TRACES,
    partitions_def=HOURLY,
    backfill_policy=_A_DAY_PER_RUN,
    deps=[trace_batches],
    check_specs=TABLE_CHECKS,
    group_name="llm_traces",
    owners=OWNERS,
    kinds={"clickhouse"},
    tags=tags_of_layer("table", "clickhouse"),
    metadata={**of_table(), "dagster/table_name": f"{SETTINGS.clickhouse_database}.{LLM_TRACES}"},
    # Uploads to one partition must not overlap, and one process at a time can hold the embedded
    # engine: every step that touches ClickHouse is in this pool.
    pool="clickhouse",
)
def llm_traces(
    context: dg.AssetExecutionContext, config: LoadConfig, stores: Stores
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """The ClickHouse table, exact without FINAL; one row per LLM call."""
    store = stores.batches()
    hours = _window(context).hours
    awaiting = set(hours)
    with stores.clickhouse() as database:
        now = datetime.now(UTC)
        first_kept = kept_since(database, store, stores.settings.retention_days, now, LLM_TRACES)
        first_batch = line_before(stores.settings.batch_retention_days, now)
        loader = loader_of(database, store, first_kept)

        def load(hours: Sequence[datetime]) -> dict[datetime, HourOutcome]:
            outcomes: dict[datetime, HourOutcome] = {}
            for hour in hours:
                if hour < first_kept:
                    outcomes[hour] = _past_retention("not loaded", TABLE_CHECKS)
                elif hour < first_batch and not store.manifest(hour):
                    outcomes[hour] = _past_retention(
                        "no batch to load; its rows are left alone", TABLE_CHECKS
                    )
            if to_load := [hour for hour in hours if hour not in outcomes]:
                for result in loader.load(to_load, frozenset(awaiting), force=config.force):
                    outcomes[result.expected.hour] = describe_load(result), check_load(result)
            awaiting.difference_update(hours)
            return outcomes

        yield from materialize_hours(
            context, in_groups(store, hours), load, lambda: _answers(database)
        )


@dg.asset(
    name=LLM_USAGE_HOURLY,
    partitions_def=HOURLY,
    backfill_policy=_A_DAY_PER_RUN,
    deps=[llm_traces],
    check_specs=ROLLUP_CHECKS,
    group_name="llm_traces",
    owners=OWNERS,
    kinds={"clickhouse"},
    tags=tags_of_layer("rollup", "clickhouse"),
    metadata={
        **of_rollup(),
        "dagster/table_name": f"{SETTINGS.clickhouse_database}.{LLM_USAGE_HOURLY}",
    },
    pool="clickhouse",
)
def llm_usage_hourly(
    context: dg.AssetExecutionContext, stores: Stores
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """What llm_traces adds up to; one row per hour, organization, agent, model, plan and so on."""
    store = stores.batches()
    days, now = stores.settings.retention_days, datetime.now(UTC)
    with stores.clickhouse() as database:
        first_kept = kept_since(database, store, days, now, LLM_TRACES, LLM_USAGE_HOURLY)

        def roll(hours: Sequence[datetime]) -> dict[datetime, HourOutcome]:
            past = [hour for hour in hours if hour < first_kept]
            kept = [hour for hour in hours if hour not in past]
            results = roll_up(database, store, kept, first_kept)
            outcomes: dict[datetime, HourOutcome] = {}
            for hour in past:
                outcomes[hour] = _past_retention("not rolled up", ROLLUP_CHECKS)
            for hour in kept:
                of_hour = [result for result in results if result.expected.hour == hour]
                outcomes[hour] = describe_rollup(of_hour), check_rollup(of_hour)
            return outcomes

        yield from materialize_hours(
            context, by_day(_window(context).hours), roll, lambda: _answers(database)
        )


@dg.asset(
    partitions_def=DAILY,
    deps=[
        dg.AssetDep(
            llm_traces,
            # The first day may begin before the first hour.
            partition_mapping=dg.TimeWindowPartitionMapping(
                allow_nonexistent_upstream_partitions=True
            ),
        )
    ],
    group_name="llm_traces",
    owners=OWNERS,
    kinds={"html"},
    tags=tags_of_layer("report", "html"),
    metadata={"dagster/uri": f"{SETTINGS.trace_batch_uri}/reports"},
    pool="clickhouse",
)
def usage_report(context: dg.AssetExecutionContext, stores: Stores) -> dg.MaterializeResult[None]:
    """What a day cost and whom, as ClickHouse has it now; one HTML page per day."""
    day = context.partition_time_window.start.date()
    store = stores.batches()
    with stores.clickhouse() as database:
        figures = figures_of(database, store, Days(day, day))
    page = page_of(figures, datetime.now(UTC))
    headline = figures.headline
    return dg.MaterializeResult(
        metadata={
            "page": dg.MetadataValue.path(keep_report(store.files, day, page)),
            "report": dg.MetadataValue.md(
                f"**{day}**\n\n{table_of([headline])}\n\n**Organizations**\n\n"
                + table_of(figures.tables["organizations"][:_ORGANIZATIONS])
            ),
            "calls": headline["calls"],
            "calls in error": headline["errors"],
            "calls without price": headline["unpriced_calls"],
            "calls without usage": headline["unmetered_calls"],
            "hours with calls": headline["hours"],
            "organizations": headline["organizations"],
            "spend in USD": float(headline["spend_usd"]),
            "spend in USD by own keys": float(headline["byok_usd"]),
            "spend in USD, exactly": str(headline["spend_usd"]),
            "tokens": headline["tokens"],
        }
    )


def _kept_despite_loss(batch: Manifest, reason: str) -> HourOutcome:
    """Return the outcome of an hour whose batch is kept, since the source lost traces of it."""
    said = reason.removeprefix(f"hour {key_of(batch.hour)}: ")
    metadata = {"outcome": "kept: the source lost traces", **describe_batch(batch)}
    loss = Finding(
        "rows_match_source", False, said, {"batch rows": batch.rows}, dg.AssetCheckSeverity.WARN
    )
    _, *others = check_batch(batch)
    return metadata, [loss, *others]


def _answers(database: Database) -> bool:
    """Whether ClickHouse answers at all, asked once."""
    try:
        database.execute("SELECT 1")
    except ClickHouseError:
        return False
    return True


def _past_retention(outcome: str, checks: Sequence[dg.AssetCheckSpec]) -> HourOutcome:
    """Return the outcome of an hour that a retention drops: the hour must not come back."""
    metadata = {"outcome": f"past the retention: {outcome}", "rows": 0, "dagster/row_count": 0}
    return metadata, [Finding(check.name, True, "past the retention", metadata) for check in checks]


def _window(context: dg.AssetExecutionContext) -> Window:
    """Return the hours of the run's partitions."""
    window = context.partition_time_window
    return Window(window.start, window.end)
