"""A load that ends in the middle, by a kill or a stop: the next load makes it good."""

import os
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count

import pyarrow.parquet as pq
import pytest

from llm_trace_pipeline.hours import HOUR
from tests.harness.killed_loads import KILLED_HOURS, fill_day, loading, report_of
from tests.harness.rows import DAY, MIDNIGHT, make_rows
from tests.harness.statements import Stopped, leaving_old_and_new_parts, stopping_after
from tests.harness.warehouse import ENDPOINT, Warehouse

# On a server only the client is killed, while the statement that it sent runs on.
KILLS = int(os.environ.get("SOAK_KILLS") or (15 if ENDPOINT else 20))
SEED = int(os.environ.get("UPSERT_TEST_SEED") or time.time_ns() % 10**6)


def test_kills_inside_the_swap_are_made_good_by_the_next_load(
    warehouse: Warehouse, record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(SEED)  # noqa: S311 -- test data
    fill_day(warehouse)
    warehouse.load(MIDNIGHT + DAY, 20)
    warehouse.close()
    journals = doubled = repairs = 0
    with ExitStack() as children:
        upcoming = children.enter_context(loading(warehouse, SEED))
        for kill in range(KILLS + 1):
            child = upcoming
            if kill < KILLS:  # imports while the one before still loads
                upcoming = children.enter_context(loading(warehouse, SEED + kill + 1))
            report = report_of(child)
            assert (report["wrong"], report["left_over"]) == ([], []), f"{SEED=} {kill=} {report}"
            journals += report["journal"]
            doubled += bool(report["doubled"])
            repairs += bool(report["repaired"])
            assert child.stdout
            child.stdout.readline()
            # One in five anywhere in a load, the others about the swap.
            time.sleep(chance.uniform(0, 0.150 if chance.random() < 0.2 else 0.015))
            child.kill()
            child.wait()
    record_property(
        "kills",
        f"{KILLS}: {journals} left a journal, {doubled} doubled hours, {repairs} repaired one",
    )
    assert journals >= KILLS // 5, f"{SEED=}"

    warehouse.reopen()
    manifests = [warehouse.store.manifest(hour) for hour in (*KILLED_HOURS, MIDNIGHT + DAY)]
    for manifest in manifests:
        assert manifest
        warehouse.load_batch(manifest)
        batch = [pq.read_table(str(path)) for path in warehouse.store.part_paths(manifest)]
        rows = [row for part in batch for row in part.to_pylist()]
        warehouse.expected[manifest.hour] = sorted(
            rows, key=lambda row: (row["created_at"], row["id"])
        )
    warehouse.check()


def test_the_host_may_live_in_another_time_zone(warehouse: Warehouse) -> None:
    fill_day(warehouse)
    warehouse.close()
    with loading(warehouse, SEED, {"TZ": "Asia/Kolkata"}) as child:
        report = report_of(child)
        assert (report["doubled"], report["repaired"], report["wrong"]) == (0, 0, [])
        assert child.stdout
        assert [child.stdout.readline() for _ in range(4)] == ["about to replace\n"] * 4
    with loading(warehouse, SEED) as child:
        assert report_of(child)["wrong"] == []


@pytest.mark.parametrize("is_same_hour", [True, False], ids=["that hour again", "another hour"])
@pytest.mark.parametrize(
    ("others", "before", "rows"),
    [
        pytest.param(0, 0, 40, id="an hour into an empty day"),
        pytest.param(1, 0, 40, id="an hour into a day of another"),
        pytest.param(1, 50, 40, id="an hour that the day holds"),
        pytest.param(1, 50, 0, id="an hour that became empty"),
        pytest.param(0, 50, 0, id="the day's only hour, which became empty"),
    ],
)
def test_a_stop_after_any_statement_is_made_good_by_the_next_load(
    warehouse: Warehouse,
    others: int,
    before: int,
    rows: int,
    is_same_hour: bool,
) -> None:
    statements = 0
    for statements in count(1):
        day = MIDNIGHT if others else MIDNIGHT + statements * DAY
        hour = day + 2 * HOUR
        for number in range(others if statements == 1 else 0):
            warehouse.load(day + (3 + number) * HOUR, 10)
        if statements == 1 or not (before and rows):
            warehouse.load(hour, before)
        if others and statements % 2:
            warehouse.merge(MIDNIGHT)  # the hour is then taken out by DELETE
        manifest = warehouse.publish(hour, rows, 1 + statements)
        try:
            with stopping_after(statements):
                warehouse.load_batch(manifest)
        except Stopped:
            warehouse.reopen()
        else:
            break
        if is_same_hour:
            warehouse.load_batch(manifest)
        else:
            warehouse.load(day + 9 * HOUR, 5, statements)
        warehouse.check()
    warehouse.check()
    assert statements > 8


def test_a_stop_between_hours_that_are_loaded_together_is_made_good(warehouse: Warehouse) -> None:
    hours = [MIDNIGHT + number * HOUR for number in (22, 23, 24, 25)]  # in two partitions
    for hour in (hours[0] - HOUR, *hours, hours[-1] + HOUR):
        warehouse.load(hour, 10)
    statements = 0
    for statements in count(1):
        for number, hour in enumerate(hours):
            warehouse.publish(hour, 10 + number, 1 + statements)
        try:
            with stopping_after(statements):
                warehouse.load_hours(*hours)
        except Stopped:
            warehouse.reopen()
        else:
            break
        # Any load makes both partitions of the day before exact, and the second one's its own.
        warehouse.load_hours(hours[1])
        warehouse.load_hours(hours[2])
        warehouse.check()
    warehouse.check()
    assert statements > 20


@pytest.mark.parametrize("is_same_hour", [True, False], ids=["that hour again", "another hour"])
def test_a_swap_that_left_old_and_new_parts_is_finished(
    warehouse: Warehouse, is_same_hour: bool
) -> None:
    theirs = make_rows(MIDNIGHT + 5 * HOUR, 7)
    warehouse.load(MIDNIGHT, 10)
    warehouse.load(MIDNIGHT + HOUR, 10)
    warehouse.insert(theirs)
    warehouse.expected[MIDNIGHT + 5 * HOUR] = theirs
    manifest = warehouse.publish(MIDNIGHT, 12, 2)
    with leaving_old_and_new_parts():
        warehouse.load_batch(manifest)
    warehouse.reopen()
    assert len(warehouse.rows()) == 10 + 10 + 7 + 12 + 10 + 7
    if is_same_hour:
        warehouse.load_batch(manifest)
    else:
        warehouse.load(MIDNIGHT + 9 * HOUR, 5)
    warehouse.check()
