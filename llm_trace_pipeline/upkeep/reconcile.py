"""Reconciliation: the hours on which the source, the batches and ClickHouse do not agree.

Nothing is repaired here, and no payload is read. The ledger tells what the source holds: its hash
has every column that a load reads. ``updated_at`` would not do, since only application code moves
it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pyarrow.compute as pc
from pydantic import AwareDatetime, BaseModel, ConfigDict

from llm_trace_pipeline.batches.enrich import is_stale
from llm_trace_pipeline.batches.extract import is_of_ledger
from llm_trace_pipeline.batches.files import Files
from llm_trace_pipeline.batches.manifest import Manifest
from llm_trace_pipeline.batches.records import read_record, switch_record
from llm_trace_pipeline.batches.rules import Rules
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.clickhouse.cluster import repaired_for_reading
from llm_trace_pipeline.clickhouse.held import Held
from llm_trace_pipeline.clickhouse.loads import describe_differences
from llm_trace_pipeline.clickhouse.rollup import compare_rollup
from llm_trace_pipeline.clickhouse.tables import ROLLUP, TABLE
from llm_trace_pipeline.clickhouse.traces import Traces, figures_held, hour_totals
from llm_trace_pipeline.errors import BatchError, PipelineError, unexpected
from llm_trace_pipeline.hours import BEGINNING, HOUR, Window, closed_hours, key_of
from llm_trace_pipeline.source.postgres import Source
from llm_trace_pipeline.source.snapshot import EMPTY_LEDGER, Ledger, Snapshot
from llm_trace_pipeline.source.standby import retried
from llm_trace_pipeline.trace.billing import MATCH_FIRST_KNOWN, MATCH_NONE
from llm_trace_pipeline.upkeep.retention import kept_since

Differences = dict[datetime, tuple[str, ...]]

_RECORD = "reconciliation.json"


class Reconciliation(BaseModel):
    """The hours that were not as they should be when all stores were compared."""

    model_config = ConfigDict(frozen=True)

    id: str
    at: AwareDatetime
    drifted: tuple[AwareDatetime, ...] = ()  # the source has other rows than the batch was made of
    stale: tuple[AwareDatetime, ...] = ()  # billing or prices have changed since the batch
    damaged: tuple[AwareDatetime, ...] = ()  # ClickHouse holds other rows than the batch
    pruned: tuple[AwareDatetime, ...] = ()  # the source lost traces that the batch holds
    loaded: tuple[AwareDatetime, ...] = ()  # compared, and with a batch
    unreadable: tuple[AwareDatetime, ...] = ()  # not compared: a damaged manifest, or another fault
    # All batches, however old, were compared with so many versions of the billing history and with
    # these prices. The restated hours held others; they are compared again until they follow.
    billing_versions: int = 0
    prices: str = ""
    restated: tuple[AwareDatetime, ...] = ()
    differences: dict[AwareDatetime, tuple[str, ...]] = {}


def read_reconciliation(files: Files) -> Reconciliation | None:
    """Return the result of the last reconciliation; None: there was none.

    Raises:
        BatchError: its record is damaged.
    """
    try:
        return read_record(files, _RECORD, Reconciliation)
    except ValueError:
        raise BatchError(
            f"{files.location(_RECORD)} is damaged; remove it: the next run of "
            "reconcile_hours makes it"
        ) from None


def record_reconciliation(files: Files, found: Reconciliation) -> None:
    """Keep a reconciliation for the sensor that requests its hours."""
    if litter := files.glob(f"{_RECORD}.*"):  # of a write that was cut
        files.remove(litter)
    switch_record(files, _RECORD, found)


def hours_to_reconcile(
    store: BatchStore, first: datetime, days: int, now: datetime
) -> list[datetime]:
    """Return the closed hours of the last days, from ``first`` on.

    The hour that closed last is left out while it has no batch: the schedule is about to load it.
    """
    hours = closed_hours(first, timedelta(days=days), now)
    if hours and store.manifest(hours[-1]) is None:
        hours.pop()
    return hours


def reconcile(
    source: Source,
    store: BatchStore,
    open_database: Callable[[], AbstractContextManager[Database]],
    hours: Sequence[datetime],
    rules: Rules,
    kept_from: datetime = BEGINNING,
) -> Reconciliation:
    """Compare contiguous hours of the source, of the batches and of ClickHouse.

    Restated billing and new prices may concern any past, so all batches are compared with them,
    however old. The hours found so are compared in ClickHouse too, until it follows their batches.
    ClickHouse is opened, and held, only while it is compared; it keeps hours from ``kept_from`` on.

    Raises:
        SourceError: the operational database cannot be read.
        ClickHouseError: ClickHouse cannot be read.
        BatchError: another process loads and did not finish in time.
    """
    at = datetime.now(UTC)
    last = read_reconciliation(store.files) or Reconciliation(id="", at=at)
    manifests, unreadable = readable_manifests(store, hours)
    compared = [hour for hour in hours if hour not in unreadable]
    drifted, pruned, failed = (
        retried(lambda: compare_source(source, store, compared, manifests))
        if compared
        else ({}, {}, {})
    )
    unreadable |= failed
    others = [manifest for hour, manifest in manifests.items() if hour not in {**drifted, **failed}]
    earlier = earlier_hours_to_match(store, hours, rules, last)
    matched, _ = readable_manifests(store, earlier)
    stale, failed = stale_hours(store, [*matched.values(), *others], rules)
    unreadable |= failed
    # A load from the source, or with new billing and prices, puts the whole hour right.
    awaiting = stale.union(drifted)
    loaded = [each for each in others if each.hour not in awaiting | failed.keys()]
    # Since the last reconciliation these batches were written anew. ClickHouse may not follow yet.
    renewed, _ = readable_manifests(
        store,
        [
            hour
            for hour in last.restated
            if hour not in hours and hour not in stale and hour >= kept_from
        ],
    )
    damaged: Differences = {}
    with open_database() as database:
        # What the TTL of a table has deleted is past its retention, and no damage.
        kept = kept_since(database, store, None, at, TABLE)
        rolled_up = kept_since(database, store, None, at, TABLE, ROLLUP)
        for group in (loaded, *([manifest] for manifest in renewed.values())):
            damaged |= compare_table(database, store, [each for each in group if each.hour >= kept])
            # A damaged hour is rolled up again once it is repaired.
            hours_of_group = (each.hour for each in group)
            sound = [each for each in hours_of_group if each >= rolled_up and each not in damaged]
            damaged |= compare_rollup(database, store, sound)
    return Reconciliation(
        id=uuid4().hex,
        at=at,
        drifted=tuple(drifted),
        stale=tuple(sorted(stale)),
        damaged=tuple(sorted(damaged)),
        pruned=tuple(pruned),
        loaded=tuple(sorted({*manifests, *stale, *renewed})),
        unreadable=tuple(sorted(unreadable)),
        billing_versions=rules.history.num_rows,
        prices=rules.prices.version,
        restated=tuple(sorted({*stale.intersection(earlier), *renewed.keys() & damaged.keys()})),
        differences={**unreadable, **drifted, **damaged, **pruned},
    )


def readable_manifests(
    store: BatchStore, hours: Iterable[datetime]
) -> tuple[dict[datetime, Manifest], Differences]:
    """Return the manifests of the hours that have a batch, and the faults of unreadable ones."""
    manifests: dict[datetime, Manifest] = {}
    unreadable: Differences = {}
    for hour in hours:
        try:
            if manifest := store.manifest(hour):
                manifests[hour] = manifest
        except BatchError as error:
            unreadable[hour] = (str(error),)
    return manifests, unreadable


def earlier_hours_to_match(
    store: BatchStore,
    hours: Sequence[datetime],
    rules: Rules,
    last: Reconciliation,
) -> list[datetime]:
    """Return the hours before the compared hours whose billing or prices may have changed.

    New prices may concern any hour. A billing version that is new since the last reconciliation
    concerns the calls made after its ``valid_from``. It concerns earlier calls only where their
    organization had no version yet; the manifests count those calls.
    """
    new = rules.history.slice(last.billing_versions)
    earlier = [hour for hour in store.hours() if hours and hour < hours[0]]
    if rules.prices.version != last.prices:
        return earlier
    if not new.num_rows:
        return [hour for hour in earlier if hour in last.restated]
    since = pc.min(new.column("valid_from")).as_py()
    manifests, _ = readable_manifests(store, earlier)
    return [
        hour
        for hour, manifest in manifests.items()
        if hour in last.restated
        or hour + HOUR > since
        or not manifest.billing_matches.keys().isdisjoint((MATCH_FIRST_KNOWN, MATCH_NONE))
    ]


def compare_source(
    source: Source,
    store: BatchStore,
    hours: Sequence[datetime],
    manifests: dict[datetime, Manifest],
) -> tuple[Differences, Differences, Differences]:
    """Compare hours of the source with their batches.

    A trace is lost when its id is gone from the source. A trace that is soft-deleted, or whose
    ``created_at`` moved to another hour, is still there.

    Returns:
        The hours that drifted, the hours whose traces the source lost, and the hours whose
        comparison failed.
    """
    drifted: Differences = {}
    pruned: Differences = {}
    failed: Differences = {}
    with source.snapshot() as snapshot:
        ledgers = snapshot.ledger(Window.of(hours))
        for hour in hours:
            ledger, manifest = ledgers.get(hour, EMPTY_LEDGER), manifests.get(hour)
            if manifest is None:
                if ledger != EMPTY_LEDGER:
                    drifted[hour] = (f"{ledger.rows} rows in the source, no batch",)
            elif not is_of_ledger(manifest, ledger):
                with _noting(failed, hour):
                    is_pruned = has_lost_traces(snapshot, store, manifest, ledger)
                    (pruned if is_pruned else drifted)[hour] = describe_drift(manifest, ledger)
    return drifted, pruned, failed


@contextmanager
def _noting(failed: Differences, hour: datetime) -> Iterator[None]:
    """Note an hour whose comparison fails in a way that nobody foresaw; the others go on."""
    try:
        yield
    except PipelineError:  # of a store that no hour can be read of
        raise
    except Exception as error:  # noqa: BLE001 -- the check reports the hour
        failed[hour] = (str(unexpected(key_of(hour), error)),)


def describe_drift(manifest: Manifest, ledger: Ledger) -> tuple[str, ...]:
    """Return the figures of the source that have changed since the batch was made."""
    compared = (
        ("source rows", ledger.rows, manifest.source_rows),
        ("soft-deleted rows", ledger.deleted, manifest.source_deleted),
        ("newest change", ledger.newest_change, manifest.source_newest_change),
        ("source hash", ledger.source_hash, manifest.source_hash),
    )
    return tuple(f"{name} {now}, not {before}" for name, now, before in compared if now != before)


def has_lost_traces(
    snapshot: Snapshot, store: BatchStore, manifest: Manifest, ledger: Ledger
) -> bool:
    """Whether the source lost traces that a batch holds.

    The source is asked for the ids of the batch until one is missing, so a pruned hour costs one
    query. The age of the source's oldest trace would say less: the oldest hour also becomes empty
    where its only trace is moved.
    """
    try:
        return any(
            len(snapshot.present(ids)) < len(ids)
            for rows in store.column_batches(manifest, ["id"])
            if (ids := rows.column("id").to_pylist())
        )
    except BatchError:  # no id can be read; a load of the hour repairs the batch
        then = manifest.source_rows + manifest.source_deleted
        return then > ledger.rows + ledger.deleted


def stale_hours(
    store: BatchStore, manifests: Iterable[Manifest], rules: Rules
) -> tuple[set[datetime], Differences]:
    """Find the hours whose batch holds other billing or costs than a load would give now.

    Hours whose traces the source lost are among them: billing and costs are renewed from the batch.

    Returns:
        These hours, and the hours whose comparison failed.
    """
    stale: set[datetime] = set()
    failed: Differences = {}
    for manifest in manifests:
        with _noting(failed, manifest.hour), suppress(BatchError):  # its load reports the latter
            if is_stale(store, manifest, rules):
                stale.add(manifest.hour)
    return stale, failed


def compare_table(
    database: Database, store: BatchStore, manifests: Sequence[Manifest]
) -> Differences:
    """Return the hours whose rows in ClickHouse are not exactly those of the batch."""
    if not manifests:
        return {}
    # This finishes a swap that was cut, which is no damage, and upgrades an older table.
    with repaired_for_reading(database, store) as exists:
        if not exists:
            return {manifest.hour: ("the table is missing",) for manifest in manifests}
        return compare_loaded(database, store, manifests)


def compare_loaded(
    database: Database, store: BatchStore, manifests: Sequence[Manifest]
) -> Differences:
    """Compare hours of a table that exists, while nobody loads into it."""
    window = Window.of([manifest.hour for manifest in manifests])
    held = Held(database, TABLE)
    found = hour_totals(database, held, window, with_content_hash=True)
    differences: Differences = {}
    for manifest in manifests:
        if totals := found.get(manifest.hour):
            try:
                expected = figures_held(store, manifest, held)
            except BatchError as error:  # of a batch that is read, since the table rounds it
                differences[manifest.hour] = (str(error),)
                continue
            differs = tuple(describe_differences(expected, totals, Traces.tolerances))
        else:
            differs = (f"rows 0, not {manifest.rows}",) if manifest.rows else ()
        if differs:
            differences[manifest.hour] = differs
    return differences
