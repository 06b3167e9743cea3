"""What Dagster's UI shows of an hour."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from llm_trace_pipeline.batches.manifest import Manifest
from llm_trace_pipeline.clickhouse.loads import Loaded
from llm_trace_pipeline.defs.source import Newest
from llm_trace_pipeline.hours import key_of

Metadata = dict[str, Any]


def as_metadata(values: Mapping[str, Any]) -> Metadata:
    """Return values as Dagster takes them: a list becomes JSON."""
    return {
        name: dg.MetadataValue.json(value) if isinstance(value, list) else value
        for name, value in values.items()
    }


def describe_load(result: Loaded) -> Metadata:
    """Return the figures of an hour of ``llm_traces``."""
    return {
        "outcome": "loaded" if result.was_written else "unchanged: nothing was written",
        **(describe_batch(batch) if (batch := result.expected.batch) else {}),
        "repaired hours": [key_of(hour) for hour in result.repaired_hours],
    }


def describe_rollup(results: Sequence[Loaded]) -> Metadata:
    """Return the figures of an hour's roll-up: in a cluster, the sums over its shards."""
    was_written = any(result.was_written for result in results)
    repaired = {hour for result in results for hour in result.repaired_hours}
    totals = {
        name: sum(result.found[name] for result in results)
        for name in (
            *("rows", "calls", "total_tokens", "cost_usd"),
            *("unpriced_calls", "unmetered_calls"),
        )
    }
    return {
        "outcome": "rolled up" if was_written else "unchanged: nothing was written",
        "rows": totals["rows"],
        "calls": totals["calls"],
        "total tokens": totals["total_tokens"],
        "cost in USD": str(totals["cost_usd"]),
        "calls without price": totals["unpriced_calls"] - totals["unmetered_calls"],
        "calls without usage": totals["unmetered_calls"],
        "repaired hours": [key_of(hour) for hour in sorted(repaired)],
    }


def describe_batch(manifest: Manifest) -> Metadata:
    """Return the figures of an hour's batch."""
    metadata: Metadata = {
        "rows": manifest.rows,
        "bytes": manifest.bytes,
        "payload bytes": manifest.payload_bytes,
        "parts": len(manifest.parts),
        "unreadable rows": manifest.unreadable,
        "unreadable ids": dg.MetadataValue.json(list(manifest.unreadable_ids)),
        "soft-deleted rows": manifest.source_deleted,
        "folded rows": manifest.source_folded,
        "erased rows": manifest.source_erased,
        "billing matches": dg.MetadataValue.json(manifest.billing_matches),
        "tokens": dg.MetadataValue.json(manifest.tokens),
        "cost in USD": str(manifest.cost_usd),
        "calls without price": manifest.unpriced,
        "calls without usage": manifest.unmetered,
        "responses not kept": manifest.unread_responses,
        "steps without trace": manifest.steps_without_trace,
        "batch": manifest.batch_id,
    }
    if manifest.min_created_at and manifest.max_created_at:
        metadata["min created_at"] = dg.MetadataValue.timestamp(manifest.min_created_at)
        metadata["max created_at"] = dg.MetadataValue.timestamp(manifest.max_created_at)
    return metadata


def describe_source(found: Newest) -> Metadata:
    """Return what an observation of the source says."""
    return {
        "dagster/row_count": found.rows,
        "newest trace": dg.MetadataValue.timestamp(found.at) if found.at else "none in a day",
        "lag (s)": round(found.lag.total_seconds()) if found.lag is not None else "over a day",
    }


def tags_of_layer(layer: str, kind: str) -> dict[str, str]:
    """Return the tags by which the UI finds an asset: its place on the way, and its storage."""
    return {"llm_traces/layer": layer, "dagster/storage_kind": kind}
