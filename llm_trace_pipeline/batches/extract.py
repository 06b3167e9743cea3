"""The extraction: one hour of the operational PostgreSQL becomes one Parquet batch."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import count

import pyarrow as pa

from llm_trace_pipeline.batches.enrich import is_stale
from llm_trace_pipeline.batches.erasures import Erasure, read_erasures, without_erased
from llm_trace_pipeline.batches.manifest import Manifest, Part
from llm_trace_pipeline.batches.rules import Rules, keep_prices
from llm_trace_pipeline.batches.store import BatchStore, HourWriter
from llm_trace_pipeline.errors import LostTracesError, RecoveryConflictError, SourceError
from llm_trace_pipeline.hours import HOUR, key_of
from llm_trace_pipeline.source.postgres import Source
from llm_trace_pipeline.source.snapshot import Census, FoldedRow, Ledger, Snapshot
from llm_trace_pipeline.source.standby import retried
from llm_trace_pipeline.trace.readings import AskSiblings
from llm_trace_pipeline.trace.rows import transform
from llm_trace_pipeline.trace.tally import EXAMPLES, Tally

ROWS_PER_STREAM = 2_000  # an hour of fewer rows is read by one connection


@dataclass(frozen=True)
class _Plan:
    """Everything that an extraction settles before it reads a payload."""

    hour: datetime
    rules: Rules
    current: Manifest | None
    census: Census
    erasures: tuple[Erasure, ...]
    connections: int


def extract_hour(
    source: Source,
    store: BatchStore,
    rules: Rules,
    hour: datetime,
    *,
    only_changed: bool = False,
    accept_loss: bool = False,
) -> Manifest:
    """Write one hour's batch: every trace of [hour, hour + 1 h), read in one snapshot.

    Where the rows equal those of the current batch, that batch stays in place. A batch that is not
    complete is described, but does not take the place of the current one.

    Args:
        source: the operational database.
        store: where the batch goes.
        rules: the billing history, the prices and the payloads to keep.
        hour: start of the hour.
        only_changed: read no payload if ledger, billing and prices are as the current batch says.
        accept_loss: take what the source has, although it lost traces that it once had.

    Returns:
        The manifest that holds now, or that of an incomplete batch.

    Raises:
        SourceError: the source lacks a table or column, or traces that it must have had.
        BatchError: another process writes this hour.
    """
    with store.writing(hour) as writer:
        current = writer.current

        def extract() -> Manifest:
            # A batch that another process has just published must not give way to an earlier
            # snapshot.
            with source.snapshot(current.written_at if current else None) as snapshot:
                if current and only_changed and _is_up_to_date(snapshot, store, rules, current):
                    return current
                plan = _plan(source, snapshot, store, rules, writer)
                manifest = _read(plan, snapshot, writer)
                if not manifest.is_complete:  # a check of the asset tells
                    return manifest
                if not accept_loss:
                    _refuse_losses(plan, snapshot, store, manifest)
                keep_prices(store.files, rules.prices)
                return writer.publish(manifest)

        return retried(extract)


def is_of_ledger(manifest: Manifest, ledger: Ledger) -> bool:
    """Whether a batch was made from the rows that the source holds now."""
    made_from = (manifest.source_rows, manifest.source_deleted, manifest.source_hash)
    return made_from == (ledger.rows, ledger.deleted, ledger.source_hash)


def _is_up_to_date(snapshot: Snapshot, store: BatchStore, rules: Rules, current: Manifest) -> bool:
    return (
        is_of_ledger(current, snapshot.ledger_of(current.hour))
        and store.is_intact(current)
        and not is_stale(store, current, rules)
    )


def _plan(
    source: Source, snapshot: Snapshot, store: BatchStore, rules: Rules, writer: HourWriter
) -> _Plan:
    _refuse_future(snapshot, writer.hour)
    census = snapshot.census(writer.hour)
    return _Plan(
        hour=writer.hour,
        rules=rules,
        current=writer.current,
        census=census,
        erasures=read_erasures(store.files),
        connections=1 if census.rows < ROWS_PER_STREAM else source.connections,
    )


def _refuse_future(snapshot: Snapshot, hour: datetime) -> None:
    """Refuse an hour that has not ended in the snapshot: rows may still come."""
    if (now := snapshot.leader.now()) < hour + HOUR:
        raise SourceError(
            f"hour {key_of(hour)} has not ended by the operational database's clock, "
            f"{now:%Y-%m-%d %H:%M:%S} UTC; load it once it has, or set the clock that is wrong"
        )


def _read(plan: _Plan, snapshot: Snapshot, writer: HourWriter) -> Manifest:
    """Read the hour into part files; again where rows have to be left out or cannot be sent."""
    write = partial(_write_traces, plan, snapshot, writer)
    folded: Sequence[FoldedRow] = ()
    too_wide: Sequence[str] = ()
    try:
        parts, tally = write()
    except RecoveryConflictError:  # has nothing to do with the rows
        raise
    except SourceError:
        # Whatever the error was: only rows that cannot be sent come without payloads.
        with suppress(SourceError):  # the connection is lost: the first error says why
            too_wide = snapshot.too_wide(plan.hour)
        if not too_wide:
            raise
        parts, tally = write(too_wide=too_wide)
    # The source is asked which rows share an id only where some may: where an id came twice, or
    # where a row that did not come, being deleted or erased, may be the one that counts.
    if (plan.census.deleted or tally.erased or tally.has_duplicates) and (
        folded := snapshot.folded(plan.hour)
    ):
        parts, tally = write(folded=folded, too_wide=too_wide)
    source_hash = str(tally.source_hash)
    if tally.rows + tally.erased != plan.census.rows + plan.census.deleted:  # not all rows came
        source_hash = snapshot.ledger_of(plan.hour).source_hash
    return Manifest(
        hour=plan.hour,
        batch_id=writer.batch_id,
        written_at=datetime.now(UTC),
        parts=tuple(parts),
        source_rows=plan.census.rows,
        source_deleted=plan.census.deleted,
        source_folded=sum(not row.is_deleted for row in folded),
        source_erased=tally.erased,
        source_hash=source_hash,
        source_newest_change=plan.census.newest_change,
        steps_without_trace=snapshot.untraced(plan.hour, tally.distinct_steps).calls,
        **tally.figures(),
    )


def _write_traces(
    plan: _Plan,
    snapshot: Snapshot,
    writer: HourWriter,
    folded: Sequence[FoldedRow] = (),
    too_wide: Sequence[str] = (),
) -> tuple[list[Part], Tally]:
    """Write the traces of the hour into part files.

    A connection's stream is read, transformed and written by a thread of its own: the drivers,
    Arrow and the codec all work outside the interpreter's lock.
    """
    parts, total = [], Tally()
    with (
        snapshot.traces(plan.hour, plan.connections, folded, too_wide) as traces,
        ThreadPoolExecutor(len(traces.streams)) as pool,
    ):
        write = partial(_write_stream, plan, writer, traces.siblings)
        for made, tally in pool.map(write, count(), traces.streams):
            parts += made
            total.add(tally)
    return parts, total


def _write_stream(
    plan: _Plan,
    writer: HourWriter,
    ask_siblings: AskSiblings,
    number: int,
    stream: Iterator[pa.RecordBatch],
) -> tuple[list[Part], Tally]:
    rules, tally = plan.rules, Tally()
    with writer.part_writer(number) as parts:
        for stored in stream:
            kept = without_erased(stored, plan.erasures)
            batch, counted = transform(
                kept, rules.billing, rules.payloads, rules.prices, ask_siblings
            )
            parts.write(batch)
            tally.add(counted)
            tally.erased += stored.num_rows - kept.num_rows
            tally.add_source_rows(stored)
    return parts.parts, tally


def _refuse_losses(plan: _Plan, snapshot: Snapshot, store: BatchStore, manifest: Manifest) -> None:
    """Refuse a batch that lacks traces which the source once had."""
    if plan.current:
        _refuse_lost_traces(snapshot, store, plan.current, manifest)
    elif not plan.census.rows + plan.census.deleted:
        _refuse_steps_without_traces(snapshot, plan)


def _refuse_lost_traces(
    snapshot: Snapshot, store: BatchStore, current: Manifest, manifest: Manifest
) -> None:
    """Refuse to replace a batch where the source lost traces that the batch holds."""
    gone = _ids(store, store.undamaged(current)) - _ids(store, manifest)
    lost = sorted(gone - snapshot.present(sorted(gone)))
    missing, examples = len(lost), f", such as {', '.join(lost[:EXAMPLES])}" if lost else ""
    if not missing and not store.is_intact(current):
        # The ids of a damaged part cannot be read. A new batch repairs the damage, as long as the
        # source has as many rows as before.
        then, now = (each.source_rows + each.source_deleted for each in (current, manifest))
        missing = max(0, then - now)
    if missing:
        raise LostTracesError(
            f"hour {key_of(manifest.hour)}: the source has {manifest.rows} traces, the batch "
            f"{current.rows}, and {missing} of the batch's are gone from the source{examples}. "
            "The batch is kept, and so are its rows in ClickHouse. Was the source pruned? To lose "
            "them on purpose, materialize trace_batches with the run config accept_loss: true"
        )


def _refuse_steps_without_traces(snapshot: Snapshot, plan: _Plan) -> None:
    """Refuse an hour in which the agent server worked but left no trace."""
    if steps := snapshot.untraced(plan.hour).steps:
        raise LostTracesError(
            f"hour {key_of(plan.hour)}: provider_traces and provider_trace_metadata are empty, "
            f"but {steps} steps of this hour have no trace. Does the agent "
            "server still write traces to this database? If these are lost for good, materialize "
            "trace_batches with the run config accept_loss: true"
        )


def _ids(store: BatchStore, manifest: Manifest) -> set[str]:
    return {
        trace_id
        for rows in store.column_batches(manifest, ["id"])
        for trace_id in rows.column("id").to_pylist()
    }
