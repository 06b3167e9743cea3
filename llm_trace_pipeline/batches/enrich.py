"""Billing and prices anew: a batch from the old batch, where either came to be known later."""

from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from llm_trace_pipeline.batches.files import Files
from llm_trace_pipeline.batches.manifest import MANIFEST_VERSION, Manifest
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.errors import BatchError
from llm_trace_pipeline.hours import key_of
from llm_trace_pipeline.trace.billing import MATCH_REQUEST, BillingMatcher
from llm_trace_pipeline.trace.columns import BILLING_COLUMNS, COST_COLUMNS
from llm_trace_pipeline.trace.prices import PRICED_BY, PriceBook
from llm_trace_pipeline.trace.tally import Tally, tally_of

# The version of a price alone makes no row stale: another one may name the same amounts.
_COMPARED = [*BILLING_COLUMNS, *COST_COLUMNS]
_READ = list(
    dict.fromkeys(["organization_id", *PRICED_BY, *BILLING_COLUMNS, *COST_COLUMNS, "price_version"])
)


def keep_prices(files: Files, prices: PriceBook) -> None:
    """Keep a price file under its version, before a batch that it priced is published.

    Whoever doubts an amount later finds the prices that it was computed with.
    """
    if prices.file and not files.exists(key := prices_key(prices.file_version)):
        files.switch(key, prices.file)


def prices_key(file_version: str) -> str:
    """Return where a price file of some version is kept, such as ``prices/1f….toml``."""
    return f"prices/{file_version.removeprefix('file:')}.toml"


def is_stale(
    store: BatchStore, manifest: Manifest, billing: BillingMatcher, prices: PriceBook
) -> bool:
    """Whether a batch holds other billing details or costs than its rows would be given now.

    Only the columns in question are read, and no checksum is compared, which reads all payloads.

    Raises:
        BatchError: a part is missing or cannot be read.
    """
    return any(
        not renewed(rows, billing, prices).select(_COMPARED).equals(rows.select(_COMPARED))
        for rows in store.column_batches(manifest, _READ)
    )


def enrich_hour(
    store: BatchStore, history: pa.Table, prices: PriceBook, hour: datetime
) -> Manifest:
    """Write an hour's batch anew from its current one, with billing and prices as known now.

    The operational database is not read; every other column stays as it is.

    Raises:
        BatchError: the hour has no batch, or it is damaged, or another process writes it.
    """
    billing = BillingMatcher(history)
    with store.writing(hour) as writer:
        current = store.manifest(hour)
        if current is None:
            raise BatchError(
                f"hour {key_of(hour)} has no batch to enrich; materialize trace_batches for "
                "it without enrich_only"
            )
        tally = Tally()
        with writer.part_writer(0) as parts:
            for rows in store.row_groups(current):
                batch = renewed(rows, billing, prices)
                parts.write(batch)
                tally.add(tally_of(batch))
        figures = tally.figures()
        for name in ("unreadable", "unreadable_ids"):  # known from reading the source only
            figures.pop(name)
        keep_prices(store.files, prices)
        return writer.publish(
            current.model_copy(
                update={
                    "version": MANIFEST_VERSION,
                    "batch_id": writer.batch_id,
                    "written_at": datetime.now(UTC),
                    "parts": tuple(parts.parts),
                    **figures,
                }
            )
        )


def renewed(rows: pa.RecordBatch, billing: BillingMatcher, prices: PriceBook) -> pa.RecordBatch:
    """Return rows of a batch with the billing and the prices that hold now.

    Billing that a request carried stays.
    """
    now = billing.match(rows.column("organization_id"), rows.column("created_at"))
    is_own = pc.equal(rows.column("billing_match"), MATCH_REQUEST)
    columns = {
        **{name: pc.if_else(is_own, rows.column(name), column) for name, column in now.items()},
        **prices.costs(rows),
    }
    for name, column in columns.items():
        position = rows.schema.get_field_index(name)
        rows = rows.set_column(position, rows.schema.field(position), column)
    return rows
