"""The sensors that load again: what a reconciliation found, and what waits for a failed hour."""

from collections.abc import Collection, Iterator
from datetime import datetime, timedelta

import dagster as dg
from pydantic import AwareDatetime, BaseModel
from xxhash import xxh3_64_hexdigest

from llm_trace_pipeline.defs.checks import without_hours
from llm_trace_pipeline.defs.jobs import hourly_llm_traces
from llm_trace_pipeline.defs.runs import (
    COMMAND_TAG,
    LLM_TRACES,
    LLM_USAGE_HOURLY,
    TRACE_BATCHES,
    hours_being_loaded,
    hours_of_backfills,
    hours_of_run,
    is_store_down,
    tags_of,
)
from llm_trace_pipeline.defs.stores import Stores
from llm_trace_pipeline.hours import Window, key_of, parse_hour, ranges
from llm_trace_pipeline.upkeep.reconcile import Reconciliation, read_reconciliation

# How many hours may lie between two hours whose billing one run renews. The run writes the hours
# between anew too, and two of them cost about as much as the start-up of another run.
_RESTATED_GAP = 2
_PATIENCE = timedelta(hours=6)


@dg.sensor(
    job=hourly_llm_traces,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Loads the hours that reconcile_hours found to differ, each reconciliation once.",
)
def changed_hours_sensor(
    context: dg.SensorEvaluationContext, stores: Stores
) -> dg.SensorResult | dg.SkipReason:
    """Request the hours of the last reconciliation by its record; no database is opened."""
    found = read_reconciliation(stores.batches().files)
    if found is None:
        return dg.SkipReason("reconcile_hours has not run yet")
    asked = Asked.model_validate_json(context.cursor) if context.cursor else Asked()
    if found.id == asked.reconciliation:
        return dg.SkipReason(f"the reconciliation of {found.at:%Y-%m-%d %H:%M} UTC was acted on")
    graph = context.repository_def.asset_graph if context.repository_def else None
    # An hour that still differs is found again by the next reconciliation.
    taken = hours_being_loaded(context.instance) | hours_of_backfills(context.instance, graph)
    wanted = without_hours(found, taken | asked.in_vain(found))
    requests = requests_for(wanted, taken)
    skipped = None if requests else dg.SkipReason("nothing is to be loaded")
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=skipped,
        cursor=asked.and_now(found, wanted).model_dump_json(),
    )


class Asked(BaseModel):
    """The sensor's cursor: the reconciliation that it acted on, and the hours that it requested.

    A request that left the same difference did not help. The sensor waits six hours before it asks
    for such an hour again; the check stays failed until then.
    """

    reconciliation: str = ""
    hours: dict[AwareDatetime, tuple[str, AwareDatetime]] = {}

    def in_vain(self, found: Reconciliation) -> set[datetime]:
        """Return the hours whose request, less than six hours ago, left the same difference."""
        return {
            hour
            for hour, (way, at) in self.hours.items()
            if way == _way(found, hour) and found.at - at < _PATIENCE
        }

    def and_now(self, found: Reconciliation, wanted: Reconciliation) -> "Asked":
        """Return the cursor after the hours of ``wanted`` were requested."""
        kept = {hour: self.hours[hour] for hour in self.in_vain(found)}
        requested = {*wanted.drifted, *wanted.stale, *wanted.damaged}
        new = {hour: (_way(found, hour), found.at) for hour in requested}
        return Asked(reconciliation=found.id, hours={**kept, **new})


def _way(found: Reconciliation, hour: datetime) -> str:
    """Return a text that is the same as long as an hour differs in the same way; '' for none."""
    if hour in found.stale:
        return f"billing {found.billing_versions}, prices {found.prices}"
    differs = hour in found.drifted or hour in found.damaged
    return xxh3_64_hexdigest(repr(found.differences[hour]).encode()) if differs else ""


def requests_for(found: Reconciliation, taken: Collection[datetime]) -> list[dg.RunRequest]:
    """Return the runs that put hours right.

    An hour whose traces the source lost is never read from the source again. Its billing is renewed
    and its rows in ClickHouse are repaired from its batch. No run covers an hour of ``taken``:
    something else is loading it.
    """
    drifted, stale, damaged = set(found.drifted), set(found.stale), set(found.damaged)
    others = set(found.loaded).difference(taken, drifted, stale, damaged)
    table = (LLM_TRACES, LLM_USAGE_HOURLY)
    return [
        *(
            _request(found, "changed", hours, {"only_changed": True}, None)
            for hours in ranges(drifted, others.difference(found.pruned))
        ),
        *(
            # The billing table was read by the reconciliation: no database is needed.
            _request(found, "billing", hours, {"enrich_only": True}, (TRACE_BATCHES, *table))
            for hours in ranges(stale, others, gap=_RESTATED_GAP)
        ),
        *(_request(found, "table", hours, {}, table) for hours in ranges(damaged, others)),
    ]


def _request(
    found: Reconciliation,
    reason: str,
    window: Window,
    config: dict[str, bool],
    assets: tuple[str, ...] | None,
) -> dg.RunRequest:
    first, last = key_of(window.start), key_of(window.last)
    return dg.RunRequest(
        run_key=f"{found.id}:{reason}:{first}:{last}",
        run_config={"ops": {TRACE_BATCHES: {"config": config}}} if config else {},
        # None: the whole job.
        asset_selection=[dg.AssetKey(asset) for asset in assets] if assets else None,
        tags={**tags_of(window), "llm_traces/reason": reason},
    )


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.FAILURE,
    request_job=hourly_llm_traces,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Loads, and rolls up, the hours beside those that failed in a run.",
)
def other_hours_sensor(
    context: dg.RunStatusSensorContext,
) -> Iterator[dg.RunRequest]:
    """Request what Dagster did not start for the good hours of a run, since one hour failed."""
    yield from others_of(context.instance, context.dagster_run)


def others_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> list[dg.RunRequest]:
    """Return the runs that finish the good hours of a run that failed."""
    kinds = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.ASSET_MATERIALIZATION}
    entries = instance.all_logs(run.run_id, of_type=kinds)
    events = [entry.dagster_event for entry in entries if entry.dagster_event]
    failed = [event for event in events if event.is_step_failure]
    # A command does that itself. Where ClickHouse is down, the hours wait.
    if COMMAND_TAG in run.tags or not hours_of_run(run.tags) or any(map(is_store_down, failed)):
        return []
    steps = {event.step_key for event in failed}
    following = {TRACE_BATCHES: (LLM_TRACES, LLM_USAGE_HOURLY), LLM_TRACES: (LLM_USAGE_HOURLY,)}
    for asset, assets in following.items():
        if asset in steps:
            done = [
                parse_hour(event.partition)
                for event in events
                if not event.is_step_failure
                and event.partition
                and event.asset_key == dg.AssetKey(asset)
            ]
            return [
                dg.RunRequest(
                    run_key=f"{run.run_id}:{key_of(window.start)}",
                    asset_selection=[dg.AssetKey(each) for each in assets],
                    tags={**tags_of(window), "llm_traces/reason": f"others of {run.run_id}"},
                )
                for window in ranges(done)
            ]
    return []
