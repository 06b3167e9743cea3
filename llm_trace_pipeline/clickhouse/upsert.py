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

A journal cannot be replayed once the columns or the keys of ``t`` have changed, and would undo what
somebody has deleted or updated since. It is renamed to ``t__cut_<partition>`` then, so that other
swaps go on. Where ``t`` holds more rows of an hour than the cut journal, the rows that are there
twice are taken out. Hours with a batch are compared with their batch, and loaded where they differ;
after that the cut journal is dropped.

The statements stand here and not under ``sql/``, since their order is the algorithm: a process may
end after any of them. Queries that stand alone are files.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any

from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.clickhouse.kinds import is_shared_engine, require_one_target
from llm_trace_pipeline.clickhouse.others import (
    apply_patches,
    is_changed_since,
    ordered_changes,
    wait_for_mutations,
)
from llm_trace_pipeline.clickhouse.pins import OF_ANY_SIZE
from llm_trace_pipeline.clickhouse.tables import (
    catch_up,
    has_table,
    in_window,
    is_replicated,
    layout_of,
    name_in_front,
    parts_of,
    require_all_rows,
    tables_that_begin,
    wait_for_statements_on,
)
from llm_trace_pipeline.errors import ClickHouseError
from llm_trace_pipeline.hours import Window, key_of
from llm_trace_pipeline.sql import quote_text, read_sql, render

SWAP_ATTEMPTS = 5  # to swap a partition into which somebody else keeps inserting

# How ClickHouse refuses parts of a table with other columns, keys, indices or projections.
_OTHER_STRUCTURE = ("INCOMPATIBLE_COLUMNS", "BAD_ARGUMENTS", "INVALID_PARTITION_VALUE")
_IN_PARTITION = "_partition_id = {partition:String}"
# Merging tables that live for a second costs memory (0.3 GB with rows of 5 MB) and gains nothing.
_NO_MERGES = "max_bytes_to_merge_at_max_space_in_pool = 1"
# All columns of a staged part in one file: 50,000 rows of 7 KB go in in 1.4 s instead of 1.8. The
# target's own merges make them wide.
_COMPACT_PARTS = (f"min_bytes_for_wide_part = {2**60}", f"min_rows_for_wide_part = {2**60}")
_ORDER_BY = re.compile(r" ORDER BY (.+?)(?= SAMPLE BY | TTL | SETTINGS |$)")
_PROJECTION_MODE = "lightweight_mutation_projection_mode"  # else projections forbid DELETE


class Swap:
    """Replaces windows of one table on one node, whatever rows they hold.

    Every method raises a ClickHouseError where a statement fails.
    """

    def __init__(self, database: Database, table: str, time_column: str) -> None:
        """Swap windows of a table.

        Args:
            database: where the table lies; in a cluster, a replica of the shard.
            table: the target.
            time_column: the column that tells which hour a row belongs to.
        """
        self._database = database
        self._table = table
        self._time_column = time_column
        self._in_window = in_window(time_column)
        self._hour = f"toUnixTimestamp(toStartOfHour({time_column}, 'UTC'))"
        self._cut_prefix = f"{table}__cut_"
        self._staging, self._clone, self._ready = (
            f"{table}__{suffix}" for suffix in ("staging", "clone", "ready")
        )

    def recover(self) -> list[datetime]:
        """Finish a swap that was cut, and drop what an interrupted load left behind.

        A replica first fetches what the others have: its clone of a partition would lack rows.

        Returns:
            The hours of journals that cannot be replayed. They hold no row twice any more, but may
            hold those from before the swap beside those of their batch. Once they are as their
            batches say, ``drop_cut`` ends the matter.
        """
        require_one_target(self._database)
        wait_for_statements_on(self._database, self._staging, self._clone, self._ready)
        if layout := layout_of(self._database, self._table):
            require_all_rows(self._database, self._table)
            if is_replicated(self._database, layout):  # its swap is never cut: see cluster.py
                catch_up(self._database, self._table)
            elif has_table(self._database, self._ready):
                require_all_rows(self._database, self._ready)
                self._finish()
        self._drop(self._ready)
        self._drop(self._clone)
        self._drop(self._staging)
        return sorted(hour for cut in self._cut() for hour in self._undoubled(cut))

    def _finish(self) -> None:
        """Replay the journal; where the table was changed since it was made, set it aside."""
        is_outdated = is_changed_since(self._database, self._table, self._ready)
        for partition in self._partitions(self._ready, "1", {}):
            if not is_outdated:
                try:
                    self._replay(partition)
                    continue
                except ClickHouseError as error:
                    if error.name not in _OTHER_STRUCTURE:
                        raise
            cut = f"{self._cut_prefix}{partition}"
            self._drop(cut)
            self._database.execute(f"RENAME TABLE {self._name(self._ready)} TO {self._name(cut)}")
            return

    @property
    def outdated_journals(self) -> list[str]:
        """The journals that cannot be replayed, since the table has other columns or keys."""
        structure, of_table = (
            read_sql("clickhouse/structure.sql"),
            {"database": self._database.name},
        )
        ours, theirs = (
            self._database.rows(structure, of_table | {"table": table})
            for table in (self._table, self._ready)
        )
        return [*([self._ready] if theirs and theirs != ours else []), *self._cut()]

    def drop_cut(self) -> None:
        """Drop the journals that cannot be replayed."""
        for cut in self._cut():
            self._drop(cut)

    def _cut(self) -> list[str]:
        return tables_that_begin(self._database, self._cut_prefix)

    def _undoubled(self, cut: str) -> dict[datetime, int]:
        """Take out what the table holds twice of the hours of a journal; return its hours.

        Where the swap ended, or had not begun, no hour has more rows than the journal, but for
        those of its window. Of rows that are equal in all columns one stays.
        """
        journaled = self._hours(cut, "1", {})
        window = Window.of(sorted(journaled))
        for partition in self.partitions_of(window):
            held = self._hours(self._table, _IN_PARTITION, {"partition": partition})
            more = [hour for hour, rows in held.items() if rows > journaled.get(hour, rows)]
            seconds = [int(hour.timestamp()) for hour in more]
            parameters = {"partition": partition, "hours": seconds}
            of_hours = f"{_IN_PARTITION} AND {self._hour} IN {{hours:Array(UInt32)}}"
            once = f"SELECT DISTINCT * FROM {self._name(self._table)} WHERE {of_hours}"
            [distinct] = self._database.rows(f"SELECT count() AS rows FROM ({once})", parameters)
            if distinct["rows"] < sum(held[hour] for hour in more):
                self._swap(partition, more[0], partial(self._clone_once, once, parameters))
        return journaled

    def _clone_once(self, once: str, parameters: dict[str, Any]) -> None:
        """Fill the clone with a partition, of some hours only what is there ``once``."""
        clone = self._name(self._clone)
        others = (
            f"SELECT * FROM {self._name(self._table)} WHERE {_IN_PARTITION} "
            f"AND {self._hour} NOT IN {{hours:Array(UInt32)}}"
        )
        for rows in (others, once):
            self._database.execute(f"INSERT INTO {clone} {rows}", parameters)

    def _hours(self, table: str, condition: str, parameters: dict[str, Any]) -> dict[datetime, int]:
        """Return how many rows a table holds of the hours that it has rows of."""
        counts = self._database.rows(
            render(
                "clickhouse/hour_counts.sql",
                table=self._name(table),
                column=self._time_column,
                filter=condition,
            ),
            parameters,
        )
        return {row["hour"]: row["rows"] for row in counts}

    def _replay(self, partition: str) -> None:
        self._alter(
            self._table,
            f"REPLACE PARTITION ID {{partition:String}} FROM {self._name(self._ready)}",
            partition,
        )

    def replace(self, window: Window, fill: Callable[[str], None]) -> set[str]:
        """Put other rows in place of those of a window; return the partitions concerned.

        Args:
            window: the hours.
            fill: puts the new rows, of the same hours, into the staging table of this name.

        Raises:
            ClickHouseError: a statement failed, or another writer is in the way.
        """
        self.drop_staged()
        self._create_like_target(self._staging, *_COMPACT_PARTS)
        fill(self._staging)
        for table in (self._staging, self._table):
            require_all_rows(self._database, table)
        staged = self._partitions(self._staging, "1", {})
        held = self.partitions_of(window)
        for partition in sorted(staged | held):
            if partition in held:
                make = partial(self._clone_without, partition, window, partition in staged)
                self._swap(partition, window.start, make)
            else:
                self._attach(self._table, partition, self._staging)
        return staged | held

    def _clone_without(self, partition: str, window: Window, has_rows: bool) -> None:
        """Fill the clone with a partition, of a window with the staged rows."""
        try:
            self._attach(self._clone, partition, self._table)
        except ClickHouseError as error:
            if "patch parts" not in error.message:
                raise
            apply_patches(self._database, self._table, partition)
            self._attach(self._clone, partition, self._table)
        self._take_out(window)
        if has_rows:
            self._attach(self._clone, partition, self._staging)

    def _swap(self, partition: str, hour: datetime, make: Callable[[], None]) -> None:
        """Replace one partition, in one step for readers.

        Args:
            partition: its id.
            hour: which it is replaced for, as an error says.
            make: puts the rows of the partition into the clone.
        """
        for _ in range(SWAP_ATTEMPTS):
            before = self._fingerprint(partition)
            wait_for_mutations(self._database, self._table, partition)
            self._drop(self._clone)
            self._create_like_target(self._clone)
            make()
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
            f"hour {key_of(hour)}: another writer kept inserting into partition "
            f"{partition} of {self._table} during {SWAP_ATTEMPTS} attempts to swap it; pause that "
            "writer for hours that are being loaded, then materialize "
            f"{name_in_front(self._table)} again"
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
                        OF_ANY_SIZE,
                    )
        if self._count(self._clone, self._in_window, window.parameters):
            self._database.execute(
                f"DELETE FROM {self._name(self._clone)} WHERE {self._in_window}",
                window.parameters,
            )

    def _fingerprint(self, partition: str) -> tuple[Any, ...]:
        """Return figures of a partition that every change of others changes, and no merge.

        Returns:
            The largest block number, the rows of every hour, and what others have ordered to be
            changed: an UPDATE changes neither of the former.
        """
        blocks = parts_of(self._database, self._table, partition).values()
        counts = self._hours(self._table, _IN_PARTITION, {"partition": partition})
        changes = ordered_changes(self._database, self._table, partition)
        return max(blocks, default=0), counts, changes

    def _verify_swap(self, partition: str, before: tuple[Any, ...]) -> None:
        """Compare the partition with the journal before the journal is dropped.

        The parts that the swap brought in have new block numbers, and so have parts that anybody
        inserts after it. A part with an older number should have gone.
        """
        newest_block = before[0]
        held = self._count(self._table, _IN_PARTITION, {"partition": partition})
        journaled = self._count(self._ready, "1", {})
        parts = parts_of(self._database, self._table, partition)
        kept = [name for name, block in parts.items() if block <= newest_block]
        if held < journaled or kept:
            raise ClickHouseError(
                f"partition {partition} of {self._table} holds {held} rows after the swap, not "
                f"{journaled}, and {len(kept)} parts from before it; {self._ready} is kept, and "
                "the next load of any hour replays it"
            )

    def _create_like_target(self, table: str, *own_settings: str) -> None:
        """Make a table that parts can move to and from: the target's layout, as plain MergeTree.

        On shared storage the server makes it a shared one.
        """
        layout = layout_of(self._database, self._table)
        # No key is not the same as the key tuple(): parts do not move between the two.
        partition_by = f"PARTITION BY {key} " if (key := layout["partition_key"]) else ""
        theirs = layout["engine_full"].partition(" SETTINGS ")[2]
        # The sorting key of system.tables lacks which columns are DESC.
        order_by = _ORDER_BY.findall(layout["engine_full"])[0]
        ours = [
            setting
            for setting in (_NO_MERGES, f"{_PROJECTION_MODE} = 'rebuild'", *own_settings)
            if setting.partition(" ")[0] not in theirs
        ]
        settings = [*ours, theirs] if theirs else ours
        create = (
            f"CREATE TABLE {self._name(table)} AS {self._name(self._table)} ENGINE = MergeTree "
            f"{partition_by}"
            f"PRIMARY KEY ({layout['primary_key']}) ORDER BY {order_by}"
            f" SETTINGS {', '.join(settings)}"
        )
        self._database.execute(create)
        if not self._database.is_shared:
            return
        made = layout_of(self._database, table)
        if made["storage_policy"] != layout["storage_policy"]:  # else parts would be copied
            self._drop(table)
            policy = quote_text(layout["storage_policy"])
            self._database.execute(f"{create}, storage_policy = {policy}")
            made = layout_of(self._database, table)
        if is_shared_engine(made) != is_shared_engine(layout):
            self._drop(table)
            raise ClickHouseError(
                f"a table that is made as MergeTree becomes {made['engine']}, and {self._table} is "
                f"{layout['engine']}: parts do not move between the two",
                f"RENAME TABLE {self._name(self._table)} and let make backfill make it anew, or "
                "take cloud_mode_engine from the profile of CLICKHOUSE_USERNAME",
            )

    def partitions_of(self, window: Window) -> set[str]:
        """Return the ids of the table's partitions that hold rows of a window."""
        return self._partitions(self._table, self._in_window, window.parameters)

    def drop_staged(self) -> None:
        """Drop the staging table."""
        self._drop(self._staging)

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
            f"ALTER TABLE {self._name(table)} {action}", {"partition": partition}, OF_ANY_SIZE
        )

    def _drop(self, table: str) -> None:
        self._database.execute(f"DROP TABLE IF EXISTS {self._name(table)} SYNC", {}, OF_ANY_SIZE)

    def _name(self, table: str) -> str:
        return self._database.qualified(table)
