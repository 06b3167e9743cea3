"""Rows as ``sql/operational/traces.sql`` returns them, made without a database, and loaded."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from llm_trace_pipeline.trace.billing import HISTORY_SCHEMA, BillingMatcher
from llm_trace_pipeline.trace.columns import TOKEN_COLUMNS
from llm_trace_pipeline.trace.payloads import KEEP_ALL, PayloadPolicy
from llm_trace_pipeline.trace.prices import PACKAGED, PriceBook
from llm_trace_pipeline.trace.readings import AskSiblings, no_siblings
from llm_trace_pipeline.trace.rows import transform
from llm_trace_pipeline.trace.tally import Tally

AT = datetime(2026, 11, 1, 12, tzinfo=UTC)
_TEXTS = (
    *("id", "organization_id", "project_id", "agent_id", "agent_tags", "run_id", "step_id"),
    *("trace_id", "call_type", "step_provider", "step_provider_category", "step_model"),
    *("request_json", "response_json", "llm_config", "billing_context", "user_id"),
    *("step_model_handle", "step_status", "step_stop_reason", "step_error_type"),
    "step_error_data",
)
_BOOLS = ("is_metadata_only", "takes_step_usage", "is_too_wide")
_INTEGERS = (*(f"step_{name}" for name in TOKEN_COLUMNS), "latency_ms", "row_hash")
SOURCE_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in _TEXTS),
        *((name, pa.bool_()) for name in _BOOLS),
        *((name, pa.int64()) for name in _INTEGERS),
        ("created_at", pa.timestamp("us", tz="UTC")),
    ]
)
_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(_TEXTS),
    **dict.fromkeys(_BOOLS, False),
    **dict.fromkeys(_INTEGERS),
    "latency_ms": 0,
    "row_hash": 0,
    "organization_id": "org-1",
    "call_type": "agent_step",
    "created_at": AT,
}


def source_rows(calls: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    """Return rows of calls, whose ``*_json`` and ``llm_config`` may be any JSON value."""
    rows = []
    for number, call in enumerate(calls):
        row = {**_DEFAULTS, "id": f"trace-{number:05}", "step_id": f"step-{number:05}", **call}
        for name in ("request_json", "response_json", "llm_config"):
            if row[name] is not None and not isinstance(row[name], str):
                row[name] = json.dumps(row[name])
        rows.append(row)
    return pa.RecordBatch.from_pylist(rows, SOURCE_SCHEMA)


def load(
    calls: Sequence[Mapping[str, Any]],
    prices: PriceBook = PACKAGED,
    ask_siblings: AskSiblings = no_siblings,
    payloads: PayloadPolicy = KEEP_ALL,
) -> tuple[list[dict[str, Any]], Tally]:
    """Return the rows of ``llm_traces`` that calls without billing become, and their tally."""
    billing = BillingMatcher(HISTORY_SCHEMA.empty_table())
    batch, tally = transform(source_rows(calls), billing, payloads, prices, ask_siblings)
    return batch.to_pylist(), tally
