"""The steps of an hour that no trace belongs to: which are counted, and which are not."""

from datetime import timedelta
from typing import Any

import pytest

from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.source.postgres import Source
from llm_trace_pipeline.source.snapshot import Untraced
from tests.harness.jobs import Jobs
from tests.harness.operational import Operational, trace
from tests.harness.rows import DAY, T0

MINUTE = timedelta(minutes=1)
CALL = {"model": "gpt-4o", "prompt_tokens": 3, "created_at": T0 + 30 * MINUTE}
LATER = T0 + 2 * HOUR


def untraced(source: Source) -> Untraced:
    with source.snapshot() as snapshot:
        return snapshot.untraced(T0)


# What the step is, and whether it counts as a step and as a call.
STEPS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "a call": ({}, (1, 1)),
    "tokens of the completion": ({"prompt_tokens": 0, "completion_tokens": 1}, (1, 1)),
    "a total alone": ({"prompt_tokens": 0, "total_tokens": 1}, (1, 1)),
    "no tokens": ({"prompt_tokens": 0}, (1, 0)),
    "no model": ({"model": None}, (1, 0)),
    "an empty model": ({"model": ""}, (1, 0)),
    "a kind of error": ({"prompt_tokens": 0, "error_type": "LLMServerError"}, (1, 1)),
    "a failure": ({"prompt_tokens": 0, "status": "FAILED"}, (1, 1)),
    "a call that failed": ({"prompt_tokens": 0, "stop_reason": "llm_api_error"}, (1, 1)),
    "cancelled before the call": ({"prompt_tokens": 0, "status": "CANCELLED"}, (1, 0)),
    "soft-deleted": ({"is_deleted": True}, (0, 0)),
    "at the hour's first moment": ({"created_at": T0}, (1, 1)),
    "before the hour": ({"created_at": T0 - timedelta.resolution}, (0, 0)),
    "before the last minute": ({"created_at": T0 + 59 * MINUTE - timedelta.resolution}, (1, 1)),
    "in the last minute": ({"created_at": T0 + 59 * MINUTE}, (0, 0)),
}


@pytest.mark.parametrize("case", STEPS)
def test_a_step_without_trace_counts_if_it_called_a_model(
    operational: Operational, source: Source, case: str
) -> None:
    values, expected = STEPS[case]
    operational.insert("provider_traces", trace(T0 - DAY), trace(T0, step_id="other"))
    operational.insert("steps", {"id": "step-1", **CALL, **values})
    operational.insert("steps", {"id": "other", **CALL})
    assert untraced(source) == Untraced(*expected)


# Where the step's trace lies.
PLACES = {
    "in the hour": trace(T0 + 31 * MINUTE, step_id="step-1"),
    "in the next hour": trace(T0 + HOUR, step_id="step-1"),
    "days later": trace(T0 + 3 * DAY, step_id="step-1"),
    "in the hour, soft-deleted": trace(T0, step_id="step-1", is_deleted=True),
}


@pytest.mark.parametrize("table", ["provider_traces", "provider_trace_metadata"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("has_index", [True, False], ids=["indexed", "without an index"])
def test_a_step_with_a_trace_anywhere_is_not_counted(
    operational: Operational, source: Source, table: str, place: str, has_index: bool
) -> None:
    if not has_index:
        operational.execute("DROP INDEX ix_provider_traces_created_at, ix_step_id")
    payloads = ("request_json", "response_json", "llm_config")
    row = {name: value for name, value in PLACES[place].items() if name not in payloads}
    operational.insert(table, row)
    operational.insert("provider_traces", trace(T0 - DAY))
    operational.insert("steps", {"id": "step-1", **CALL}, {"id": "step-2", **CALL})
    assert untraced(source) == Untraced(steps=1, calls=1)


@pytest.mark.parametrize(
    ("oldest", "expected"),
    [
        pytest.param(None, 2, id="a source without any trace"),
        pytest.param(T0 - DAY, 2, id="traces from before"),
        pytest.param(T0, 2, id="the first trace begins the hour"),
        pytest.param(T0 + 20 * MINUTE, 1, id="pruned up to a moment of the hour"),
        pytest.param(T0 + DAY, 0, id="pruned beyond the hour"),
    ],
)
def test_steps_whose_traces_were_pruned_are_not_counted(
    operational: Operational, source: Source, oldest: Any, expected: int
) -> None:
    operational.insert("steps", {"id": "late", **CALL})
    operational.insert("steps", {"id": "early", **CALL, "created_at": T0 + 10 * MINUTE})
    if oldest:
        operational.insert("provider_traces", trace(oldest))
    assert untraced(source) == Untraced(steps=expected, calls=expected)


def test_an_hour_that_lost_some_of_its_traces_is_warned_of(
    operational: Operational, jobs: Jobs
) -> None:
    steps = [{"id": f"step-{number}", **CALL} for number in range(7)]
    operational.insert("steps", *steps, {"id": "silent", **CALL, "model": None})
    operational.insert("steps", {"id": "whole", **CALL, "created_at": LATER})
    # As many traces as steps, but all of one step.
    operational.insert(
        "provider_traces", *(trace(T0, id=f"{n}", step_id="step-1") for n in range(8))
    )
    operational.insert("provider_traces", trace(LATER, id="b", step_id="whole"))
    result = jobs.load(T0, LATER)
    assert result.success
    found = {
        each.partition: (each.passed, each.severity.value, each.metadata["steps without trace"])
        for each in result.get_asset_check_evaluations()
        if each.check_name == "steps_have_traces" and each.partition
    }
    assert [(passed, severity, told.value) for passed, severity, told in found.values()] == [
        (False, "WARN", 6),
        (True, "WARN", 0),
        (True, "WARN", 0),
    ]
    for asset in ("trace_batches", "llm_traces"):
        figures = [metadata for _, metadata in jobs.materializations(asset)]
        assert [each["steps without trace"].value for each in figures] == [6, 0, 0]


def test_only_the_traces_of_the_hour_are_read(operational: Operational, source: Source) -> None:
    operational.execute(f"""
        INSERT INTO provider_traces (id, step_id, organization_id, created_at)
        SELECT n::text, 'step-' || n, 'org-1', timestamptz '{T0 - DAY}' + n * interval '1 s'
        FROM generate_series(1, 100000) n;
        INSERT INTO steps (id, model, prompt_tokens, created_at)
        SELECT 'step-' || n, 'm', 1, timestamptz '{T0 - DAY}' + n * interval '1 s'
        FROM generate_series(1, 100000) n;
        DELETE FROM provider_traces WHERE step_id IN ('step-86500', 'step-89000', 'step-90123');
        ANALYZE provider_traces, steps
    """)

    def rows_read() -> int:
        [found] = operational.rows(
            "SELECT seq_tup_read + idx_tup_fetch AS rows "
            "FROM pg_stat_user_tables WHERE relname = 'provider_traces'"
        )
        return int(found["rows"])

    before = rows_read()
    assert untraced(source) == Untraced(steps=2, calls=2)
    assert rows_read() - before < 10_000  # of 100,000; the hour has 3,600
