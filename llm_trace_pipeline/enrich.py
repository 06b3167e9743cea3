"""Billing anew: a batch from the old batch, where a plan came to be known or was restated later."""

from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from llm_trace_pipeline.billing import MATCH_REQUEST, BillingMatcher
from llm_trace_pipeline.errors import BatchError
from llm_trace_pipeline.parquet import BatchStore, Manifest
from llm_trace_pipeline.settings import HOUR_FORMAT
from llm_trace_pipeline.transform import Tally, tally_of

_MATCHED_BY = ["organization_id", "created_at"]
_BILLING = ["billing_plan_type", "billing_cost_source", "billing_customer_id", "billing_match"]


def billing_is_stale(store: BatchStore, manifest: Manifest, billing: BillingMatcher) -> bool:
    """Whether a batch holds other billing details than would be attached to its rows now.

    Only the columns in question are read, and no checksum is compared, which reads all payloads.

    Raises:
        BatchError: a part is missing or cannot be read.
    """
    return any(
        not rematched(rows, billing).equals(rows)
        for rows in store.column_batches(manifest, [*_MATCHED_BY, *_BILLING])
    )


def enrich_hour(store: BatchStore, history: pa.Table, hour: datetime) -> Manifest:
    """Write an hour's batch anew from its current one, with billing as it is known now.

    The operational database is not read; everything but the billing columns stays as it is.

    Raises:
        BatchError: the hour has no batch, or it is damaged, or another process writes it.
    """
    billing = BillingMatcher(history)
    with store.writing(hour) as writer:
        current = store.manifest(hour)
        if current is None:
            raise BatchError(
                f"hour {hour:{HOUR_FORMAT}} has no batch to enrich; materialize trace_batches for "
                "it without enrich_only"
            )
        tally = Tally()
        with writer.part_writer(0) as parts:
            for rows in store.row_groups(current):
                batch = rematched(rows, billing)
                parts.write(batch)
                tally.add(tally_of(batch))
        figures = tally.figures()
        for name in ("unreadable", "unreadable_ids"):  # known from reading the source only
            figures.pop(name)
        return writer.publish(
            current.model_copy(
                update={
                    "batch_id": writer.batch_id,
                    "written_at": datetime.now(UTC),
                    "parts": tuple(parts.parts),
                    **figures,
                }
            )
        )


def rematched(rows: pa.RecordBatch, billing: BillingMatcher) -> pa.RecordBatch:
    """Return rows of a batch with the billing that holds now; what a request carried stays."""
    now = billing.match(rows.column("organization_id"), rows.column("created_at"), [])
    is_own = pc.equal(rows.column("billing_match"), MATCH_REQUEST)
    for name, column in zip(
        _BILLING, (now.plan_type, now.cost_source, now.customer_id, now.match), strict=True
    ):
        position = rows.schema.get_field_index(name)
        rows = rows.set_column(
            position, rows.schema.field(position), pc.if_else(is_own, rows.column(name), column)
        )
    return rows
