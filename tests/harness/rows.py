"""Rows of ``llm_traces`` without a source, batches that are made of them, and their erasure."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import pyarrow as pa
from xxhash import xxh3_64_intdigest

from llm_trace_pipeline.batches.erasures import Erasure
from llm_trace_pipeline.batches.manifest import Manifest
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.trace.columns import ARROW_SCHEMA
from llm_trace_pipeline.trace.tally import tally_of

TABLE = "llm_traces"
DAY = 24 * HOUR
T0 = datetime(2026, 3, 1, 9, tzinfo=UTC)  # the hour that most tests load
MIDNIGHT = T0.replace(hour=0)  # the first hour of that day: a partition of the table

Row = dict[str, Any]


def make_rows(hour: datetime, count: int, version: int = 1) -> list[Row]:
    """Return rows of an hour, sorted as the tests read them back.

    The first lies on the hour's first microsecond and the last on its last one. Another version
    keeps the ids and the times, and differs in all that a changed hour can differ in.
    """
    rows: list[Row] = []
    for number in range(count):
        request = f'{{"messages": ["ünïcode 🦉 \\u0000 {number} {version}"]}}'
        response = "" if number % 5 == 4 else f'{{"version": {version}}}'
        last = number == count - 1 and count > 1
        price = None if number % 4 == 3 else Decimal(f"{version}.{number:017}1")
        rows.append(
            {
                "id": str(uuid5(NAMESPACE_OID, f"{hour} {number}")),
                "organization_id": f"org-{number % 3}",
                "project_id": "" if number % 2 else "project",
                "agent_id": f"agent-{number % 7}",
                "agent_tags": [[], ["a"], ["a", "b\x1e", "ß"]][(number + version) % 3],
                "run_id": f"run-{number // 4}",
                "step_id": f"step-{number}",
                "trace_id": "",
                "call_type": "unknown",
                "provider": ("openai", "anthropic")[number % 2],
                "model": f"model-{version}",
                "is_byok": number % 2,
                "request_size_bytes": len(request.encode()),
                "response_size_bytes": len(response.encode()),
                "prompt_tokens": 10 * version + number,
                "completion_tokens": version,
                "total_tokens": 11 * version + number,
                "cached_input_tokens": (None, 0, 7 + version)[number % 3],
                "cache_write_tokens": None,
                "reasoning_tokens": version if number % 2 else None,
                "latency_ms": number * version,
                "is_error": int(number % 5 == 4),
                "error_type": "timeout" if number % 5 == 4 else "",
                "error_message": "no 'answer'\n" if number % 5 == 4 else "",
                "request_json": request,
                "response_json": response,
                "llm_config_json": '{"model": "model"}' if number % 2 else "{}",
                "billing_plan_type": f"plan-{version}",
                "billing_cost_source": ("quota", "credits")[number % 2],
                "billing_customer_id": f"cus_{number % 3}",
                "created_at": hour
                + (HOUR - timedelta(microseconds=1) if last else number * HOUR / max(count, 1)),
                "billing_match": "as_of",
                "payload_hash": xxh3_64_intdigest((request + response).encode()),
                "cost_usd": price,
                "input_cost_usd": price and 3 * price,
                "cached_input_cost_usd": price and price * 0,
                "cache_write_cost_usd": price and 10**18 * price,
                "output_cost_usd": price and price + 20,
                "price_version": f"prices {version}" if price else "",
                "served_by": ("openai", "anthropic")[number % 2],
                "served_model": f"model-{version}-2026-01-01",
                "service_tier": "flex" if number % 6 == 5 else "",
                "cost_basis": "list" if price else "",
                "usage_source": ("response", "step", "none")[number % 3],
                "model_handle": f"openai/model-{version}",
                "stop_reason": "error" if number % 5 == 4 else "end_turn",
                "user_id": f"user-{number % 3}",
                "other_cost_usd": price and 7 * price,
                "price_entry": f"openai/model-{version}" if price else "",
                "usage_details": '{"web_searches":1}' if number % 3 == 1 else "",
            }
        )
    return sorted(rows, key=lambda row: (row["created_at"], row["id"]))


def publish(store: BatchStore, hour: datetime, rows: list[Row]) -> Manifest:
    """Make the rows the batch of the hour, in two part files where there are enough of them."""
    batch = pa.RecordBatch.from_pylist(rows, ARROW_SCHEMA)
    half = len(rows) // 2
    with store.writing(hour) as writer:
        parts = []
        for stream, piece in enumerate((batch[:half], batch[half:])):
            with writer.part_writer(stream) as part_writer:
                if piece.num_rows:
                    part_writer.write(piece)
            parts += part_writer.parts
        manifest = Manifest(
            hour=hour,
            batch_id=writer.batch_id,
            written_at=datetime.now(UTC),
            parts=tuple(parts),
            source_rows=len(rows),
            source_deleted=0,
            source_folded=0,
            source_erased=0,
            source_hash="0",
            source_newest_change=None,
            **tally_of(batch).figures(),
        )
        return writer.publish(manifest)


def erasure(organization: str, before: datetime, agent: str | None = None) -> Erasure:
    """Return what is recorded when an organization, or an agent of it, is to be erased now."""
    return Erasure(
        organization_id=organization,
        agent_id=agent,
        before=before,
        recorded_at=datetime.now(UTC),
    )
