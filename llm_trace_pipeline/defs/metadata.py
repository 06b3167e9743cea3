"""What Dagster's UI shows of an hour, of a run and of the source."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from llm_trace_pipeline.batches.manifest import Manifest
from llm_trace_pipeline.clickhouse.loads import Loaded
from llm_trace_pipeline.defs.source import Newest
from llm_trace_pipeline.hours import key_of
from llm_trace_pipeline.trace.columns import COST_COLUMNS, TOKEN_COLUMNS

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
            *("rows", "calls", "errors", *TOKEN_COLUMNS, *COST_COLUMNS),
            *("unpriced_calls", "unmetered_calls"),
        )
    }
    return {
        "outcome": "rolled up" if was_written else "unchanged: nothing was written",
        "dagster/row_count": totals["rows"],
        "rows": totals["rows"],
        "calls": totals["calls"],
        "calls in error": totals["errors"],
        "calls without price": totals["unpriced_calls"] - totals["unmetered_calls"],
        "calls without usage": totals["unmetered_calls"],
        **{name.replace("_", " "): int(totals[name]) for name in TOKEN_COLUMNS},
        **{
            name.removesuffix("_usd").replace("_", " ") + " in USD": float(totals[name])
            for name in COST_COLUMNS
        },
        "cost in USD, exactly": str(totals["cost_usd"]),
        "repaired hours": [key_of(hour) for hour in sorted(repaired)],
    }


def describe_batch(manifest: Manifest) -> Metadata:
    """Return the figures of an hour's batch; numbers are plotted by the UI."""
    metadata: Metadata = {
        "dagster/row_count": manifest.rows,
        "rows": manifest.rows,
        "rows erased": manifest.source_erased,
        "rows folded": manifest.source_folded,
        "rows soft-deleted": manifest.source_deleted,
        "rows unreadable": manifest.unreadable,
        "rows unreadable, such as": dg.MetadataValue.json(list(manifest.unreadable_ids)),
        "bytes": manifest.bytes,
        "bytes of payload": manifest.payload_bytes,
        "parts": len(manifest.parts),
        "billing matches": dg.MetadataValue.json(manifest.billing_matches),
        "calls without price": manifest.unpriced,
        "calls without usage": manifest.unmetered,
        **{name.replace("_", " "): tokens for name, tokens in manifest.tokens.items()},
        "cost in USD": float(manifest.cost_usd),
        "cost in USD, exactly": str(manifest.cost_usd),
        "responses not kept": manifest.unread_responses,
        "steps without trace": manifest.steps_without_trace,
        "batch": manifest.batch_id,
    }
    if manifest.min_created_at and manifest.max_created_at:
        metadata["created_at, first"] = dg.MetadataValue.timestamp(manifest.min_created_at)
        metadata["created_at, last"] = dg.MetadataValue.timestamp(manifest.max_created_at)
    return metadata


def describe_time(rows: int, seconds: float, together: int) -> Metadata:
    """Return how long an hour took.

    Args:
        rows: of the hour.
        seconds: that the hour took, or the hours that were processed together with it.
        together: how many hours that were. Nobody knows the share of one of them.
    """
    if together > 1:
        return {"seconds of hours together": round(seconds, 3), "hours together": together}
    return {"seconds": round(seconds, 3), "rows per second": round(rows / max(seconds, 1e-3))}


def summary_of(
    hours: Mapping[str, Metadata], failed: Mapping[str, str]
) -> dg.MarkdownMetadataValue:
    """Return a table of what a run did, an hour a line."""
    lines = ["| hour | outcome | rows | cost in USD | seconds |", "|---|---|--:|--:|--:|"]
    for key, said in hours.items():
        cost = f"{said['cost in USD']:.4f}" if "cost in USD" in said else ""
        lines.append(
            f"| {key} | {said['outcome']} | {said['rows']:,} | {cost} | {said.get('seconds', '')} |"
        )
    lines += [f"| {key} | **failed**: {_as_cell(text)} | | | |" for key, text in failed.items()]
    rows = sum(said["rows"] for said in hours.values())
    cost = sum(said.get("cost in USD", 0.0) for said in hours.values())
    lines.append(
        f"| **{len(hours)} of {len(hours) + len(failed)} hours** | | {rows:,} | {cost:.4f} | |"
    )
    return dg.MetadataValue.md("\n".join(lines))


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a table of Markdown."""
    if not rows:
        return "none"
    names = list(rows[0])
    lines = [
        names,
        ["---"] * len(names),
        *([_as_cell(str(row[name])) for name in names] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _as_cell(text: str) -> str:
    """Return a text that may stand in a table of Markdown; data must not format the page."""
    return re.sub(r"([\\|<>\[\]`*_])", r"\\\1", " ".join(text.split()))


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
