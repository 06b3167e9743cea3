"""Hours through Dagster: how a command loads them, and says how it goes."""

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

import dagster as dg

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.cli.instance import use_instance
from llm_trace_pipeline.cli.terminal import printable
from llm_trace_pipeline.defs.launcher import fail_abandoned_runs
from llm_trace_pipeline.defs.runs import execute_here, reason_of
from llm_trace_pipeline.errors import PipelineError
from llm_trace_pipeline.hours import key_of, ranges
from llm_trace_pipeline.settings import Settings


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
    progress = logging.getLogger("llm_trace_pipeline")
    progress.setLevel(logging.INFO)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Printable())
    handler.addFilter(ErrorsOnce())
    progress.addHandler(handler)
    use_instance(settings)
    store = BatchStore.of(settings)
    failed: list[str] = []
    with dg.DagsterInstance.get() as instance:
        fail_abandoned_runs(instance)
        for window in ranges(hours):
            result = execute_here(instance, window, assets, command)
            if result.success:
                continue
            if _was_interrupted(result):
                raise KeyboardInterrupt
            of_window = f"{key_of(window.start)} to {key_of(window.last)}"
            failed.append(f"{of_window} (run {result.run_id})")
            results = [result]
            # Dagster does not start llm_traces where trace_batches failed for a single hour; the
            # others have their batches. Nor the roll-up, which follows whatever the table holds.
            if not assets:
                results += [
                    execute_here(instance, having_batches, ["llm_traces"], command)
                    for having_batches in ranges(set(store.hours()).intersection(window.hours))
                ]
            results.append(execute_here(instance, window, ["llm_usage_hourly"], command))
            for reason in dict.fromkeys(reason for each in results for reason in _reasons(each)):
                progress.error("%s: %s", of_window, reason)
    if failed:
        raise PipelineError(
            "not everything was loaded; what failed is said above and in the Dagster UI: "
            + ", ".join(failed)
        )


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
