"""Calls as the prices see them, and what they cost."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from llm_trace_pipeline.trace.columns import ARROW_SCHEMA
from llm_trace_pipeline.trace.prices import PACKAGED, PRICE_COLUMNS, PRICED_BY, PriceBook

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)

Call = dict[str, Any]


def call(
    model: str,
    tokens: Sequence[int | None] = (1000, 100, None, None, None),
    at: datetime = NOON,
    provider: str = "openai",
    **columns: Any,
) -> Call:
    """Return a call whose response states its usage."""
    prompt, completion, cached, written, reasoning = tokens
    return {
        "provider": provider,
        "served_by": provider,
        "model": model,
        "served_model": "",
        "service_tier": "",
        "created_at": at,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "cached_input_tokens": cached,
        "cache_write_tokens": written,
        "reasoning_tokens": reasoning,
        "is_error": 0,
        "usage_source": "response",
        "usage_details": "",
        **columns,
    }


def costs(calls: Iterable[Call], prices: PriceBook = PACKAGED) -> list[dict[str, Any]]:
    """Return the columns that a price book gives calls."""
    schema = pa.schema([ARROW_SCHEMA.field(name) for name in PRICED_BY])
    columns = prices.costs(pa.RecordBatch.from_pylist(list(calls), schema))
    assert sorted(columns) == sorted(PRICE_COLUMNS)
    for name, column in columns.items():
        assert column.type == ARROW_SCHEMA.field(name).type
    found: list[dict[str, Any]] = pa.record_batch(columns).to_pylist()
    return found
