"""Hours through Dagster: how a command loads them, and says how it goes."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import chain

import click
import dagster as dg

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.cli.instance import use_instance
from llm_trace_pipeline.cli.terminal import printable
from llm_trace_pipeline.defs.launcher import fail_abandoned_runs
from llm_trace_pipeline.defs.runs import (
    LLM_TRACES,
    LLM_USAGE_HOURLY,
    Call,
    execute_here,
    is_store_down,
    reason_of,
)
from llm_trace_pipeline.defs.webhook import first_line
from llm_trace_pipeline.errors import PipelineError
from llm_trace_pipeline.hours import Window, key_of, ranges
from llm_trace_pipeline.settings import Settings

_LOG = logging.getLogger("llm_trace_pipeline")


class _Printable(logging.Formatter):
    """Writes a record as a line for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class ErrorsOnce(logging.Filter):
    """Lets an error through once: the runs that follow a run that failed may fail for it too."""

    def __init__(self) -> None:
        """Begin with no error said."""
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is printed."""
        if record.levelno < logging.ERROR:
            return True
        message = record.getMessage()
        is_new = message not in self._said
        self._said.add(message)
        return is_new


def load_hours(
    settings: Settings, hours: Iterable[datetime], command: str, assets: Sequence[str] = ()
) -> None:
    """Load hours, contiguous ones up to a day to a run, and print how it goes.

    Args:
        settings: name the stores.
        hours: the hours, in any order.
        command: what the user called, a tag of the runs.
        assets: the assets that are materialized; none named: all.

    Raises:
        PipelineError: hours failed; the message names them and the run in which they did.
        KeyboardInterrupt: a run was interrupted; the hours that it recorded stay loaded.
    """
    use_instance(settings)
    wanted = sorted(hours)
    with (
        _printed_progress(),
        dg.DagsterInstance.get() as instance,
        _interruptions() as check_signals,
    ):
        fail_abandoned_runs(instance)
        call = Call.of(instance, command)
        last = assets[-1] if assets else LLM_USAGE_HOURLY
        done = call.hours_done(instance, last)
        if done:
            click.echo(f"going on: {len(done)} of {len(wanted)} hours were done before")
        windows = ranges(hour for hour in wanted if hour not in done)
        try:
            _load(BatchStore.of(settings), _Runs(instance, call, check_signals), windows, assets)
        except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
            call.interrupt(instance)
            keys = [key_of(hour) for hour in sorted(call.hours_done(instance, last))]
            click.echo(
                f"interrupted: {len(keys)} of {len(wanted)} hours are done"
                + (f", {keys[0]} to {keys[-1]}" if keys else "")
                + "; the same command goes on"
            )
            raise KeyboardInterrupt from None


@contextmanager
def _printed_progress() -> Iterator[None]:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Printable())
    handler.addFilter(ErrorsOnce())
    _LOG.setLevel(logging.INFO)
    _LOG.addHandler(handler)
    try:
        yield
    finally:
        _LOG.removeHandler(handler)


@dataclass(frozen=True)
class _Runs:
    """Runs of a call in this process, one after the other."""

    instance: dg.DagsterInstance
    call: Call
    check_signals: Callable[[], None]

    def execute(self, window: Window, assets: Sequence[str]) -> dg.JobExecutionResult:
        """Execute a run to its end.

        Raises:
            KeyboardInterrupt: a signal has come.
        """
        self.check_signals()
        result = execute_here(self.instance, window, assets, self.call)
        self.check_signals()
        if _was_interrupted(result):
            raise KeyboardInterrupt
        return result


def _load(store: BatchStore, runs: _Runs, windows: Sequence[Window], assets: Sequence[str]) -> None:
    failed: list[str] = []
    for window in windows:
        result = runs.execute(window, assets)
        if result.success:
            continue
        of_window = f"{key_of(window.start)} to {key_of(window.last)}"
        failed.append(f"{of_window} (run {result.run_id})")
        down = [each for each in result.all_events if each.is_step_failure and is_store_down(each)]
        if down:
            raise PipelineError(
                "ClickHouse does not answer, so that nothing more was tried; make preflight says "
                f"more: {', '.join(failed)}: {first_line(reason_of(down[0]))}"
            )
        results = [result]
        # Dagster does not start llm_traces where trace_batches failed for a single hour; the
        # others have their batches. Nor the roll-up, which follows whatever the table holds.
        if not assets:
            results += [
                runs.execute(having_batches, [LLM_TRACES])
                for having_batches in ranges(set(store.hours()).intersection(window.hours))
            ]
        results.append(runs.execute(window, [LLM_USAGE_HOURLY]))
        for reason in chain.from_iterable(map(_reasons, results)):
            _LOG.error("%s: %s", of_window, reason)
    if failed:
        raise PipelineError(
            "not everything was loaded; what failed is said above and in the Dagster UI: "
            + ", ".join(failed)
        )


@contextmanager
def _interruptions() -> Iterator[Callable[[], None]]:
    """Let SIGTERM interrupt as Ctrl-C does, and hand out what asks whether either of them has come.

    Dagster takes signals while a run begins and ends, and forgets those that come between two
    steps. What is written to the pipe stays.
    """
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    descriptor = signal.set_wakeup_fd(writing)

    def check_signals() -> None:
        with suppress(BlockingIOError):
            if {signal.SIGINT, signal.SIGTERM}.intersection(os.read(reading, 1024)):
                raise KeyboardInterrupt

    try:
        yield check_signals
    finally:
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGTERM, before)
        os.close(reading)
        os.close(writing)


def _reasons(result: dg.JobExecutionResult) -> Iterator[str]:
    """Return why steps of a run failed as a whole; what failed for an hour is printed by then."""
    for event in result.all_events:
        if event.is_step_failure and not event.step_failure_data.user_failure_data:
            yield reason_of(event)


def _was_interrupted(result: dg.JobExecutionResult) -> bool:
    """Whether a signal ended the run: Dagster takes the signal, and tells it as a failed step."""
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    return any(
        failure.error is not None and failure.error.cls_name == "DagsterExecutionInterruptedError"
        for failure in failures
    )
