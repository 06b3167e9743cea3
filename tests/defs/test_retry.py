"""A run that ended in the middle: its retry does only what is missing."""

from typing import Any

import pytest

from llm_trace_pipeline.batches.extract import extract_hour
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.defs import assets
from llm_trace_pipeline.hours import HOUR
from tests.harness.jobs import Jobs
from tests.harness.operational import Operational, trace
from tests.harness.rows import T0

HOURS = [T0, T0 + HOUR, T0 + 2 * HOUR]
ENDS = HOURS[0], HOURS[-1]


def change_payloads(operational: Operational, text: str) -> None:
    """Change what no ledger tells: only who reads an hour sees it."""
    operational.execute(f"UPDATE provider_traces SET request_json = '{text}'")


def batches(store: BatchStore) -> list[str]:
    return [manifest.batch_id for hour in HOURS if (manifest := store.manifest(hour))]


def test_a_retry_reads_only_the_hours_that_are_missing(
    operational: Operational, store: BatchStore, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    operational.insert("provider_traces", *(trace(hour, id=f"{hour:%H}") for hour in HOURS))

    def cut_in_the_last_hour(*arguments: Any, **options: Any) -> Any:
        if HOURS[-1] in arguments:
            raise RuntimeError("killed")
        return extract_hour(*arguments, **options)

    assert jobs.load(*ENDS).success
    loaded = batches(store)

    change_payloads(operational, "1")
    with monkeypatch.context() as patch:
        patch.setattr(assets, "extract_hour", cut_in_the_last_hour)
        cut = jobs.load(*ENDS)
    assert not cut.success
    done = batches(store)
    assert [new == old for new, old in zip(done, loaded, strict=True)] == [False, False, True]

    change_payloads(operational, "2")
    retry = {"dagster/parent_run_id": cut.run_id, "dagster/is_resume_retry": "true"}
    assert jobs.load(*ENDS, tags=retry).success
    retried = batches(store)
    assert [new == old for new, old in zip(retried, done, strict=True)] == [True, True, False]

    # By hand, not from the failure: everything is read.
    again = {"dagster/parent_run_id": cut.run_id}
    assert jobs.load(*ENDS, tags=again).success
    read = batches(store)
    assert [new == old for new, old in zip(read, retried, strict=True)] == [False, False, True]
