"""The partition-aware upsert: an hour is replaced whole, and a reader never sees it half-done.

For a window of hours of a table ``t``: their batches go into ``t__staging``; a partition without
rows of the window gets them appended by ATTACH PARTITION; any other is cloned (hard links), the
window is taken out of the clone and the staging rows are attached to it, the clone is renamed to
``t__ready``, and REPLACE PARTITION swaps it in, in one step for readers. A window is one hour, or
several small ones: a swap costs the same for a day of them (1,000 traces an hour: 0.20 s of CPU an
hour one by one, 0.07 together).

``t__ready`` is the journal. A process killed inside REPLACE can leave old and new parts both
active, which doubles every hour of the partition and which another upsert does not repair;
replaying REPLACE from ``t__ready`` does. So a load begins with that replay, and ``t__ready`` is
dropped only after the swap is verified.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

from llm_trace_pipeline.batches.files import Files
from llm_trace_pipeline.batches.manifest import Manifest
from llm_trace_pipeline.batches.parts import PartPath
from llm_trace_pipeline.clickhouse.client import Database, retried
from llm_trace_pipeline.clickhouse.tables import (
    TABLE,
    define_table,
    has_table,
    in_window,
    layout_of,
    parts_of,
    wait_for_statements_on,
)
from llm_trace_pipeline.errors import ClickHouseError
from llm_trace_pipeline.hours import HOUR, Window, key_of, midnight
from llm_trace_pipeline.sql import render

ATTEMPTS = 5  # to swap a partition into which somebody else keeps inserting

_IN_PARTITION = "_partition_id = {partition:String}"
_WAIT = {"mutations_sync": 2, "alter_sync": 2, "lightweight_deletes_sync": 2}
# Merging tables that live for a second costs memory (0.3 GB with rows of 5 MB) and gains nothing.
_NO_MERGES = "max_bytes_to_merge_at_max_space_in_pool = 1"
# All columns of a staged part in one file: 50,000 rows of 7 KB go in in 1.4 s instead of 1.8. The
# target's own merges make them wide.
_COMPACT_PARTS = (f"min_bytes_for_wide_part = {2**60}", f"min_rows_for_wide_part = {2**60}")
_PROJECTION_MODE = "lightweight_mutation_projection_mode"  # else projections forbid DELETE


class Hourly(Protocol):
    """What a table is to hold of an hour."""

    @property
    def hour(self) -> datetime:
        """The hour."""


Expected = TypeVar("Expected", bound=Hourly)
Found = TypeVar("Found")


@dataclass(frozen=True)
class WindowResult(Generic[Expected, Found]):
    """What loading an hour did."""

    expected: Expected  # what was loaded: of llm_traces, the hour's batch when its turn came
    found: Found  # what the table holds of the hour now
    was_written: bool  # False: the hour was as expected already
    differences: tuple[str, ...]  # from what is expected; none where all is well
    repaired_hours: tuple[datetime, ...]  # others of the partitions, written again too


def loading(files: Files) -> AbstractContextManager[None]:
    """Hold the right to load what lies under one root into ClickHouse.

    Raises:
        BatchError: another process loads and did not finish in time.
    """
    return files.locked(f"loading/{TABLE}")


class Batches(Protocol):
    """What a load asks of the batch store."""

    @property
    def files(self) -> Files:
        """Where the batches lie."""

    def manifest(self, hour: datetime) -> Manifest | None:
        """Return what the hour's batch holds; None: there is none."""

    def part_paths(self, manifest: Manifest) -> list[PartPath]:
        """Return the files of a batch."""


class WindowLoader(ABC, Generic[Expected, Found]):
    """Makes hours of a table what they are expected to be, wherever their rows come from."""

    time_column = "created_at"
    _asset = TABLE  # which loads the table, or in a cluster the local ones behind it
    _nothing: Found  # what the table holds of an empty hour

    def __init__(
        self, database: Database, store: Batches, table: str, keep_from: datetime | None = None
    ) -> None:
        """Load into the table, which is made if it is missing.

        Args:
            database: where the table lies.
            store: where the batches lie.
            table: the target.
            keep_from: where the retention begins; earlier hours may lack what is expected of them.
        """
        self._database = database
        self._store = store
        self._table = table
        self._keep_from = keep_from
        self._in_window = in_window(self.time_column)
        self._staging, self._clone, self._ready = (
            f"{table}__{suffix}" for suffix in ("staging", "clone", "ready")
        )

    @property
    def targets(self) -> list[tuple[Database, str]]:
        """Where rows lie: the node, and the table's name there."""
        return [(self._database, self._table)]

    @abstractmethod
    def _expected(self, hours: Sequence[datetime]) -> list[Expected]:
        """Return what the table is to hold of the hours, in their order."""

    @abstractmethod
    def _expected_around(self, hours: Sequence[datetime]) -> list[Expected]:
        """Return the same of those that were ever loaded; what cannot be read is left out."""

    @abstractmethod
    def _fill(self, expected: Sequence[Expected]) -> None:
        """Put the rows of contiguous hours into the staging table."""

    @abstractmethod
    def _found(self, window: Window) -> dict[datetime, Found]:
        """Return what the table holds, by hour; none where it holds nothing."""

    def _found_around(self, window: Window) -> dict[datetime, Found]:
        """Return the same of hours that only stand beside those that are loaded."""
        return self._found(window)

    @abstractmethod
    def _differences(self, expected: Expected, found: Found) -> list[str]:
        """Return what of an hour is not as expected, such as ``rows 10, not 12``."""

    def load(
        self,
        hours: Sequence[datetime],
        awaiting: frozenset[datetime] = frozenset(),
        *,
        force: bool = False,
    ) -> list[WindowResult[Expected, Found]]:
        """Make the table hold exactly what is expected of some hours.

        An hour that equals it already (rows, tokens, costs, content) is left alone.

        Args:
            hours: the hours, in their order; neighbours are swapped in together.
            awaiting: hours that the caller is about to load: they may differ.
            force: write the hours in any case.

        Raises:
            BatchError: a batch is missing or damaged; no row was changed.
            ClickHouseError: a statement failed, or another writer is in the way.
        """
        # The pool serializes loads under Dagster; this does where two are started by hand. What is
        # made of llm_traces takes turns with its loads.
        with loading(self._store.files):
            return self.load_held(hours, awaiting, force=force)

    def load_held(
        self,
        hours: Sequence[datetime],
        awaiting: frozenset[datetime] = frozenset(),
        *,
        force: bool = False,
    ) -> list[WindowResult[Expected, Found]]:
        """Do what ``load`` does, where the caller holds the loads."""
        # The whole load is what can be repeated: it begins with recover(), and is exact from any
        # state that statements whose answer was lost leave behind.
        return retried(lambda: self._load_serialized(hours, awaiting, force=force))

    def _load_serialized(
        self, hours: Sequence[datetime], awaiting: frozenset[datetime], *, force: bool
    ) -> list[WindowResult[Expected, Found]]:
        self.recover()  # before the upgrade: a journal has the columns of its day
        define_table(self._database, self._table)
        # Read only now: before this load had its turn, it may have been older.
        expected = self._expected(hours)
        found = self._totals(expected)
        stale = [each for each in expected if force or self._differences(each, found[each.hour])]
        partitions = self._partitions(self._table, self._in_window, window_of(expected).parameters)
        for neighbours in _neighbours(stale):
            loaded, concerned = self._load(neighbours)
            found |= loaded
            partitions |= concerned
        others = self._differing_hours(partitions, expected, awaiting.union(hours))
        for other in others:
            self._load([other])
        self._drop(self._staging)
        return [
            WindowResult(
                expected=each,
                found=found[each.hour],
                was_written=each in stale,
                differences=tuple(self._differences(each, found[each.hour])),
                repaired_hours=tuple(other.hour for other in others),
            )
            for each in expected
        ]

    def _load(self, expected: Sequence[Expected]) -> tuple[dict[datetime, Found], set[str]]:
        """Replace a window and read it back; again where somebody inserted into it meanwhile."""
        for _ in range(ATTEMPTS):
            partitions = self._replace(expected)
            found = self._totals(expected)
            if not any(self._differences(each, found[each.hour]) for each in expected):
                break
        return found, partitions

    def recover(self) -> None:
        """Finish a swap that was cut, and drop what an interrupted load left behind.

        Raises:
            ClickHouseError: a statement failed, or one of an earlier load does not end.
        """
        # On a server it runs on after its load was killed or lost the connection.
        wait_for_statements_on(self._database, self._staging, self._clone, self._ready)
        if (
            not self._database.shard  # whose swaps are done or not: see cluster.py
            and has_table(self._database, self._table)
            and has_table(self._database, self._ready)
        ):
            for partition in self._partitions(self._ready, "1", {}):
                self._replay(partition)
        self._drop(self._ready)
        self._drop(self._clone)
        self._drop(self._staging)

    def _replay(self, partition: str) -> None:
        self._alter(
            self._table,
            f"REPLACE PARTITION ID {{partition:String}} FROM {self._name(self._ready)}",
            partition,
        )

    def _replace(self, expected: Sequence[Expected]) -> set[str]:
        """Put what is expected in place of the hours' rows; return the partitions concerned."""
        window = window_of(expected)
        self._drop(self._staging)
        self._create_like_target(self._staging, *_COMPACT_PARTS)
        self._fill(expected)
        staged = self._partitions(self._staging, "1", {})
        held = self._partitions(self._table, self._in_window, window.parameters)
        for partition in sorted(staged | held):
            if partition in held:
                self._swap(partition, window, has_rows=partition in staged)
            else:
                self._attach(self._table, partition, self._staging)
        return staged | held

    def _swap(self, partition: str, window: Window, *, has_rows: bool) -> None:
        """Replace the window within one partition, in one step for readers."""
        for _ in range(ATTEMPTS):
            before = self._fingerprint(partition)
            self._drop(self._clone)
            self._create_like_target(self._clone)
            self._attach(self._clone, partition, self._table)
            self._take_out(window)
            if has_rows:
                self._attach(self._clone, partition, self._staging)
            is_empty = not self._count(self._clone, "1", {})
            if not is_empty:
                self._database.execute(
                    f"RENAME TABLE {self._name(self._clone)} TO {self._name(self._ready)}"
                )
            # As late as it can be: what is inserted from here to the swap vanishes with it.
            if self._fingerprint(partition) != before:
                self._drop(self._ready)  # its swap has not begun
                continue
            if is_empty:
                # REPLACE from a table without parts is refused since 26.6, and emptied the target
                # without a word before.
                # Named after the clone, so that a later load waits for it where it still runs.
                clone = self._name(self._clone)
                drop = f"DROP PARTITION ID {{partition:String}} /* emptied: {clone} */"
                self._alter(self._table, drop, partition)
                self._drop(self._clone)
            else:
                self._replay(partition)
                self._verify_swap(partition, before)
                self._drop(self._ready)
            return
        raise ClickHouseError(
            f"hour {key_of(window.start)}: another writer kept inserting into partition "
            f"{partition} of {self._table} during {ATTEMPTS} attempts to swap it; pause that "
            f"writer for hours that are being loaded, then materialize {self._asset} again"
        )

    def _take_out(self, window: Window) -> None:
        """Remove the window's rows from the clone."""
        parts = self._database.rows(
            render(
                "clickhouse/parts_in_window.sql",
                table=self._name(self._clone),
                in_window=self._in_window,
            ),
            window.parameters,
        )
        for part in parts:
            if part["is_inside"]:  # 10 ms, where a DELETE masks every part of the partition
                with suppress(ClickHouseError):  # a merge may just have put it into another part
                    self._database.execute(
                        f"ALTER TABLE {self._name(self._clone)} DROP PART {{part:String}}",
                        {"part": part["name"]},
                        _WAIT,
                    )
        if self._count(self._clone, self._in_window, window.parameters):
            self._database.execute(
                f"DELETE FROM {self._name(self._clone)} WHERE {self._in_window}",
                window.parameters,
                _WAIT,
            )

    def _fingerprint(self, partition: str) -> tuple[Any, ...]:
        """Return what changes when anybody writes into the partition; merges do not count."""
        blocks = [
            part["max_block_number"] for part in parts_of(self._database, self._table, partition)
        ]
        counts = self._database.rows(
            render(
                "clickhouse/hour_counts.sql",
                table=self._name(self._table),
                column=self.time_column,
            ),
            {"partition": partition},
        )
        return max(blocks, default=0), [(row["hour"], row["rows"]) for row in counts]

    def _verify_swap(self, partition: str, before: tuple[Any, ...]) -> None:
        """Compare the partition with the journal before the journal is dropped.

        What the swap brought in has new block numbers, and so has what anybody inserts after it.
        """
        newest_block = before[0]
        held = self._count(self._table, _IN_PARTITION, {"partition": partition})
        journaled = self._count(self._ready, "1", {})
        kept = [
            part["name"]
            for part in parts_of(self._database, self._table, partition)
            if part["max_block_number"] <= newest_block
        ]
        if held < journaled or kept:
            raise ClickHouseError(
                f"partition {partition} of {self._table} holds {held} rows after the swap, not "
                f"{journaled}, and {len(kept)} parts from before it; {self._ready} is kept, and "
                "the next load of any hour replays it"
            )

    def _totals(self, expected: Sequence[Expected]) -> dict[datetime, Found]:
        """Return what the table holds of each hour."""
        found = self._found(window_of(expected))
        return {each.hour: found.get(each.hour, self._nothing) for each in expected}

    def _differing_hours(
        self, partitions: set[str], loaded: Sequence[Expected], excluded: frozenset[datetime]
    ) -> list[Expected]:
        """Return what is expected of the other hours around, where the table does not equal it.

        Around means from the first to the last day of the partitions, the loaded hours' among them.
        An hour is compared over all partitions, since it may lie in several. What the retention
        drops is no difference.
        """
        rows = self._database.rows(
            render(
                "clickhouse/days_of_partitions.sql",
                table=self._name(self._table),
                column=self.time_column,
            ),
            {"partitions": sorted(partitions)},
        )
        own = [midnight(each.hour) for each in (loaded[0], loaded[-1])]
        first = min([own[0], *(row["first"] for row in rows)])
        last = max([own[-1], *(row["last"] for row in rows)])
        around = Window(first, last + 24 * HOUR)
        found = self._found_around(around)
        others = self._expected_around(
            [
                hour
                for hour in around.hours
                if hour not in excluded and not (self._keep_from and hour < self._keep_from)
            ]
        )
        return [
            each for each in others if self._differences(each, found.get(each.hour, self._nothing))
        ]

    def _create_like_target(self, table: str, *own_settings: str) -> None:
        """Make a table that parts can move to and from: the target's layout, as plain MergeTree."""
        layout = layout_of(self._database, self._table)
        # No key is not the same as the key tuple(): parts do not move between the two.
        partition_by = f"PARTITION BY {key} " if (key := layout["partition_key"]) else ""
        theirs = layout["engine_full"].partition(" SETTINGS ")[2]
        ours = [
            setting
            for setting in (_NO_MERGES, f"{_PROJECTION_MODE} = 'rebuild'", *own_settings)
            if setting.partition(" ")[0] not in theirs
        ]
        settings = [*ours, theirs] if theirs else ours
        self._database.execute(
            f"CREATE TABLE {self._name(table)} AS {self._name(self._table)} ENGINE = MergeTree "
            f"{partition_by}"
            f"PRIMARY KEY ({layout['primary_key']}) ORDER BY ({layout['sorting_key']})"
            f" SETTINGS {', '.join(settings)}"
        )

    def _partitions(self, table: str, condition: str, parameters: dict[str, Any]) -> set[str]:
        rows = self._database.rows(
            f"SELECT DISTINCT _partition_id AS id FROM {self._name(table)} WHERE {condition}",
            parameters,
        )
        return {row["id"] for row in rows}

    def _count(self, table: str, condition: str, parameters: dict[str, Any]) -> int:
        # Never system.parts.rows, which counts deleted rows too.
        rows = self._database.rows(
            f"SELECT count() AS rows FROM {self._name(table)} WHERE {condition}", parameters
        )
        return int(rows[0]["rows"])

    def _attach(self, table: str, partition: str, source: str) -> None:
        self._alter(
            table, f"ATTACH PARTITION ID {{partition:String}} FROM {self._name(source)}", partition
        )

    def _alter(self, table: str, action: str, partition: str) -> None:
        self._database.execute(
            f"ALTER TABLE {self._name(table)} {action}", {"partition": partition}, _WAIT
        )

    def _drop(self, table: str) -> None:
        self._database.execute(f"DROP TABLE IF EXISTS {self._name(table)} SYNC")

    def _name(self, table: str) -> str:
        return self._database.qualified(table)


def window_of(hours: Sequence[Hourly]) -> Window:
    """Return the window from the first hour to the end of the last."""
    return Window(hours[0].hour, hours[-1].hour + HOUR)


def _neighbours(hours: Sequence[Expected]) -> list[list[Expected]]:
    """Split hours where one is missing between two."""
    groups: list[list[Expected]] = []
    for each in hours:
        if groups and each.hour == groups[-1][-1].hour + HOUR:
            groups[-1].append(each)
        else:
            groups.append([each])
    return groups
