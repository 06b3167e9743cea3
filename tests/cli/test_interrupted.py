"""A command that a signal ends: it says what is done, starts nothing more, and can go on."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.cli import hours as command
from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.clickhouse.rollup import roll_up
from llm_trace_pipeline.defs import assets
from llm_trace_pipeline.errors import PipelineError
from llm_trace_pipeline.hours import HOUR, key_of
from llm_trace_pipeline.settings import Settings
from tests.harness.operational import Operational, trace
from tests.harness.rows import MIDNIGHT

HOURS = [MIDNIGHT + n * HOUR for n in range(-2, 2)]  # of two days
CALL = "backfill some hours"


@pytest.fixture
def home(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001 -- environment
    """Where Dagster keeps its records."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    monkeypatch.setenv("LLM_TRACES_START", key_of(MIDNIGHT - 24 * HOUR))


def runs() -> list[str]:
    with DagsterInstance.get() as instance:
        return [run.status.value for run in instance.get_runs()]


@pytest.mark.usefixtures("home")
def test_a_signal_ends_it_and_the_same_command_goes_on(
    operational: Operational,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    operational.insert("provider_traces", *(trace(hour, id=key_of(hour)) for hour in HOURS))
    handler = signal.getsignal(signal.SIGTERM)
    called: list[Any] = []

    def rolled_up_once(*arguments: Any) -> Any:
        called.append(arguments)
        if len(called) == 2:  # the second day
            os.kill(os.getpid(), signal.SIGTERM)
        return roll_up(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(assets, "roll_up", rolled_up_once)
        with pytest.raises(KeyboardInterrupt):
            # The third hour and the fourth could not be joined to the first two by one run.
            command.load_hours(settings, [*HOURS, HOURS[-1] + 2 * HOUR], CALL)
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"interrupted: 2 of 5 hours are done, {key_of(HOURS[0])} to {key_of(HOURS[1])}; "
        "the same command goes on"
    )
    assert len(runs()) == 1  # no run for the last hour
    assert signal.getsignal(signal.SIGTERM) == handler

    command.load_hours(settings, [*HOURS, HOURS[-1] + 2 * HOUR], CALL)
    said = capsys.readouterr().out
    assert said.startswith("going on: 2 of 5 hours were done before\n")
    assert f"trace_batches: hour {key_of(HOURS[1])}" not in said
    assert f"trace_batches: hour {key_of(HOURS[2])}" in said
    with connect(settings) as database:
        assert database.rows("SELECT count() AS rows FROM llm_traces") == [{"rows": 4}]
        assert database.rows("SELECT sum(calls) AS calls FROM llm_usage_hourly") == [{"calls": 4}]


@pytest.mark.usefixtures("home")
def test_where_clickhouse_is_down_the_first_run_says_so_and_no_other_begins(
    operational: Operational,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    waits: list[float],  # noqa: ARG001 -- nobody waits for a server that is not there
) -> None:
    operational.insert("provider_traces", trace(HOURS[0], id="a"))
    monkeypatch.setenv("CLICKHOUSE_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(PipelineError) as caught:
        command.load_hours(Settings.from_environment(), [HOURS[0], HOURS[2]], CALL)
    said = str(caught.value)
    assert said.startswith("ClickHouse does not answer, so that nothing more was tried")
    assert "cannot be reached: [Errno 111] Connection refused" in said
    assert "make preflight" in said
    assert runs() == ["FAILURE"]
    assert BatchStore.of(settings).hours() == [HOURS[0]]  # extracted all the same
