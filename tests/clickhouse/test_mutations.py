"""Others delete or update rows while hours of the same day are loaded: no swap undoes it."""

from datetime import datetime
from functools import partial

import pytest

from llm_trace_pipeline.clickhouse import others
from llm_trace_pipeline.errors import ClickHouseError
from llm_trace_pipeline.hours import HOUR
from tests.harness.rows import DAY, MIDNIGHT, TABLE, make_rows
from tests.harness.statements import another_writer, leaving_old_and_new_parts
from tests.harness.warehouse import Warehouse

AT_ONCE = {"mutations_sync": 0}
HOUR_WITHOUT_BATCH = MIDNIGHT + 5 * HOUR


def fill(warehouse: Warehouse, day: datetime = MIDNIGHT) -> None:
    """Fill a day with two hours of batches, and one of another writer."""
    warehouse.load(day, 10)
    warehouse.load(day + HOUR, 10)
    theirs = make_rows(day + 5 * HOUR, 4)
    warehouse.insert(theirs)
    warehouse.expected[day + 5 * HOUR] = theirs


def order(
    warehouse: Warehouse,
    change: str,
    day: datetime = MIDNIGHT,
    settings: dict[str, int] | None = None,
) -> None:
    """Order a change of rows in an hour that has no batch."""
    first = warehouse.expected[day + 5 * HOUR][0]
    warehouse.database.execute(
        f"{change} WHERE created_at = {{at:DateTime64(6, 'UTC')}} AND id = {{id:String}}",
        {"at": first["created_at"], "id": first["id"]},
        settings,
    )


def delete(warehouse: Warehouse, day: datetime) -> None:
    order(warehouse, f"ALTER TABLE {TABLE} DELETE", day)
    del warehouse.expected[day + 5 * HOUR][0]


def update(warehouse: Warehouse, day: datetime) -> None:
    order(warehouse, f"ALTER TABLE {TABLE} UPDATE model = 'renamed'", day)
    warehouse.expected[day + 5 * HOUR][0]["model"] = "renamed"


def update_lightly(warehouse: Warehouse, day: datetime) -> None:
    order(warehouse, f"UPDATE {TABLE} SET model = 'renamed'", day, {"enable_lightweight_update": 1})
    warehouse.expected[day + 5 * HOUR][0]["model"] = "renamed"


CHANGES = (delete, update, update_lightly)


def allow_patches(warehouse: Warehouse) -> None:
    warehouse.database.execute(
        f"ALTER TABLE {TABLE} MODIFY SETTING enable_block_number_column = 1, "
        "enable_block_offset_column = 1"
    )


def test_a_load_waits_for_a_mutation_that_runs(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(warehouse)
    warehouse.database.execute(f"SYSTEM STOP MERGES {TABLE}")
    order(warehouse, f"ALTER TABLE {TABLE} DELETE", settings=AT_ONCE)
    waited = []

    def let_it_run(seconds: float) -> None:
        waited.append(seconds)
        warehouse.database.execute(f"SYSTEM START MERGES {TABLE}")

    monkeypatch.setattr("llm_trace_pipeline.clickhouse.others.time.sleep", let_it_run)
    warehouse.load(MIDNIGHT, 10, 2)
    assert waited
    del warehouse.expected[HOUR_WITHOUT_BATCH][0]
    warehouse.check()


@pytest.mark.parametrize(
    ("change", "is_stopped", "said"),
    [
        ("DELETE", True, "has a mutation that is not done; wait, or KILL"),
        (
            "UPDATE model = toString(throwIf(1))",
            False,
            "has a mutation that is not done, which fails: .*throwIf",
        ),
    ],
)
def test_a_mutation_that_does_not_end_is_named_with_the_repair(
    warehouse: Warehouse,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    is_stopped: bool,
    said: str,
) -> None:
    fill(warehouse)
    if is_stopped:
        monkeypatch.setattr(others, "STATEMENT_SECONDS", 0)
        warehouse.database.execute(f"SYSTEM STOP MERGES {TABLE}")
    order(warehouse, f"ALTER TABLE {TABLE} {change}", settings=AT_ONCE)
    with pytest.raises(ClickHouseError, match=f"partition 20260301 of {TABLE} {said}") as raised:
        warehouse.load(MIDNIGHT, 12, 2)
    warehouse.load(MIDNIGHT + DAY, 5)
    warehouse.load(MIDNIGHT + DAY, 6, 2)  # of another partition
    repair = raised.value.repair.removeprefix("wait, or ")
    warehouse.database.execute(repair)
    warehouse.load(MIDNIGHT, 12, 2)
    warehouse.check()


@pytest.mark.parametrize("moment", ["DELETE FROM", "RENAME TABLE"])
def test_changes_between_clone_and_swap_are_not_undone(warehouse: Warehouse, moment: str) -> None:
    for number, change in enumerate(CHANGES):
        day = MIDNIGHT + number * DAY
        fill(warehouse, day)
        allow_patches(warehouse)
        warehouse.merge(day)
        with another_writer(partial(change, warehouse, day), before=moment):
            warehouse.load(day, 12, 2)
        warehouse.load(day, 13, 3)
        warehouse.check()


def test_an_update_that_is_not_applied_yet_is_kept(warehouse: Warehouse) -> None:
    fill(warehouse)
    allow_patches(warehouse)
    update_lightly(warehouse, MIDNIGHT)
    warehouse.load(MIDNIGHT, 12, 2)
    warehouse.check()


def test_changes_after_a_swap_was_cut_are_not_undone(warehouse: Warehouse) -> None:
    for number, change in enumerate(CHANGES):
        day = MIDNIGHT + number * DAY
        fill(warehouse, day)
        allow_patches(warehouse)
        manifest = warehouse.publish(day, 12, 2)
        with leaving_old_and_new_parts():
            warehouse.load_batch(manifest)
        change(warehouse, day)
        warehouse.load(day + 31 * DAY, 5)
        warehouse.check()
