"""The enrichment: an hour gets the billing and the prices that came to be known after its load.

A batch of manifest version 2 also gets the columns that were added since. What they say is read
from the batch's own payloads.
"""

from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from llm_trace_pipeline.batches.manifest import MANIFEST_VERSION, Manifest
from llm_trace_pipeline.batches.rewrite import rewrite
from llm_trace_pipeline.batches.rules import Rules, keep_prices
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.errors import BatchError
from llm_trace_pipeline.hours import key_of
from llm_trace_pipeline.trace.billing import MATCH_REQUEST
from llm_trace_pipeline.trace.columns import BILLING_COLUMNS, COST_COLUMNS
from llm_trace_pipeline.trace.prices import PRICE_COLUMNS, PRICED_BY
from llm_trace_pipeline.trace.rows import with_added_columns

# A new price version alone makes no row stale: it may name the same amounts.
_COMPARED = [*BILLING_COLUMNS, *COST_COLUMNS, "cost_basis"]
_READ = list(dict.fromkeys(["organization_id", *PRICED_BY, *BILLING_COLUMNS, *PRICE_COLUMNS]))


def is_stale(store: BatchStore, manifest: Manifest, rules: Rules) -> bool:
    """Whether a batch holds other billing details or costs than the rules would give its rows now.

    Only the columns that matter are read. No checksum is compared: that would read all payloads.
    """
    if manifest.version < MANIFEST_VERSION:
        return manifest.rows > 0
    return any(
        not renewed(rows, rules).select(_COMPARED).equals(rows.select(_COMPARED))
        for rows in store.column_batches(manifest, _READ)
    )


def enrich_hour(store: BatchStore, rules: Rules, hour: datetime) -> Manifest:
    """Write an hour's batch anew from its current one, with the billing and prices of the rules.

    The operational database is not read. Every other column stays as it is.

    Raises:
        BatchError: the hour has no batch, or it is damaged, or another process writes it.
    """
    with store.writing(hour) as writer:
        if writer.current is None:
            raise BatchError(
                f"hour {key_of(hour)} has no batch to enrich; materialize trace_batches for "
                "it without enrich_only"
            )
        current, not_kept = writer.current, 0

        def change(rows: pa.RecordBatch) -> pa.RecordBatch:
            nonlocal not_kept
            if current.version < MANIFEST_VERSION:
                rows, count = with_added_columns(rows)
                not_kept += count
            return renewed(rows, rules)

        manifest = rewrite(writer, current, change)
        if current.version < MANIFEST_VERSION:
            figures = {"version": MANIFEST_VERSION, "unread_responses": not_kept}
            manifest = manifest.model_copy(update=figures)
        keep_prices(store.files, rules.prices)
        return writer.publish(manifest)


def renewed(rows: pa.RecordBatch, rules: Rules) -> pa.RecordBatch:
    """Return rows of a batch with the billing and the costs that the rules give them.

    Billing that came with the trace itself stays.
    """
    now = rules.billing.match(rows.column("organization_id"), rows.column("created_at"))
    is_own = pc.equal(rows.column("billing_match"), MATCH_REQUEST)
    changed = {
        **{name: pc.if_else(is_own, rows.column(name), column) for name, column in now.items()},
        **rules.prices.costs(rows),
    }
    columns = [changed.get(name, rows.column(name)) for name in rows.schema.names]
    return pa.RecordBatch.from_arrays(columns, schema=rows.schema)
