"""Rows of batches of manifest version 2: their payloads tell what their added columns hold."""

from typing import Any

import pyarrow as pa

from llm_trace_pipeline.trace.columns import ARROW_SCHEMA
from llm_trace_pipeline.trace.rows import with_added_columns
from tests.harness.source_rows import load
from tests.harness.usage_cases import CASES, COST_CASES
from tests.harness.variants import of_version_2

# Without the columns of the step, which no payload tells, and those of the prices.
READ = ("served_by", "served_model", "service_tier", "usage_source", "usage_details")
Row = dict[str, Any]


def of_old_batch(rows: list[Row]) -> tuple[list[Row], int]:
    """Return rows as they are read again from a batch of version 2, and how many were not kept."""
    old = pa.RecordBatch.from_pylist([of_version_2(row) for row in rows], ARROW_SCHEMA)
    batch, not_kept = with_added_columns(old)
    return batch.to_pylist(), not_kept


def added(rows: list[Row]) -> list[Row]:
    return [{name: row[name] for name in (*READ, "model_handle")} for row in rows]


def test_what_was_kept_is_read_again_as_it_is_loaded() -> None:
    rows, _ = load([case["call"] for case in COST_CASES + CASES])
    rows = [row for row in rows if row["provider"] != "unknown"]  # see test_serving.py
    again, not_kept = of_old_batch(rows)
    assert len(again) > 100
    assert added(again) == added(rows)
    assert not_kept == 0


def test_a_response_that_was_not_kept_tells_nothing_but_its_tokens() -> None:
    config = {"model_endpoint_type": "openai", "provider_name": "mistral", "handle": "mistral/m"}
    usage = {"prompt_tokens": 10, "completion_tokens": 1}
    response = {"usage": usage, "model": "m", "service_tier": "flex"}
    calls: list[Row] = [
        {"llm_config": config, "response_json": response},
        {"response_json": {}},
        {"llm_config": config, "is_metadata_only": True},
        {"is_metadata_only": True, "takes_step_usage": True, "step_prompt_tokens": 9},
    ]
    rows, _ = load(calls)
    again, not_kept = of_old_batch([row | {"response_json": ""} for row in rows])
    assert not_kept == 2
    assert [
        (row["served_by"], row["served_model"], row["service_tier"], row["usage_source"])
        for row in again
    ] == [
        ("mistral", "", "", "response"),
        ("unknown", "", "", "none"),
        ("mistral", "", "", "none"),
        ("unknown", "", "", "step"),
    ]


def test_a_response_that_was_changed_is_believed_where_it_states_the_rows_tokens() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 1}
    response = {"usage": usage, "model": "m", "service_tier": "flex"}
    [row], _ = load([{"response_json": response}])
    changed = '{"usage": {"prompt_tokens": 11, "completion_tokens": 1}, "service_tier": "flex"}'
    shorter = '{"usage": {"prompt_tokens": 10, "completion_tokens": 1}, "service_tier": "flex"}'
    again, not_kept = of_old_batch([row | {"response_json": text} for text in (changed, shorter)])
    assert [(each["service_tier"], each["usage_source"]) for each in again] == [
        ("", "response"),
        ("flex", "response"),
    ]
    assert [each["prompt_tokens"] for each in again] == [10, 10]
    assert not_kept == 0
