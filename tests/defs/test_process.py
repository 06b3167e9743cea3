"""Which process executes a run: it is the same whatever the clock does, and no other one."""

import os
import subprocess
import sys
from collections.abc import Iterator

import dagster as dg
import psutil
import pytest

from llm_trace_pipeline.definitions import defs
from llm_trace_pipeline.defs.launcher import is_abandoned
from llm_trace_pipeline.defs.process import PROCESS_TAG, identity_of
from llm_trace_pipeline.settings import Settings
from tests.harness.jobs import Jobs
from tests.harness.operational import Operational
from tests.harness.rows import T0

JOB = defs.resolve_job_def("hourly_llm_traces")


def tagged(instance: dg.DagsterInstance, process: str) -> dg.DagsterRun:
    """Return a run that says which process executes it."""
    run_id = instance.create_run_for_job(JOB).run_id
    instance.add_run_tags(run_id, {PROCESS_TAG: f"{run_id} {process}"})
    run = instance.get_run_by_id(run_id)
    assert run
    return run


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield child
        child.communicate()


def test_every_process_is_another(other: subprocess.Popen[bytes]) -> None:
    own = identity_of(os.getpid())
    assert own == identity_of(os.getpid())
    assert identity_of(other.pid) not in (own, "")
    other.communicate()
    assert identity_of(other.pid) == ""


def test_a_step_of_the_clock_makes_no_living_run_count_as_abandoned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run = tagged(instance, identity_of(os.getpid()))
        # What the clock of the moment makes of the start of a process.
        monkeypatch.setattr(psutil.Process, "create_time", lambda _: T0.timestamp())
        assert not is_abandoned(instance, run)
        assert is_abandoned(instance, tagged(instance, f"{os.getpid()} an-earlier-boot 1"))


def test_a_retry_is_not_judged_by_the_process_of_the_run_that_it_retries() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        killed = tagged(instance, f"{os.getpid()} an-earlier-boot 1")
        assert is_abandoned(instance, killed)
        retry = instance.create_run_for_job(JOB, tags=killed.tags)  # as Dagster copies them
        assert not is_abandoned(instance, retry)


def test_a_run_tells_its_process(operational: Operational, settings: Settings) -> None:
    del operational  # for its tables, which the environment names
    with dg.DagsterInstance.ephemeral() as instance:
        result = Jobs(settings, instance).run("apply_retention")
        run = instance.get_run_by_id(result.run_id)
        assert result.success
        assert run
        assert run.tags[PROCESS_TAG] == f"{run.run_id} {identity_of(os.getpid())}"
