"""Loads: hours of a table are compared with what they are to hold, and replaced where they differ.

A load may be cut at any moment and run again. It begins by finishing the swap of a load that was
cut, and leaves hours alone that are right. It ends by comparing the other hours of the partitions
that it touched, since a swap replaces a whole partition.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from llm_trace_pipeline.batches.files import Files
from llm_trace_pipeline.batches.manifest import Manifest
from llm_trace_pipeline.clickhouse.client import Database, retried
from llm_trace_pipeline.clickhouse.held import NotHeldError
from llm_trace_pipeline.clickhouse.tables import TABLE, define_table
from llm_trace_pipeline.clickhouse.upsert import SWAP_ATTEMPTS, Swap
from llm_trace_pipeline.errors import ClickHouseError, PipelineError, TransientClickHouseError
from llm_trace_pipeline.hours import BEGINNING, HOUR, Window, key_of, midnight
from llm_trace_pipeline.sql import render

_log = logging.getLogger(__name__)

Figures = dict[str, Any]  # of an hour, by the name that a message tells: counts, sums, hashes


@dataclass(frozen=True)
class Hour:
    """What a table is to hold of an hour."""

    hour: datetime
    figures: Figures
    batch: Manifest | None = None  # where the rows are; None: they are made of another table


@dataclass(frozen=True)
class Loaded:
    """What loading an hour did."""

    expected: Hour  # with the batch that the hour had when its turn came
    found: Figures  # what the table holds of the hour now
    was_written: bool  # False: the hour was as expected already
    differences: tuple[str, ...]  # from what is expected; none where all is well
    repaired_hours: tuple[datetime, ...]  # other hours of the partitions, written again too


class Contents(Protocol):
    """Where the rows of a table come from, and by what figures they are compared.

    Every method raises a ClickHouseError where a table cannot be read or written.
    """

    time_column: str  # which tells the hour of a row
    tolerances: Mapping[str, float]  # by which share of its value a figure may be off

    def expected(self, hours: Sequence[datetime]) -> list[Hour]:
        """Return what the table is to hold of the hours, in their order.

        Raises:
            PipelineError: nobody knows what an hour is to hold.
        """

    def expected_around(self, hours: Sequence[datetime]) -> list[Hour]:
        """Return what the table is to hold of those of the hours that were ever loaded.

        An hour of which nobody knows what it is to hold is left out.
        """

    def found(self, window: Window) -> dict[datetime, Figures]:
        """Return what the table holds of every hour of a window, empty hours included."""

    def found_around(self, window: Window) -> dict[datetime, Figures]:
        """Return what ``found`` does, without the figures that cost most."""

    def fill(self, staging: str, hours: Sequence[Hour]) -> None:
        """Put the rows of contiguous hours into a staging table."""


def loading(files: Files) -> AbstractContextManager[None]:
    """Hold the right to load what lies under one root into ClickHouse.

    Dagster's pool serializes loads; this does so for loads that are started by hand. The roll-up
    takes turns with the loads of the table that it is made of.

    Raises:
        BatchError: another process loads and did not finish in time.
    """
    return files.locked(f"loading/{TABLE}")


class Loader:
    """Makes hours of a table what they are expected to be, wherever their rows come from."""

    def __init__(
        self,
        database: Database,
        table: str,
        contents: Contents,
        files: Files,
        kept_from: datetime = BEGINNING,
    ) -> None:
        """Load into the table, which is made if it is missing.

        Args:
            database: where the table lies.
            table: the target.
            contents: what the table is to hold.
            files: where the batches and the lock of the loads lie.
            kept_from: where the retention begins; earlier hours may lack what is expected of them.
        """
        self._database = database
        self._table = table
        self._contents = contents
        self._files = files
        self._kept_from = kept_from
        self._swap = Swap(database, table, contents.time_column)

    @property
    def time_column(self) -> str:
        """The column that tells the hour of a row."""
        return self._contents.time_column

    @property
    def targets(self) -> list[tuple[Database, str]]:
        """Where rows lie: the node, and the table's name there."""
        return [(self._database, self._table)]

    def recover(self) -> None:
        """Do what ``try_recover`` does, for who reads or erases what the table holds.

        Raises:
            ClickHouseError: also where an hour remains that may hold rows twice.
        """
        if error := self.try_recover():
            raise error

    def try_recover(self) -> ClickHouseError | None:
        """Finish a swap that was cut, and drop what an interrupted load left behind.

        Where the table was changed since, the swap cannot be finished: the hours of its partition
        are loaded from their batches where they differ.

        Returns:
            The error of an hour that cannot be loaded, and may hold rows twice until it is. Loads
            of other hours may go on.

        Raises:
            ClickHouseError: a statement failed, or one of an earlier load does not end.
        """
        hours = self._swap.recover()
        if not hours:
            return None
        define_table(self._database, self._table)
        left = None
        for hour in self._differing([hour for hour in hours if hour >= self._kept_from]):
            try:
                self._load(self._contents.expected([hour]))
            except TransientClickHouseError:
                raise
            except PipelineError as error:
                left = ClickHouseError(
                    f"hour {key_of(hour)}: a swap was cut, and {self._table} was changed after it: "
                    f"the hour may hold rows twice until it can be loaded again: {error}",
                    "mend that, then run it again",
                )
        self._swap.drop_staged()
        if not left:
            self._swap.drop_cut()
        return left

    def compare(self, hours: Sequence[datetime]) -> dict[datetime, list[str]]:
        """Return the hours that the table does not hold as expected, and what differs.

        Raises:
            BatchError: a batch is missing, or another process loads.
            ClickHouseError: a statement failed.
        """
        with loading(self._files):
            compared = retried(lambda: self._compared(hours))
        return {
            each.hour: differences
            for each, found in compared
            if (differences := self._differences(each, found))
        }

    def load(
        self,
        hours: Sequence[datetime],
        awaiting: frozenset[datetime] = frozenset(),
        *,
        force: bool = False,
    ) -> list[Loaded]:
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
        with loading(self._files):
            return self.load_held(hours, awaiting, force=force)

    def load_held(
        self,
        hours: Sequence[datetime],
        awaiting: frozenset[datetime] = frozenset(),
        *,
        force: bool = False,
    ) -> list[Loaded]:
        """Do what ``load`` does, where the caller holds the lock of the loads."""
        # The whole load is repeated, and no single statement: it begins with recover(), and is
        # exact from any state that statements whose answer was lost leave behind.
        return retried(lambda: self._load_serialized(hours, awaiting, force=force))

    def _compared(self, hours: Sequence[datetime]) -> list[tuple[Hour, Figures]]:
        """Return what the table is to hold of the hours, and what it holds, in their order."""
        if error := self.try_recover():  # before the upgrade: a journal has the columns of its day
            _log.warning("%s", error)
        define_table(self._database, self._table)
        # Read only now: while this load waited for its turn, a batch may have been switched.
        expected = self._contents.expected(hours)
        found = self._contents.found(window_of(expected))
        return [(each, found[each.hour]) for each in expected]

    def _load_serialized(
        self, hours: Sequence[datetime], awaiting: frozenset[datetime], *, force: bool
    ) -> list[Loaded]:
        compared = self._compared(hours)
        expected = [each for each, _ in compared]
        found = {each.hour: figures for each, figures in compared}
        stale = [each for each in expected if force or self._differences(each, found[each.hour])]
        partitions = self._swap.partitions_of(window_of(expected))
        for neighbours in _neighbours(stale):
            loaded, concerned = self._load(neighbours)
            found |= loaded
            partitions |= concerned
        repaired: list[datetime] = []
        for other in self._differing_hours(partitions, expected, awaiting.union(hours)):
            with suppress(NotHeldError):  # its own load says so
                self._load(self._contents.expected([other]))
                repaired.append(other)
        self._swap.drop_staged()
        return [
            Loaded(
                expected=each,
                found=found[each.hour],
                was_written=each in stale,
                differences=tuple(self._differences(each, found[each.hour])),
                repaired_hours=tuple(repaired),
            )
            for each in expected
        ]

    def _load(self, hours: Sequence[Hour]) -> tuple[dict[datetime, Figures], set[str]]:
        """Replace contiguous hours and read them back; again where somebody inserted meanwhile.

        Returns:
            What the table holds of the hours now, and the partitions concerned.
        """
        window = window_of(hours)
        for _ in range(SWAP_ATTEMPTS):
            partitions = self._swap.replace(window, partial(self._contents.fill, hours=hours))
            found = self._contents.found(window)
            if not any(self._differences(each, found[each.hour]) for each in hours):
                break
        return found, partitions

    def _differences(self, expected: Hour, found: Figures) -> list[str]:
        return describe_differences(expected.figures, found, self._contents.tolerances)

    def _differing_hours(
        self, partitions: set[str], loaded: Sequence[Hour], excluded: frozenset[datetime]
    ) -> list[datetime]:
        """Return the other hours around that the table does not hold as expected.

        Around means from the first to the last day of the partitions, the loaded hours' days among
        them. An hour is compared over all partitions, since it may lie in several. What the
        retention drops is no difference.
        """
        rows = self._database.rows(
            render(
                "clickhouse/days_of_partitions.sql",
                table=self._database.qualified(self._table),
                column=self.time_column,
            ),
            {"partitions": sorted(partitions)},
        )
        own = [midnight(each.hour) for each in (loaded[0], loaded[-1])]
        first = min([own[0], *(row["first"] for row in rows)])
        last = max([own[-1], *(row["last"] for row in rows)])
        around = Window(first, last + 24 * HOUR)
        found = self._contents.found_around(around)
        others = self._contents.expected_around(
            [hour for hour in around.hours if hour not in excluded and hour >= self._kept_from]
        )
        return [each.hour for each in others if self._differences(each, found[each.hour])]

    def _differing(self, hours: Sequence[datetime]) -> list[datetime]:
        """Return the hours of which the table holds rows, but not as expected."""
        if not hours:
            return []
        found = self._contents.found_around(Window.of(hours))
        return [
            each.hour
            for each in self._contents.expected_around(hours)
            if found[each.hour]["rows"] and self._differences(each, found[each.hour])
        ]


def describe_differences(
    expected: Figures, found: Figures, tolerances: Mapping[str, float]
) -> list[str]:
    """Return the figures of an hour that are not as expected, such as ``rows 10, not 12``.

    Args:
        expected: what the table is to hold.
        found: what it holds; a figure that was not computed is not compared.
        tolerances: by which share of its value a figure may be off; other figures are exact.
    """
    return [
        f"{name} {found[name]}, not {value}"
        for name, value in expected.items()
        if name in found
        and not (
            abs(float(found[name]) - float(value)) <= tolerances[name] * float(value)
            if name in tolerances
            else found[name] == value
        )
    ]


def window_of(hours: Sequence[Hour]) -> Window:
    """Return the window from the first hour to the end of the last."""
    return Window.of([each.hour for each in hours])


def _neighbours(hours: Sequence[Hour]) -> list[list[Hour]]:
    """Split hours where one is missing between two."""
    groups: list[list[Hour]] = []
    for each in hours:
        if groups and each.hour == groups[-1][-1].hour + HOUR:
            groups[-1].append(each)
        else:
            groups.append([each])
    return groups
