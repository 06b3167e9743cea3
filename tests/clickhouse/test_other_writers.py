"""Another writer of the table: its rows survive where no batch says otherwise, and only there."""

import pytest

from llm_trace_pipeline.clickhouse.tables import define_table
from llm_trace_pipeline.clickhouse.upsert import SWAP_ATTEMPTS
from llm_trace_pipeline.errors import ClickHouseError
from llm_trace_pipeline.hours import HOUR
from tests.harness.rows import MIDNIGHT, TABLE, make_rows
from tests.harness.statements import another_writer
from tests.harness.warehouse import Warehouse

STAGING_INTO_CLONE = "ATTACH PARTITION ID {partition:String} FROM `llm_traces__staging`"
TARGET_INTO_CLONE = "ATTACH PARTITION ID {partition:String} FROM `llm_traces`"
MOMENTS = [
    pytest.param(TARGET_INTO_CLONE, id="before the partition is cloned"),
    pytest.param("DELETE FROM", id="before the hour is taken out of the clone"),
    pytest.param(STAGING_INTO_CLONE, id="before the batch is put into the clone"),
    pytest.param("RENAME TABLE", id="before the clone becomes the journal"),
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_rows_inserted_into_an_hour_without_batch_survive(
    warehouse: Warehouse, moment: str
) -> None:
    warehouse.load(MIDNIGHT, 10)
    warehouse.load(MIDNIGHT + HOUR, 10)
    warehouse.merge(MIDNIGHT)
    theirs = make_rows(MIDNIGHT + 5 * HOUR, 3)
    with another_writer(lambda: warehouse.insert(theirs), before=moment):
        assert warehouse.load(MIDNIGHT, 10, 2).repaired_hours == ()
    warehouse.expected[MIDNIGHT + 5 * HOUR] = theirs
    warehouse.check()


def test_rows_inserted_right_after_the_swap_survive(warehouse: Warehouse) -> None:
    warehouse.load(MIDNIGHT, 10)
    theirs = make_rows(MIDNIGHT + 5 * HOUR, 3)
    with another_writer(lambda: warehouse.insert(theirs), after="REPLACE PARTITION"):
        assert warehouse.load(MIDNIGHT, 10, 2).repaired_hours == ()
    warehouse.expected[MIDNIGHT + 5 * HOUR] = theirs
    warehouse.check()


@pytest.mark.parametrize(
    ("deleted", "inserted"),
    [
        pytest.param("step-1", 0, id="a row deleted"),
        pytest.param("step-1", 1, id="a row inserted and another deleted"),
    ],
)
def test_rows_deleted_from_an_hour_without_batch_do_not_come_back(
    warehouse: Warehouse, deleted: str, inserted: int
) -> None:
    warehouse.load(MIDNIGHT, 10)
    hour = MIDNIGHT + 5 * HOUR
    theirs = make_rows(hour, 10)
    warehouse.insert(theirs[:9])

    def meddle() -> None:
        warehouse.database.execute(
            f"DELETE FROM {TABLE} WHERE step_id = {{id:String}} AND created_at > {{at:DateTime}}",
            {"id": deleted, "at": hour},
        )
        if inserted:
            warehouse.insert(theirs[9:])

    with another_writer(meddle, before="RENAME TABLE"):
        warehouse.load(MIDNIGHT, 10, 2)
    warehouse.expected[hour] = [row for row in theirs[: 9 + inserted] if row["step_id"] != deleted]
    warehouse.check()


@pytest.mark.parametrize("moment", MOMENTS)
def test_rows_inserted_into_a_loaded_hour_do_not_stay(warehouse: Warehouse, moment: str) -> None:
    warehouse.load(MIDNIGHT, 10)
    warehouse.load(MIDNIGHT + HOUR, 10)
    warehouse.merge(MIDNIGHT)
    theirs = make_rows(MIDNIGHT + HOUR, 13)[10:]
    with another_writer(lambda: warehouse.insert(theirs), before=moment):
        assert warehouse.load(MIDNIGHT, 10, 2).repaired_hours == (MIDNIGHT + HOUR,)
    warehouse.check()


@pytest.mark.parametrize("moment", MOMENTS)
def test_rows_inserted_into_the_hour_itself_do_not_stay(warehouse: Warehouse, moment: str) -> None:
    warehouse.load(MIDNIGHT, 10)
    warehouse.load(MIDNIGHT + HOUR, 10)
    warehouse.merge(MIDNIGHT)
    theirs = make_rows(MIDNIGHT, 13)[10:]
    with another_writer(lambda: warehouse.insert(theirs), before=moment):
        warehouse.load(MIDNIGHT, 10, 2)
    warehouse.check()


@pytest.mark.parametrize(
    ("before", "statement", "times"),
    [
        pytest.param(0, "`llm_traces` ATTACH PARTITION", 1, id="after a first load"),
        pytest.param(10, "REPLACE PARTITION", 1, id="after a swap"),
        pytest.param(10, "REPLACE PARTITION", SWAP_ATTEMPTS - 1, id="after swap upon swap"),
    ],
)
def test_rows_inserted_into_the_hour_right_after_it_was_loaded_do_not_stay(
    warehouse: Warehouse, before: int, statement: str, times: int
) -> None:
    warehouse.load(MIDNIGHT + HOUR, 10)
    if before:
        warehouse.load(MIDNIGHT, before)
    theirs = iter(make_rows(MIDNIGHT, 20)[10:])
    with another_writer(lambda: warehouse.insert([next(theirs)]), after=statement, times=times):
        warehouse.load(MIDNIGHT, 10, 2)
    warehouse.check()


@pytest.mark.parametrize("target_rows", [0, 10], ids=["a day without the hour", "the hour loaded"])
def test_rows_that_somebody_inserted_before_are_replaced(
    warehouse: Warehouse, target_rows: int
) -> None:
    warehouse.load(MIDNIGHT + HOUR, 10)
    if target_rows:
        warehouse.load(MIDNIGHT, target_rows)
    warehouse.insert(make_rows(MIDNIGHT, 5, 7))
    warehouse.insert(make_rows(MIDNIGHT, 15, 8))
    warehouse.load(MIDNIGHT, 10, 2)
    warehouse.check()


def test_a_writer_that_keeps_inserting_is_named_after_some_attempts(warehouse: Warehouse) -> None:
    warehouse.load(MIDNIGHT, 10)
    theirs = make_rows(MIDNIGHT + 5 * HOUR, SWAP_ATTEMPTS)
    one_by_one = iter(theirs)
    manifest = warehouse.publish(MIDNIGHT, 10, 2)
    with (
        another_writer(
            lambda: warehouse.insert([next(one_by_one)]),
            before="RENAME TABLE",
            times=SWAP_ATTEMPTS,
        ),
        pytest.raises(
            ClickHouseError,
            match=f"hour 2026-03-01-00:00: another writer kept inserting into partition 20260301 "
            f"of llm_traces during {SWAP_ATTEMPTS} attempts .* materialize llm_traces again",
        ),
    ):
        warehouse.load_batch(manifest)
    warehouse.load_batch(manifest)
    warehouse.expected[MIDNIGHT + 5 * HOUR] = theirs
    warehouse.check()


def test_a_merge_of_the_clone_does_not_disturb(warehouse: Warehouse) -> None:
    define_table(warehouse.database, TABLE)
    warehouse.database.execute(f"SYSTEM STOP MERGES {TABLE}")
    for number in range(4):
        warehouse.load(MIDNIGHT + number * HOUR, 10)

    def merge() -> None:
        warehouse.database.execute(f"OPTIMIZE TABLE {TABLE}__clone FINAL")

    with another_writer(merge, before="DROP PART {"):
        warehouse.load(MIDNIGHT, 10, 2)
    warehouse.check()
