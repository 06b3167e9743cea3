"""What the commands of the Makefile share: how they end, and how they run hours through Dagster."""

import logging
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NoReturn

from dagster import AssetKey, DagsterInstance, ExecuteInProcessResult

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.defs.launcher import fail_abandoned_runs
from llm_trace_pipeline.errors import PipelineError
from llm_trace_pipeline.hours import HOUR, HOURS_PER_RUN, Window, floor, key_of, ranges
from llm_trace_pipeline.settings import Settings

_RANGE = "dagster/asset_partition_range_"  # the tags by which a run knows its hours


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run a command; an error that an operator can act on is one line, and exit status 2."""
    try:
        main()
    except PipelineError as error:
        print(error, file=sys.stderr)  # noqa: T201 -- a command's output
        sys.exit(2)
    sys.exit(0)


def say(text: str = "") -> None:
    """Print a line of a command's output at once."""
    print(text, flush=True)  # noqa: T201 -- a command's output


def closed_hours(count: int, first: datetime) -> list[datetime]:
    """Return the last full hours, at most so many, none before the first."""
    now = floor(datetime.now(UTC))
    return [hour for hour in Window(now - HOUR * count, now).hours if hour >= first]


def load_hours(hours: Sequence[datetime], *assets: str) -> None:
    """Load contiguous hours through Dagster, a day of hours to a run, and say how it goes.

    Args:
        hours: the hours, in their order.
        assets: which assets to materialize; none named: all.

    Raises:
        PipelineError: hours failed; the message names them and the run in which they did.
    """
    # Its import reads LLM_TRACES_START, whose errors run_command is to report.
    from llm_trace_pipeline.definitions import defs  # noqa: PLC0415 -- imported to be reported

    progress = logging.getLogger("llm_trace_pipeline")
    progress.setLevel(logging.INFO)
    progress.addHandler(logging.StreamHandler(sys.stdout))
    job = defs.resolve_job_def("hourly_llm_traces")
    store = BatchStore.of(Settings.from_environment())
    failed: list[str] = []
    with DagsterInstance.get() as instance:
        fail_abandoned_runs(instance)

        def run(hours: Sequence[datetime], assets: Sequence[str]) -> ExecuteInProcessResult:
            first, last = (key_of(hour) for hour in (hours[0], hours[-1]))
            return job.execute_in_process(
                instance=instance,
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                tags={f"{_RANGE}start": first, f"{_RANGE}end": last},
                asset_selection=[AssetKey(asset) for asset in assets] or None,
                raise_on_error=False,
            )

        for begin in range(0, len(hours), HOURS_PER_RUN):
            of_run = hours[begin : begin + HOURS_PER_RUN]
            result = run(of_run, assets)
            if result.success:
                continue
            first, last = (key_of(hour) for hour in (of_run[0], of_run[-1]))
            failed.append(f"{first} to {last} (run {result.run_id})")
            # Dagster does not start llm_traces where trace_batches failed for a single hour; the
            # others have their batches. Nor the roll-up, which follows whatever the table holds.
            if not assets:
                having_batches = set(store.hours()).intersection(of_run)
                for window in ranges(having_batches):
                    run(window.hours, ["llm_traces"])
            run(of_run, ["llm_usage_hourly"])
    if failed:
        raise PipelineError(
            "not everything was loaded; what failed is said above and in the Dagster UI: "
            + ", ".join(failed)
        )
