"""What a trace takes from its step: all that the deployment has, and the usage for one trace."""

from datetime import timedelta
from typing import Any

import pytest

from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.source.postgres import Source
from tests.harness.operational import Operational, trace
from tests.harness.rows import DAY, T0, Row

STEP = {
    "id": "step-1",
    "model_handle": "openai/gpt-4o",
    "status": "FAILED",
    "stop_reason": "llm_api_error",
    "error_type": "LLMServerError",
    "error_data": '{"message": "the stream broke"}',
}
OF_STEP = {f"step_{name}": value for name, value in STEP.items() if name != "id"}
OF_STEP["step_status"] = "failed"
MINUTE = timedelta(minutes=1)


def metadata(at: Any = T0, /, **values: Any) -> Row:
    """Return a row of ``provider_trace_metadata``."""
    return {"organization_id": "org-1", "created_at": at, "updated_at": at, **values}


def read(source: Source, hour: Any = T0) -> dict[str, Row]:
    """Return the traces of an hour by their ids."""
    with source.snapshot() as snapshot, snapshot.traces(hour) as traces:
        [stream] = traces.streams
        rows = [row for batch in stream for row in batch.to_pylist()]
    return {row["id"]: row for row in rows}


def test_a_trace_has_its_user_and_how_its_step_ended(
    operational: Operational, source: Source
) -> None:
    operational.insert("steps", STEP)
    operational.insert("provider_traces", trace(id="a", step_id="step-1", user_id="user-1"))
    operational.insert("provider_trace_metadata", metadata(id="b", user_id="user-2"))
    rows = read(source)
    assert rows["a"] == rows["a"] | OF_STEP | {"user_id": "user-1"}
    assert rows["b"] == rows["b"] | dict.fromkeys(OF_STEP) | {"user_id": "user-2"}


@pytest.mark.parametrize("column", [name for name in STEP if name != "id"])
def test_a_column_that_steps_lack_is_null(
    operational: Operational, source: Source, column: str
) -> None:
    operational.insert("steps", STEP)
    operational.insert("provider_traces", trace(id="a", step_id="step-1"))
    operational.execute(f"ALTER TABLE steps DROP {column}")
    [row] = read(source).values()
    assert row == row | OF_STEP | {f"step_{column}": None}


@pytest.mark.parametrize("table", ["provider_traces", "provider_trace_metadata"])
def test_a_table_may_lack_the_user(operational: Operational, source: Source, table: str) -> None:
    operational.insert("provider_traces", trace(id="provider_traces", user_id="user-1"))
    operational.insert(
        "provider_trace_metadata", metadata(id="provider_trace_metadata", user_id="user-1")
    )
    operational.execute(f"ALTER TABLE {table} DROP user_id")
    users = {name: row["user_id"] for name, row in read(source).items()}
    assert users == {**dict.fromkeys(users, "user-1"), table: None}


@pytest.mark.parametrize("json_type", ["jsonb", "text"])
def test_error_data_may_be_of_any_type(
    operational: Operational, source: Source, json_type: str
) -> None:
    operational.insert("steps", STEP)
    operational.insert("provider_traces", trace(id="a", step_id="step-1"))
    operational.execute(
        f"ALTER TABLE steps ALTER error_data TYPE {json_type} USING error_data::{json_type}"
    )
    [row] = read(source).values()
    assert row["step_error_data"] == STEP["error_data"]


@pytest.mark.parametrize(("octets", "is_sent"), [(524_287, True), (524_288, False)])
def test_error_data_too_large_to_be_sent_beside_payloads_is_left_out(
    operational: Operational, source: Source, octets: int, is_sent: bool
) -> None:
    text = '"' + "x" * (octets - 2) + '"'
    operational.insert("steps", STEP | {"error_data": text})
    operational.insert("provider_traces", trace(id="a", step_id="step-1"))
    [row] = read(source).values()
    assert row["step_error_data"] == (text if is_sent else None)
    assert row["step_error_type"] == STEP["error_type"]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE steps SET model_handle = 'openai/gpt-5'",
        "UPDATE steps SET status = 'SUCCESS'",
        "UPDATE steps SET stop_reason = 'end_turn'",
        "UPDATE steps SET error_type = NULL",
        """UPDATE steps SET error_data = '{"message": "the stream ended"}'""",
        "UPDATE provider_traces SET user_id = 'user-3'",
        "UPDATE provider_trace_metadata SET user_id = 'user-3'",
        # The trace of the hour that has the usage of the step loses it.
        (
            "INSERT INTO provider_trace_metadata (id, step_id, call_type, organization_id, "
            f"created_at) VALUES ('c', 'step-1', 'agent_step', 'org-1', '{T0 - DAY}')"
        ),
    ],
)
def test_a_change_of_what_a_load_writes_changes_the_ledger(
    operational: Operational, source: Source, change: str
) -> None:
    operational.insert("steps", STEP)
    operational.insert("provider_traces", trace(id="a", step_id="step-1", user_id="user-1"))
    operational.insert(
        "provider_trace_metadata", metadata(id="b", step_id="step-1", user_id="user-2")
    )
    hashes = []
    for statement in ("SELECT 1", change):
        operational.execute(statement)
        with source.snapshot() as snapshot:
            hashes.append(snapshot.ledger_of(T0).source_hash)
    before, after = hashes
    assert before != after
    assert int(after) == sum(row["row_hash"] for row in read(source).values()) % 2**64


# Traces of one step, and which of them has the usage of the step. A trace is metadata only unless
# it says "stored".
SHARED: dict[str, tuple[list[Row], set[str]]] = {
    "the only one": ([{"id": "a", "call_type": "summarization"}], {"a"}),
    "the call, not the later compaction": (
        [
            {"id": "failed", "call_type": "agent_step"},
            {"id": "answered", "call_type": "agent_step", "at": T0 + MINUTE},
            {"id": "compaction", "call_type": "summarization", "at": T0 + 2 * MINUTE},
            {"id": "unnamed", "call_type": None, "at": T0 + 3 * MINUTE},
        ],
        {"answered"},
    ),
    "the latest where there is no call": (
        [
            {"id": "earlier", "call_type": "summarization"},
            {"id": "later", "call_type": None, "at": T0 + MINUTE},
        ],
        {"later"},
    ),
    "of two at once, the one with the greater id": (
        [{"id": "a", "call_type": "agent_step"}, {"id": "b", "call_type": "agent_step"}],
        {"b"},
    ),
    "not a call that was soft-deleted": (
        [
            {"id": "gone", "call_type": "agent_step", "at": T0 + MINUTE, "is_deleted": True},
            {"id": "stays", "call_type": "agent_step"},
            {"id": "compaction", "call_type": "summarization", "at": T0 + 2 * MINUTE},
        ],
        {"stays"},
    ),
    "the latest where the call was soft-deleted": (
        [
            {"id": "gone", "call_type": "agent_step", "is_deleted": True},
            {"id": "compaction", "call_type": "summarization", "at": T0 + MINUTE},
        ],
        {"compaction"},
    ),
    "a call of the hour before": (
        [
            {"id": "call", "call_type": "agent_step"},
            {"id": "compaction", "call_type": "summarization", "at": T0 + HOUR},
        ],
        {"call"},
    ),
    "a call of the hour after": (
        [
            {"id": "failed", "call_type": "agent_step"},
            {"id": "answered", "call_type": "agent_step", "at": T0 + HOUR},
        ],
        {"answered"},
    ),
    "none where the call itself is stored": (
        [
            {"id": "call", "call_type": "agent_step", "stored": True},
            {"id": "compaction", "call_type": "summarization", "at": T0 + MINUTE},
        ],
        set(),
    ),
    "the call where the compaction is stored": (
        [
            {"id": "call", "call_type": "agent_step"},
            {"id": "compaction", "call_type": "summarization", "at": T0 + MINUTE, "stored": True},
        ],
        {"call"},
    ),
}


@pytest.mark.parametrize("case", SHARED)
def test_of_the_traces_of_a_step_one_has_its_usage(
    operational: Operational, source: Source, case: str
) -> None:
    rows, expected = SHARED[case]
    for each in rows:
        values = {"step_id": "step-1"} | {
            name: value for name, value in each.items() if name not in ("at", "stored")
        }
        at = each.get("at", T0)
        if each.get("stored"):
            operational.insert("provider_traces", trace(at, **values))
        else:
            operational.insert("provider_trace_metadata", metadata(at, **values))
    operational.insert("provider_trace_metadata", metadata(id="other", step_id="step-2"))
    found = read(source) | read(source, T0 + HOUR)
    takers = {name for name, row in found.items() if row["takes_step_usage"]}
    assert takers == expected | {"other"}
