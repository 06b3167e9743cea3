"""Hours through Dagster: how the commands load them, and say how it goes."""

import logging
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import dagster as dg

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.cli.instance import use_instance
from llm_trace_pipeline.defs.launcher import fail_abandoned_runs
from llm_trace_pipeline.demo.traffic import first_hour
from llm_trace_pipeline.errors import PipelineError
from llm_trace_pipeline.hours import HOUR, Window, floor, key_of, ranges
from llm_trace_pipeline.settings import Settings

_RANGE = "dagster/asset_partition_range_"  # the tags by which a run knows its hours


def first_hour_of(settings: Settings) -> datetime:
    """Return the first hour that can be loaded; where none is configured, the demo's."""
    return settings.first_hour or first_hour(settings.state_dir)


def closed_hours(count: int, first: datetime) -> list[datetime]:
    """Return the last full hours, at most so many, none before the first."""
    now = floor(datetime.now(UTC))
    return [hour for hour in Window(now - HOUR * count, now).hours if hour >= first]


def load_hours(settings: Settings, hours: Iterable[datetime], *assets: str) -> None:
    """Load hours through Dagster, contiguous ones up to a day to a run, and say how it goes.

    Args:
        settings: where the stores are.
        hours: the hours.
        assets: which assets to materialize; none named: all.

    Raises:
        PipelineError: hours failed; the message names them and the run in which they did.
    """
    # Its import reads LLM_TRACES_START, whose errors are to be reported as the command's own.
    from llm_trace_pipeline.definitions import defs  # noqa: PLC0415 -- imported to be reported

    progress = logging.getLogger("llm_trace_pipeline")
    progress.setLevel(logging.INFO)
    progress.addHandler(logging.StreamHandler(sys.stdout))
    use_instance(settings)
    job = defs.resolve_job_def("hourly_llm_traces")
    store = BatchStore.of(settings)
    failed: list[str] = []
    with dg.DagsterInstance.get() as instance:
        fail_abandoned_runs(instance)

        def run(window: Window, assets: Sequence[str]) -> dg.ExecuteInProcessResult:
            return job.execute_in_process(
                instance=instance,
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                tags={
                    f"{_RANGE}start": key_of(window.start),
                    f"{_RANGE}end": key_of(window.last),
                },
                asset_selection=[dg.AssetKey(asset) for asset in assets] or None,
                raise_on_error=False,
            )

        for window in ranges(hours):
            result = run(window, assets)
            if result.success:
                continue
            failed.append(f"{key_of(window.start)} to {key_of(window.last)} (run {result.run_id})")
            # Dagster does not start llm_traces where trace_batches failed for a single hour; the
            # others have their batches. Nor the roll-up, which follows whatever the table holds.
            if not assets:
                for having_batches in ranges(set(store.hours()).intersection(window.hours)):
                    run(having_batches, ["llm_traces"])
            run(window, ["llm_usage_hourly"])
    if failed:
        raise PipelineError(
            "not everything was loaded; what failed is said above and in the Dagster UI: "
            + ", ".join(failed)
        )
