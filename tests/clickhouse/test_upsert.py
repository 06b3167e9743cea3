"""The upsert against the real engine: an hour is replaced whole, and damage beside it mended."""

import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.clickhouse.cluster import loader_of
from llm_trace_pipeline.clickhouse.tables import define_table, parts_of
from llm_trace_pipeline.clickhouse.traces import in_groups
from llm_trace_pipeline.clickhouse.upsert import Swap
from llm_trace_pipeline.errors import BatchError
from llm_trace_pipeline.hours import HOUR, Window
from tests.harness.rows import DAY, MIDNIGHT, TABLE, Row, make_rows, publish
from tests.harness.statements import small_blocks
from tests.harness.warehouse import Warehouse

# Readers

POLL = f"""
SELECT toStartOfHour(created_at, 'UTC') AS hour, count() AS rows, uniqExact(id) AS ids,
    sum(payload_hash) AS payload_hash
FROM {TABLE} GROUP BY hour
"""
Polled = tuple[int, int, int]
Allowed = dict[datetime, set[Polled]]


def polled(rows: list[Row]) -> Polled:
    """Return what a poll says of an hour with these rows."""
    return (
        len(rows),
        len({row["id"] for row in rows}),
        sum(row["payload_hash"] for row in rows) % 2**64,
    )


def test_a_reader_sees_each_hour_as_one_batch_or_the_other(
    warehouse: Warehouse, record_property: Callable[[str, object], None]
) -> None:
    changing = {  # hour: rows of its two versions
        MIDNIGHT: (60, 60),
        MIDNIGHT + HOUR: (60, 20),
        MIDNIGHT + 2 * HOUR: (60, 0),
        MIDNIGHT + 3 * HOUR + DAY: (60, 0),  # alone in its day
        MIDNIGHT + 4 * HOUR + 2 * DAY: (60, 30),  # alone in its day
    }
    steady = {MIDNIGHT + 9 * HOUR: 30, MIDNIGHT + 5 * DAY: 30}
    batches = {
        (hour, version): make_rows(hour, rows, version)
        for hour, counts in changing.items()
        for version, rows in enumerate(counts)
    } | {(hour, 0): make_rows(hour, rows) for hour, rows in steady.items()}
    allowed: Allowed = {}
    for (hour, _), rows in batches.items():
        allowed.setdefault(hour, set()).add(polled(rows))

    polls = 0
    wrong: list[str] = []
    is_over = threading.Event()

    def poll() -> None:
        nonlocal polls
        with connect(warehouse.settings) as reader:
            while not is_over.is_set():
                found = {
                    row["hour"]: (row["rows"], row["ids"], row["payload_hash"])
                    for row in reader.rows(POLL)
                }
                wrong.extend(
                    f"poll {polls}: {hour} is {found.get(hour)}"
                    for hour in found.keys() | allowed.keys()
                    if found.get(hour, (0, 0, 0)) not in allowed.get(hour, ())
                )
                polls += 1

    with small_blocks():
        for hour, version in batches:
            if version == 0:
                warehouse.load_batch(publish(warehouse.store, hour, batches[hour, 0]))
        reader = threading.Thread(target=poll)
        reader.start()
        try:
            for turn in range(1, 8):
                for hour in changing:
                    rows = batches[hour, turn % 2]
                    warehouse.load_batch(publish(warehouse.store, hour, rows))
        finally:
            is_over.set()
            reader.join()
    record_property("polls", polls)
    assert wrong == []
    assert polls > 100
    warehouse.expected = {hour: batches[hour, 1] for hour in changing} | {
        hour: batches[hour, 0] for hour in steady
    }
    warehouse.check()


# An hour, again and again


@pytest.mark.parametrize(
    "versions",
    [
        pytest.param([(20, 1)], id="a first load"),
        pytest.param([(20, 1), (20, 1)], id="the same hour again"),
        pytest.param([(20, 1), (20, 2)], id="every row of the hour changed"),
        pytest.param([(20, 1), (7, 1)], id="the hour shrunk"),
        pytest.param([(20, 1), (33, 1)], id="the hour grew"),
        pytest.param([(20, 1), (0, 1)], id="the hour was emptied"),
        pytest.param([(0, 1), (20, 1)], id="the hour was empty at first"),
        pytest.param([(20, 1), (0, 1), (0, 1), (20, 2)], id="emptied twice and filled again"),
    ],
)
@pytest.mark.parametrize(
    "neighbours",
    [
        pytest.param([], id="alone in its day"),
        pytest.param([-1, 1], id="between two hours of its day"),
        pytest.param([-10, 24], id="beside hours of the days around"),
    ],
)
def test_an_hour_is_replaced_whole(
    warehouse: Warehouse, neighbours: list[int], versions: list[tuple[int, int]]
) -> None:
    hour = MIDNIGHT + 9 * HOUR
    for offset in neighbours:
        warehouse.load(hour + offset * HOUR, 11)
    for rows, version in versions:
        result = warehouse.load_batch(warehouse.publish(hour, rows, version), force=True)
        assert (result.found["rows"], result.repaired_hours) == (rows, ())
        warehouse.check()


def test_neighbours_are_swapped_in_together(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = [MIDNIGHT + number * HOUR for number in range(20, 28)]  # over midnight
    for number, hour in enumerate(hours):
        warehouse.load(hour, 5 + number)
    for number in (0, 1, 3, 4, 5, 6):
        warehouse.publish(hours[number], 0 if number == 5 else 9 + number, 2)
    windows: list[list[datetime]] = []
    replace = Swap.replace

    def counting(self: Swap, window: Window, fill: Callable[[str], None]) -> set[str]:
        windows.append(window.hours)
        return replace(self, window, fill)

    monkeypatch.setattr(Swap, "replace", counting)
    results = loader_of(warehouse.database, warehouse.store).load(hours)
    assert windows == [hours[:2], hours[3:7]]
    written = [True, True, False, True, True, True, True, False]
    assert [result.was_written for result in results] == written
    assert [result.expected.hour for result in results] == hours
    assert {(result.differences, result.repaired_hours) for result in results} == {((), ())}
    warehouse.check()


def test_hours_of_many_bytes_are_not_loaded_together(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = [MIDNIGHT + number * HOUR for number in range(6)]
    sizes = [warehouse.publish(hour, 10).payload_bytes for hour in hours[:5]]
    monkeypatch.setattr("llm_trace_pipeline.clickhouse.traces.BYTES_TOGETHER", sum(sizes[:2]))
    groups = in_groups(warehouse.store, hours)
    # The last one has no batch: what its load says is its own.
    assert groups == [hours[:2], hours[2:4], hours[4:5], hours[5:]]


def test_an_hour_that_equals_its_batch_is_not_written_again(warehouse: Warehouse) -> None:
    def parts() -> list[str]:
        return sorted(name for name in parts_of(warehouse.database, TABLE, f"{MIDNIGHT:%Y%m%d}"))

    warehouse.load(MIDNIGHT + HOUR, 10)
    assert warehouse.load(MIDNIGHT, 10).was_written
    warehouse.database.execute(f"OPTIMIZE TABLE {TABLE} FINAL")
    before = parts()
    assert not warehouse.load(MIDNIGHT, 10).was_written
    assert parts() == before
    warehouse.check()


@pytest.mark.parametrize(
    "change",
    [
        "model = 'another'",
        "agent_tags = arrayPushBack(agent_tags, 'more')",
        "cached_input_tokens = if(cached_input_tokens = 0, NULL, cached_input_tokens)",
        "billing_plan_type = ''",
        "llm_config_json = '{ }'",
        "payload_hash = payload_hash + 1",
    ],
)
def test_an_hour_that_was_changed_in_the_table_is_written_again(
    warehouse: Warehouse, change: str
) -> None:
    warehouse.load(MIDNIGHT, 10)
    warehouse.database.execute(
        f"ALTER TABLE {TABLE} UPDATE {change} WHERE 1 SETTINGS mutations_sync = 2"
    )
    assert warehouse.rows() != warehouse.expected[MIDNIGHT]
    assert warehouse.load(MIDNIGHT, 10).was_written
    warehouse.check()


@pytest.mark.parametrize(
    "order",
    [
        pytest.param([0, 1], id="the earlier hour first"),
        pytest.param([1, 0], id="the later hour first"),
        pytest.param([23, 0, 12, 1, 0, 23], id="the day's edges, and again"),
    ],
)
def test_hours_of_one_day_arrive_in_any_order(warehouse: Warehouse, order: list[int]) -> None:
    for version, number in enumerate(order, start=1):
        assert warehouse.load(MIDNIGHT + number * HOUR, 10 + number, version).repaired_hours == ()
        warehouse.check()


@pytest.mark.parametrize("is_merged", [True, False], ids=["in one part", "in many parts"])
def test_an_hour_of_several_parts_is_taken_out_of_its_day(
    warehouse: Warehouse, is_merged: bool
) -> None:
    hours = [MIDNIGHT + number * HOUR for number in range(5)]
    with small_blocks():
        for hour in hours:
            warehouse.load(hour, 60)
        if is_merged:
            warehouse.database.execute(f"OPTIMIZE TABLE {TABLE} FINAL")
        for version, hour in enumerate(hours, start=2):
            assert warehouse.load(hour, 50, version).repaired_hours == ()
            warehouse.check()


def test_small_blocks_make_an_hour_of_several_parts(warehouse: Warehouse) -> None:
    """What the kills and the readers below rely on."""
    with small_blocks():
        define_table(warehouse.database, TABLE)
        warehouse.database.execute(f"SYSTEM STOP MERGES {TABLE}")
        warehouse.load(MIDNIGHT, 60)
    parts = parts_of(warehouse.database, TABLE, f"{MIDNIGHT:%Y%m%d}")
    assert len(parts) > 2


def test_a_batch_that_was_switched_before_its_turn_is_not_loaded(warehouse: Warehouse) -> None:
    empty = warehouse.publish(MIDNIGHT, 0)
    current = warehouse.publish(MIDNIGHT, 10, 2)
    for _ in range(2):
        assert warehouse.load_batch(empty).expected.batch == current
        warehouse.check()


# Damage


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param("DELETE FROM {table} WHERE {hour}", id="an hour was deleted"),
        pytest.param(
            "DELETE FROM {table} WHERE {hour} AND step_id IN ('step-1', 'step-2')",
            id="rows of an hour were deleted",
        ),
        pytest.param(
            "INSERT INTO {table} SELECT * FROM {table} WHERE {hour}", id="an hour was doubled"
        ),
        pytest.param(
            "ALTER TABLE {table} UPDATE total_tokens = total_tokens + 1 WHERE {hour} "
            "SETTINGS mutations_sync = 2",
            id="tokens of an hour were changed",
        ),
    ],
)
def test_a_damaged_hour_is_repaired_by_the_load_of_another(
    warehouse: Warehouse, damage: str
) -> None:
    damaged = MIDNIGHT + 7 * HOUR
    for hour in (MIDNIGHT, damaged, MIDNIGHT + 8 * HOUR, MIDNIGHT + DAY):
        warehouse.load(hour, 10)
    theirs = make_rows(MIDNIGHT + 20 * HOUR, 4)
    warehouse.insert(theirs)
    warehouse.expected[MIDNIGHT + 20 * HOUR] = theirs
    warehouse.database.execute(
        damage.format(table=TABLE, hour="toStartOfHour(created_at) = '2026-03-01 07:00:00'")
    )
    assert len(warehouse.rows()) != 44 or "UPDATE" in damage
    assert warehouse.load(MIDNIGHT, 10, 2).repaired_hours == (damaged,)
    warehouse.check()
    assert warehouse.load(MIDNIGHT, 10, 3).repaired_hours == ()


def test_emptying_an_hour_notices_that_the_rest_of_its_day_is_gone(warehouse: Warehouse) -> None:
    warehouse.load(MIDNIGHT, 10)
    warehouse.load(MIDNIGHT + HOUR, 10)
    warehouse.database.execute(f"DELETE FROM {TABLE} WHERE created_at >= '2026-03-01 01:00:00'")
    assert warehouse.load(MIDNIGHT, 0).repaired_hours == (MIDNIGHT + HOUR,)
    warehouse.check()


def test_hours_that_are_about_to_be_loaded_are_left_alone(warehouse: Warehouse) -> None:
    warehouse.load(MIDNIGHT + HOUR, 10)
    warehouse.publish(MIDNIGHT + HOUR, 12, 2)
    warehouse.publish(MIDNIGHT, 10)
    loader = loader_of(warehouse.database, warehouse.store)
    [result] = loader.load([MIDNIGHT], awaiting=frozenset({MIDNIGHT + HOUR}))
    assert result.repaired_hours == ()
    warehouse.expected[MIDNIGHT + HOUR] = make_rows(MIDNIGHT + HOUR, 10)
    warehouse.check()


def test_a_lost_part_of_the_batch_leaves_the_table_as_it_was(warehouse: Warehouse) -> None:
    warehouse.load(MIDNIGHT, 10)
    warehouse.load(MIDNIGHT + HOUR, 10)
    before = warehouse.rows()
    manifest = warehouse.publish(MIDNIGHT, 10, 2)
    Path(str(warehouse.store.part_paths(manifest)[1])).unlink()
    with pytest.raises(BatchError, match=r"hour 2026-03-01-00:00: part .* is missing"):
        warehouse.load_batch(manifest)
    assert warehouse.rows() == before
