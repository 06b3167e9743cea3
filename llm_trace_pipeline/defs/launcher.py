"""How runs start in a checkout: as with Dagster, but a run whose process is gone is noticed.

Dagster leaves that to the code server, the parent of its runs. When the code server is gone too (a
power cut, a kill -9 of `make run`), the run would count as started and hold its place in the pools
for ever. The launcher serves one machine: it must see the processes of the runs. Containers do
not see each other's processes: there the next code server fails the runs, by `main`.
"""

import os
import sys
import time

import dagster as dg
import psutil
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
from dagster._grpc.client import DagsterGrpcClient

from llm_trace_pipeline.defs.process import PROCESS_TAG, identity_of

_CLOCK_TOLERANCE_SECONDS = 10.0


class WatchedRunLauncher(DefaultRunLauncher):
    """Dagster's default launcher, whose runs are watched by run monitoring (see dagster.yaml)."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Let run monitoring ask."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Whether the process of a started run is still there."""
        if is_abandoned(self._instance, run):
            return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "its process is gone")
        return CheckRunHealthResult(WorkerStatus.RUNNING)


def fail_abandoned_runs(instance: dg.DagsterInstance) -> None:
    """Fail the runs whose process is gone, and free their pools: where no daemon does it."""
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        if is_abandoned(instance, run):
            _fail(instance, run)


def is_abandoned(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether the process that executes a run is gone."""
    of_run, _, process = run.tags.get(PROCESS_TAG, "").partition(" ")
    if of_run == run.run_id:
        return identity_of(int(process.partition(" ")[0])) != process
    # It has not come to a step yet: Dagster's own event has the number of the process alone.
    events = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
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
    """Fail the runs of an earlier code server, whose processes ended with it.

    The image starts it beside a code server, as its child and with its port (deploy/Dockerfile). It
    is no subcommand of ``llm-traces``, since nobody else is to call it. It waits until the server
    answers, since Dagster gives up a retry for which no server answers.
    """
    began = psutil.Process(os.getppid()).create_time()
    server = DagsterGrpcClient(port=int(sys.argv[1]))
    while not _answers(server):
        time.sleep(1)  # nobody tells when it does
    with dg.DagsterInstance.get() as instance:
        started = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])
        for record in instance.get_run_records(started):
            if record.start_time is not None and record.start_time < began:
                _fail(instance, record.dagster_run)


def _answers(server: DagsterGrpcClient) -> bool:
    try:
        server.ping("")
    except DagsterUserCodeUnreachableError:
        return False
    return True


def _fail(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    instance.report_run_failed(run, "Its process is gone.")
    instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


if __name__ == "__main__":
    main()
