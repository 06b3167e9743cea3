"""From the operational PostgreSQL to one Parquet batch per hour."""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from llm_trace_pipeline.batches.enrich import is_stale, keep_prices
from llm_trace_pipeline.batches.erasures import read_erasures
from llm_trace_pipeline.batches.manifest import Manifest, Part
from llm_trace_pipeline.batches.parts import PartPath
from llm_trace_pipeline.batches.store import BatchStore, HourWriter
from llm_trace_pipeline.errors import SourceError
from llm_trace_pipeline.hours import Window, key_of
from llm_trace_pipeline.source.postgres import Ledger, Snapshot, Source
from llm_trace_pipeline.trace.billing import BillingMatcher
from llm_trace_pipeline.trace.tally import EXAMPLES, Tally

ROWS_PER_STREAM = 5_000  # fewer are read by one connection


def extract_hour(
    source: Source,
    store: BatchStore,
    history: pa.Table,
    hour: datetime,
    *,
    only_changed: bool = False,
    accept_loss: bool = False,
) -> Manifest:
    """Write one hour's batch: every trace of [hour, hour + 1 h), read in one snapshot.

    Rows that equal the current batch's leave that batch in place. A batch that is not complete is
    described, but does not take the place of the current one.

    Args:
        source: the operational database.
        store: where the batch goes.
        history: the billing history to match against.
        hour: start of the hour.
        only_changed: read no payload if ledger, billing and prices are as the current batch says.
        accept_loss: take what the source has, although it lost traces that it once had.

    Raises:
        SourceError: the source lacks a table or column, or traces that it must have had.
        BatchError: another process writes this hour.
    """
    billing = BillingMatcher(history)
    with ExitStack() as stack:
        writer = stack.enter_context(store.writing(hour))
        current = store.manifest(hour)
        # What another process has just loaded must not give way to what was seen before.
        snapshot = stack.enter_context(source.snapshot(current.written_at if current else None))
        if (
            only_changed
            and current
            and is_of_ledger(current, snapshot.ledger_of(hour))
            and store.is_intact(current)
            and not is_stale(store, current, billing, source.prices)
        ):
            return current
        census = snapshot.census(hour)
        if not (census.rows + census.deleted or current or accept_loss):
            _refuse_steps_without_traces(snapshot, hour)
        erasures = read_erasures(store.files)
        streams = 1 if census.rows < ROWS_PER_STREAM else source.connections

        folded: list[dict[str, Any]] = []
        too_wide: list[str] = []

        def write() -> tuple[list[Part], Tally]:
            writers = [writer.part_writer(stream) for stream in range(streams)]
            tally = snapshot.write_traces(hour, folded, too_wide, erasures, billing, writers)
            return [part for each in writers for part in each.parts], tally

        try:
            parts, tally = write()
        except SourceError:
            # Whatever it was: rows that cannot be sent are left without payloads, no others.
            with suppress(SourceError):  # the connection is lost: the first error says why
                too_wide = snapshot.too_wide(hour)
            if not too_wide:
                raise
            parts, tally = write()
        # Which rows share an id is asked only where some may: where one came twice, or where one
        # that did not come, being deleted or erased, may be the one that counts.
        if (census.deleted or tally.erased or tally.has_duplicates) and (
            folded := snapshot.folded(Window.of([hour]))
        ):
            parts, tally = write()
        source_hash = str(tally.source_hash)
        if tally.rows + tally.erased != census.rows + census.deleted:  # not all rows came
            source_hash = snapshot.ledger_of(hour).source_hash
        manifest = Manifest(
            hour=hour,
            batch_id=writer.batch_id,
            written_at=datetime.now(UTC),
            parts=tuple(parts),
            source_rows=census.rows,
            source_deleted=census.deleted,
            source_folded=sum(not row["is_deleted"] for row in folded),
            source_erased=tally.erased,
            source_hash=source_hash,
            source_newest_change=census.newest_change,
            **tally.figures(),
        )
        if not manifest.is_complete:
            return manifest
        if current and not accept_loss:
            _refuse_lost_traces(snapshot, store, current, writer, manifest)
        keep_prices(store.files, source.prices)
        return writer.publish(manifest)


def is_of_ledger(manifest: Manifest, ledger: Ledger) -> bool:
    """Whether a batch was made from what the source holds now."""
    made_from = (manifest.source_rows, manifest.source_deleted, manifest.source_hash)
    return made_from == (ledger.rows, ledger.deleted, ledger.source_hash)


def _refuse_lost_traces(
    snapshot: Snapshot,
    store: BatchStore,
    current: Manifest,
    writer: HourWriter,
    manifest: Manifest,
) -> None:
    """Refuse to replace a batch by one that the source lost traces for."""
    gone = set(_ids(store.intact_paths(current))) - set(_ids(writer.paths(manifest.parts)))
    lost = sorted(gone - snapshot.present(sorted(gone)))
    missing, examples = len(lost), f", such as {', '.join(lost[:EXAMPLES])}" if lost else ""
    if not missing and not store.is_intact(current):
        # The ids of a damaged part cannot be read. A new batch is what repairs it, as long as the
        # source has as many rows as it had.
        then, now = (each.source_rows + each.source_deleted for each in (current, manifest))
        missing = max(0, then - now)
    if missing:
        raise SourceError(
            f"hour {key_of(manifest.hour)}: the source has {manifest.rows} traces, the batch "
            f"{current.rows}, and {missing} of the batch's are gone from the source{examples}. "
            "The batch is kept, and so are its rows in ClickHouse. Was the source pruned? To lose "
            "them on purpose, materialize trace_batches with the run config accept_loss: true"
        )


def _refuse_steps_without_traces(snapshot: Snapshot, hour: datetime) -> None:
    """Refuse an hour in which the agent server worked but left no trace."""
    [found] = snapshot.rows_in("unaccounted_steps", Window.of([hour]))
    was_pruned = found["has_traces"] and not found["has_earlier_traces"]
    if found["steps_without_trace"] and not was_pruned:
        raise SourceError(
            f"hour {key_of(hour)}: provider_traces and provider_trace_metadata are empty, "
            f"but {found['steps_without_trace']} steps of this hour have no trace. Does the agent "
            "server still write traces to this database? If these are lost for good, materialize "
            "trace_batches with the run config accept_loss: true"
        )


def _ids(paths: Sequence[PartPath]) -> list[str]:
    ids: list[str] = []
    for path in paths:
        with path.open() as file:
            ids += file.read(columns=["id"]).column("id").to_pylist()
    return ids
