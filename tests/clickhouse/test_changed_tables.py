"""A table that somebody changes while a swap of it is cut: the next load makes it good."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from itertools import cycle
from pathlib import Path

import pytest

from llm_trace_pipeline.clickhouse.cluster import repaired_for_reading
from llm_trace_pipeline.clickhouse.rollup import compare_rollup, roll_up
from llm_trace_pipeline.clickhouse.tables import ROLLUP
from llm_trace_pipeline.errors import ClickHouseError
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.trace.columns import COLUMNS
from tests.harness.rows import DAY, MIDNIGHT, TABLE, make_rows
from tests.harness.statements import leaving_old_and_new_parts, stopping_at
from tests.harness.warehouse import Warehouse, left_over_tables

# One after the other, on one table.
CHANGES = (
    "ADD COLUMN note String DEFAULT 'none'",
    "MODIFY COLUMN note LowCardinality(String)",
    "RENAME COLUMN note TO remark",
    "ADD INDEX by_model model TYPE set(9), ADD PROJECTION p (SELECT model, count() GROUP BY model)",
    "ADD COLUMN rank UInt8, MODIFY ORDER BY (organization_id, agent_id, created_at, id, rank)",
    "DROP COLUMN remark",
)


def cut_a_swap(
    warehouse: Warehouse, day: datetime, cut: Callable[[], AbstractContextManager[object]]
) -> None:
    """Fill a day, with an hour that has no batch, and leave the journal of one of its hours."""
    theirs = make_rows(day + 5 * HOUR, 7)
    warehouse.load(day, 10)
    warehouse.load(day + HOUR, 10)
    warehouse.insert(theirs)
    warehouse.expected[day + 5 * HOUR] = theirs
    manifest = warehouse.publish(day, 12, 2)
    with cut():
        warehouse.load_batch(manifest)
    assert f"{TABLE}__ready" in left_over_tables(warehouse.database)


def check(warehouse: Warehouse) -> None:
    """Compare our columns of the table."""
    ours = ", ".join(column.name for column in COLUMNS)
    found = warehouse.database.rows(f"SELECT {ours} FROM {TABLE} ORDER BY created_at, id")
    assert found == [row for hour in sorted(warehouse.expected) for row in warehouse.expected[hour]]
    assert left_over_tables(warehouse.database) == []


def load_again(warehouse: Warehouse, day: datetime) -> None:
    manifest = warehouse.store.manifest(day)
    assert manifest
    warehouse.load_batch(manifest)


def load_another_day(warehouse: Warehouse, day: datetime) -> None:
    warehouse.load(day + 31 * DAY, 5)


def read(warehouse: Warehouse, _: datetime) -> None:
    with repaired_for_reading(warehouse.database, warehouse.store):
        pass


@pytest.mark.parametrize(
    ("cut", "changes"),
    [
        pytest.param(leaving_old_and_new_parts, CHANGES, id="old and new parts were left"),
        pytest.param(
            lambda: stopping_at(before="REPLACE PARTITION"), CHANGES[:2], id="it had not begun"
        ),
        pytest.param(
            lambda: stopping_at(after="REPLACE PARTITION"), CHANGES[:2], id="it had ended"
        ),
    ],
)
def test_a_swap_whose_table_changed_is_made_good(
    warehouse: Warehouse,
    cut: Callable[[], AbstractContextManager[object]],
    changes: Sequence[str],
) -> None:
    for number, (change, then) in enumerate(
        zip(changes, cycle((load_another_day, load_again, read)), strict=False)
    ):
        day = MIDNIGHT + number * DAY
        cut_a_swap(warehouse, day, cut)
        warehouse.database.execute(f"ALTER TABLE {TABLE} {change}")
        then(warehouse, day)
        check(warehouse)


def test_an_hour_whose_batch_is_damaged_stops_readers_and_no_other_load(
    warehouse: Warehouse,
) -> None:
    cut_a_swap(warehouse, MIDNIGHT, leaving_old_and_new_parts)
    warehouse.database.execute(f"ALTER TABLE {TABLE} {CHANGES[0]}")
    manifest = warehouse.store.manifest(MIDNIGHT)
    assert manifest
    part = Path(str(warehouse.store.part_paths(manifest)[0]))
    whole = part.read_bytes()
    part.unlink()

    warehouse.load(MIDNIGHT + DAY, 5)
    for _ in range(2):
        with pytest.raises(ClickHouseError, match="hour 2026-03-01-00:00: a swap was cut"):
            read(warehouse, MIDNIGHT)
    cut_a_swap(warehouse, MIDNIGHT + 2 * DAY, leaving_old_and_new_parts)
    warehouse.database.execute(f"ALTER TABLE {TABLE} DROP COLUMN note")
    warehouse.load(MIDNIGHT + 3 * DAY, 5)

    part.write_bytes(whole)
    read(warehouse, MIDNIGHT)
    warehouse.check()


def test_a_table_with_other_partitions_in_place_of_the_old_one(warehouse: Warehouse) -> None:
    cut_a_swap(warehouse, MIDNIGHT, leaving_old_and_new_parts)
    warehouse.database.execute(
        f"CREATE TABLE new AS {TABLE} ENGINE = MergeTree PARTITION BY toYYYYMM(created_at) "
        "ORDER BY (organization_id, created_at, id)"
    )
    warehouse.database.execute(f"INSERT INTO new SELECT * FROM {TABLE}")
    warehouse.database.execute(f"DROP TABLE {TABLE}")
    warehouse.database.execute(f"RENAME TABLE new TO {TABLE}")
    warehouse.load(MIDNIGHT + DAY, 5)
    warehouse.check()


def test_a_rollup_that_changed_is_made_good_with_the_next_day(warehouse: Warehouse) -> None:
    for day in (MIDNIGHT, MIDNIGHT + DAY):
        warehouse.load(day, 10)
    hours = [MIDNIGHT, MIDNIGHT + DAY]
    roll_up(warehouse.database, warehouse.store, hours)
    warehouse.load(MIDNIGHT, 12, 2)
    with leaving_old_and_new_parts(ROLLUP):
        roll_up(warehouse.database, warehouse.store, hours[:1])
    warehouse.database.execute(f"ALTER TABLE {ROLLUP} ADD COLUMN note String")
    roll_up(warehouse.database, warehouse.store, hours[1:])
    assert compare_rollup(warehouse.database, warehouse.store, hours) == {}
