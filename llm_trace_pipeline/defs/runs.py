"""Dagster's runs and backfills: the hours that they load, calls of commands, why a run failed.

Two modules of this package name Dagster's own, which may change without notice: this one and the
launcher.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import dagster as dg
from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.errors import DagsterDefinitionChangedDeserializationError
from dagster._core.execution.api import execute_run
from dagster._core.execution.backfill import (
    BulkActionsFilter,
    BulkActionStatus,
    PartitionBackfill,
)
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    AUTO_RETRY_RUN_ID_TAG,
    BACKFILL_ID_TAG,
    MAX_RETRIES_TAG,
    PARENT_RUN_ID_TAG,
    PARTITION_NAME_TAG,
    RESUME_RETRY_TAG,
    WILL_RETRY_TAG,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from llm_trace_pipeline.errors import PipelineError, TransientClickHouseError
from llm_trace_pipeline.hours import HOUR, Window, key_of, parse_hour

HOURLY_JOB, REPAIR_JOB, RESTORE_JOB = "hourly_llm_traces", "repair_hours", "restore_hours"
PROVIDER_TRACES = "provider_traces"
TRACE_BATCHES, LLM_TRACES, LLM_USAGE_HOURLY = "trace_batches", "llm_traces", "llm_usage_hourly"
_LOADING_JOBS = (HOURLY_JOB, REPAIR_JOB, RESTORE_JOB)
_HOURLY_ASSETS = frozenset(map(dg.AssetKey, (TRACE_BATCHES, LLM_TRACES, LLM_USAGE_HOURLY)))
# A backfill that has started no run for so long is taken to be stuck.
_BACKFILL_PATIENCE = timedelta(hours=6)
_MODULE, _ATTRIBUTE = "llm_trace_pipeline.definitions", "defs"  # as workspace.yaml has them
_LOCATION, _REPOSITORY = "llm_traces", "__repository__"
COMMAND_TAG, _CALL_TAG = "llm_traces/command", "llm_traces/call"
_OWN_ERROR = rf"{PipelineError.__module__}\.\w+: "
_INTERRUPTED_TAG = "llm_traces/interrupted"  # the run's own id: a retry has the tags of the run
FAILED_HOURS, STORE_DOWN = "failed hours", "ClickHouse does not answer"  # metadata of a failure


def tags_of(window: Window) -> dict[str, str]:
    """Return the tags by which a run knows the hours that it loads."""
    return {
        ASSET_PARTITION_RANGE_START_TAG: key_of(window.start),
        ASSET_PARTITION_RANGE_END_TAG: key_of(window.last),
    }


@dataclass(frozen=True)
class Call:
    """A call of a command, whose runs are tagged with it.

    Args:
        command: what the user called.
        id: the same for a call that was interrupted and the calls that go on with it.
    """

    command: str
    id: str

    @classmethod
    def of(cls, instance: dg.DagsterInstance, command: str) -> "Call":
        """Return the command's last call if that was interrupted, else a new one."""
        last = instance.get_runs(dg.RunsFilter(tags={COMMAND_TAG: command}), limit=1)
        is_interrupted = bool(last) and was_interrupted(last[0])
        return cls(command, last[0].tags[_CALL_TAG] if is_interrupted else uuid4().hex)

    def interrupt(self, instance: dg.DagsterInstance) -> None:
        """Note in its last run that the call was interrupted."""
        for run in instance.get_runs(dg.RunsFilter(tags={_CALL_TAG: self.id}), limit=1):
            instance.add_run_tags(run.run_id, {_INTERRUPTED_TAG: run.run_id})

    def hours_done(self, instance: dg.DagsterInstance, asset: str) -> set[datetime]:
        """Return the hours of an asset that the runs of the call have recorded."""
        return {
            parse_hour(event.partition)
            for run in instance.get_runs(dg.RunsFilter(tags={_CALL_TAG: self.id}))
            for entry in instance.all_logs(
                run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION
            )
            if (event := entry.dagster_event)
            and event.partition
            and event.asset_key == dg.AssetKey(asset)
        }


def execute_here(
    instance: dg.DagsterInstance, window: Window, assets: Sequence[str], call: Call
) -> dg.JobExecutionResult:
    """Load a window in this process, as a run that the UI shows and retries like any other.

    Args:
        instance: keeps the record of the run.
        window: the hours.
        assets: the assets that are materialized; none named: all of the job.
        call: of the command that loads.
    """
    repository = ReconstructableRepository.for_module(_MODULE, _ATTRIBUTE)
    job = repository.get_reconstructable_job(HOURLY_JOB)
    selected = frozenset(map(dg.AssetKey, assets)) or None
    definition = (job.get_subset(asset_selection=selected) if selected else job).get_definition()
    # As `dagster dev` makes it of workspace.yaml: the UI finds the run's job by it.
    target = LoadableTargetOrigin(module_name=_MODULE, attribute=_ATTRIBUTE)
    place = ManagedGrpcPythonEnvCodeLocationOrigin(target, _LOCATION)
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(place, _REPOSITORY), job.job_name)
    run = instance.create_run_for_job(
        definition,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        # Who called the command sees that it failed, and calls it again.
        tags={
            **tags_of(window),
            COMMAND_TAG: call.command,
            _CALL_TAG: call.id,
            MAX_RETRIES_TAG: "0",
        },
        asset_selection=selected,
        remote_job_origin=origin,
        job_code_origin=job.get_python_origin(),
    )
    return execute_run(job, run, instance)


def hours_of_run(tags: Mapping[str, str]) -> list[datetime]:
    """Return the hours that a run loads, by its tags; a run of other partitions loads none."""
    if (key := tags.get(PARTITION_NAME_TAG)) is not None:
        first = last = key
    elif ASSET_PARTITION_RANGE_START_TAG in tags:
        first, last = (
            tags[tag] for tag in (ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG)
        )
    else:
        return []
    if not (_is_hour(first) and _is_hour(last)):
        return []
    return Window(parse_hour(first), parse_hour(last) + HOUR).hours


def hours_being_loaded(instance: dg.DagsterInstance) -> set[datetime]:
    """Return the hours of all runs that have not ended: they are about to change."""
    runs = instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES))
    return {hour for run in runs if _loads_hours(run) for hour in hours_of_run(run.tags)}


def _loads_hours(run: dg.DagsterRun) -> bool:
    """Whether a run loads hours of these assets: an instance may serve others' code too."""
    return run.job_name in _LOADING_JOBS or not _HOURLY_ASSETS.isdisjoint(run.asset_selection or ())


def hours_of_backfills(
    instance: dg.DagsterInstance, graph: BaseAssetGraph[Any] | None
) -> set[datetime]:
    """Return the hours that backfills of these assets have yet to load.

    A backfill that has started no run for six hours may never end. Its hours are left out, so that
    others may load them.

    Args:
        instance: keeps the records of the backfills, also of those of others' code.
        graph: the assets of the code location. Without it a backfill of assets cannot tell its
            partitions, and is left out.
    """
    going_on = [BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING, BulkActionStatus.FAILING]
    keys: set[str] = set()
    for backfill in instance.get_backfills(BulkActionsFilter(statuses=going_on)):
        if not _is_stuck(instance, backfill):
            keys.update(_keys_left(backfill, graph))
    return {parse_hour(key) for key in keys if _is_hour(key)}


def _keys_left(backfill: PartitionBackfill, graph: BaseAssetGraph[Any] | None) -> set[str]:
    if not backfill.is_asset_backfill:
        return set(backfill.partition_names or ()) if backfill.job_name in _LOADING_JOBS else set()
    if graph is None or _HOURLY_ASSETS.isdisjoint(backfill.asset_selection or ()):
        return set()
    try:
        data = backfill.get_asset_backfill_data(graph)
    except DagsterDefinitionChangedDeserializationError:  # Dagster itself ends such a backfill
        return set()
    left = data.get_targeted_partitions_without_materialization_status()
    return {
        each.partition_key or ""
        for each in left.iterate_asset_partitions()
        if each.asset_key in _HOURLY_ASSETS
    }


def _is_stuck(instance: dg.DagsterInstance, backfill: PartitionBackfill) -> bool:
    of_backfill = dg.RunsFilter(tags={BACKFILL_ID_TAG: backfill.backfill_id})
    newest = instance.get_run_records(of_backfill, limit=1)
    started = datetime.fromtimestamp(backfill.backfill_timestamp, UTC)
    last = max([started, *(record.create_timestamp for record in newest)])
    return datetime.now(UTC) - last > _BACKFILL_PATIENCE


def hours_done_before(context: dg.AssetExecutionContext) -> set[datetime]:
    """Return the hours of this step that were finished by the run which this run retries.

    A run that was killed has recorded no materialization, but the checks of every finished hour.
    """
    tags = context.run.tags
    if RESUME_RETRY_TAG not in tags:
        return set()
    found = context.instance.get_records_for_run(
        tags[PARENT_RUN_ID_TAG], of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION
    )
    evaluations = [
        record.event_log_entry.get_dagster_event().asset_check_evaluation_data
        for record in found.records
    ]
    of_step = [each for each in evaluations if each.asset_key == context.asset_key]
    failed = {each.partition for each in of_step if each.blocking and not each.passed}
    done = {each.partition for each in of_step if each.partition} - failed
    return {parse_hour(key) for key in done}


def is_retried(run: dg.DagsterRun) -> bool:
    """Whether a failed run was retried by another one."""
    return AUTO_RETRY_RUN_ID_TAG in run.tags


def was_interrupted(run: dg.DagsterRun) -> bool:
    """Whether somebody ended the command that the run belongs to."""
    return run.tags.get(_INTERRUPTED_TAG) == run.run_id


def has_failed_for_good(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether Dagster has decided not to retry a failed run, or retries none."""
    return not instance.run_retries_enabled or run.tags.get(WILL_RETRY_TAG) == "false"


def refuse_retries(context: dg.AssetExecutionContext) -> None:
    """Keep Dagster from retrying this run, whose failure lasts until somebody repairs it."""
    context.instance.add_run_tags(context.run.run_id, {MAX_RETRIES_TAG: "0"})


def reason_of(event: dg.DagsterEvent) -> str:
    """Return why a step failed, in words of this package where it has some."""
    failure = event.step_failure_data
    if failure.user_failure_data:
        return failure.user_failure_data.description or ""
    if (error := _cause_of(event)) is None:
        return event.message or ""
    return re.sub(_OWN_ERROR, "", error.message.strip())


def is_store_down(event: dg.DagsterEvent) -> bool:
    """Whether a step failed since ClickHouse does not answer."""
    failure = event.step_failure_data
    if failure.user_failure_data:
        return STORE_DOWN in failure.user_failure_data.metadata
    # The last of several attempts is told as an error that a transient one has caused.
    error = _cause_of(event)
    names = {each.cls_name for each in (error, error and error.cause) if each}
    return TransientClickHouseError.__name__ in names


def _cause_of(event: dg.DagsterEvent) -> Any:  # noqa: ANN401 -- Dagster's type is its own
    """Return this package's error that made a step fail, else the first of all causes."""
    error = event.step_failure_data.error
    while error and error.cause and not re.match(_OWN_ERROR, error.message):
        error = error.cause
    return error


def failed_hours_of(event: dg.DagsterEvent) -> list[str]:
    """Return the hours that a step says to have failed; none where it failed as a whole."""
    failure = event.step_failure_data.user_failure_data
    found = failure.metadata.get(FAILED_HOURS) if failure else None
    keys = found.value if isinstance(found, dg.JsonMetadataValue) else None
    return [str(key) for key in keys or ()]


def _is_hour(key: str) -> bool:
    """Whether a partition's key is that of an hour, not of a day or of somebody else's."""
    try:
        parse_hour(key)
    except ValueError:
        return False
    return True
