"""How runs start in a checkout: as Dagster does it, but a run whose process is gone is noticed.

Dagster leaves that to the code server, the parent of its runs. When that is gone too (a power cut,
a kill -9 of `make run`), the run would count as started and hold its place in the pools for ever.
For one machine: whoever asks must see the processes of the runs.
"""

import psutil
from dagster import DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher

_CLOCK_TOLERANCE_SECONDS = 10.0


class WatchedRunLauncher(DefaultRunLauncher):
    """Dagster's default launcher, whose runs are watched by run monitoring (see dagster.yaml)."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Let run monitoring ask."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the process of a started run is still there."""
        if is_abandoned(self._instance, run):
            return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "its process is gone")
        return CheckRunHealthResult(WorkerStatus.RUNNING)


def fail_abandoned_runs(instance: DagsterInstance) -> None:
    """Fail the runs whose process is gone, and free their pools: where no daemon does it."""
    for run in instance.get_runs(RunsFilter(statuses=[DagsterRunStatus.STARTED])):
        if is_abandoned(instance, run):
            instance.report_run_failed(run, "Its process is gone.")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def is_abandoned(instance: DagsterInstance, run: DagsterRun) -> bool:
    """Whether the process that executes a run is gone."""
    events = instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT)
    for event in reversed(events):
        if event.dagster_event is None:
            continue
        if pid := event.dagster_event.engine_event_data.metadata.get("pid"):
            return not _has_run_since(int(str(pid.value)), event.timestamp)
    return False


def _has_run_since(pid: int, timestamp: float) -> bool:
    try:
        process = psutil.Process(pid)
        # A later process may have got the same number.
        is_the_same = process.create_time() < timestamp + _CLOCK_TOLERANCE_SECONDS
        return bool(is_the_same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def main() -> None:
    """Fail what an earlier code server left behind: its runs were its processes, and ended with it.

    Called before a code server starts (see deploy/Dockerfile), while no run of its own goes on.
    """
    with DagsterInstance.get() as instance:
        fail_abandoned_runs(instance)


if __name__ == "__main__":
    main()
