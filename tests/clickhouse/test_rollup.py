"""The roll-up on the real engine: it is what plain SQL makes of llm_traces, at every moment."""

import random
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from itertools import count
from typing import Any

import pytest

from llm_trace_pipeline.batches.erasures import record_erasure
from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.clickhouse.loads import Loaded
from llm_trace_pipeline.clickhouse.rollup import (
    COLUMNS,
    DIMENSIONS,
    NOTHING,
    compare_rollup,
    roll_up,
)
from llm_trace_pipeline.clickhouse.tables import ROLLUP, VIEWS, define_table, parts_of
from llm_trace_pipeline.clickhouse.upsert import SWAP_ATTEMPTS, Swap
from llm_trace_pipeline.errors import ClickHouseError
from llm_trace_pipeline.hours import BEGINNING, HOUR, Window
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.trace.columns import COST_COLUMNS, TOKEN_COLUMNS
from llm_trace_pipeline.upkeep.covered import count_traces
from llm_trace_pipeline.upkeep.erase import remove_from_batches
from llm_trace_pipeline.upkeep.erase import remove_from_clickhouse as erase_from_clickhouse
from llm_trace_pipeline.upkeep.retention import apply_retention
from tests.harness.rows import DAY, MIDNIGHT, TABLE, Row, erasure, make_rows
from tests.harness.statements import (
    Stopped,
    another_writer,
    leaving_old_and_new_parts,
    stopping_after,
)
from tests.harness.warehouse import Warehouse, drop_database, environment_of, make_database

HOURS = [MIDNIGHT + number * HOUR for number in (0, 1, 2, 22, 23)]


def calls(hour: datetime, rows: int, seed: int = 1) -> list[Row]:
    """Return random calls of an hour: some have no price, no latency, or a key of one's own."""
    chance = random.Random(f"{hour} {seed}")  # noqa: S311 -- test data
    made = make_rows(hour, rows, chance.randint(1, 9))
    for row in made:
        row["agent_id"] = f"agent-{chance.randint(0, 2)}"
        row["model"] = chance.choice(["small", "large"])
        row["latency_ms"] = chance.choice([0, 1, 127, 129, int(chance.lognormvariate(7.5, 0.8))])
        row["is_byok"] = chance.randint(0, 1)
        row["call_type"] = chance.choice(["agent_step", "summary"])
        row["billing_plan_type"] = chance.choice(["", "pro", "team"])
    return made


class RolledUp(Warehouse):
    """A warehouse that rolls up what it loaded, and compares the roll-up with SQL."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.rolled: set[datetime] = set()

    def load_all(self, batches: dict[datetime, list[Row]]) -> None:
        for hour, rows in batches.items():
            self.publish(hour, rows)
        self.load_hours(*batches)

    def roll_up(self, *hours: datetime) -> list[Loaded]:
        results = roll_up(self.database, self.store, hours)
        assert [result.differences for result in results] == [()] * len(hours)
        self.rolled.update(hours)
        return results

    def compare(self) -> dict[datetime, tuple[str, ...]]:
        return compare_rollup(self.database, self.store, HOURS)

    def parts(self) -> list[str]:
        rows = self.database.rows(f"SELECT DISTINCT _partition_id AS id FROM {ROLLUP} ORDER BY id")
        return sorted(name for row in rows for name in parts_of(self.database, ROLLUP, row["id"]))

    def check(self) -> None:
        """Compare all of the roll-up with SQL over the traces of the hours it was made of."""
        window = "toStartOfHour(created_at, 'UTC') IN {hours:Array(DateTime)}"
        sums = ", ".join(
            f"ifNull(sum(t.{name}), 0) AS {name}"
            for name in (*TOKEN_COLUMNS, "request_size_bytes", "response_size_bytes", *COST_COLUMNS)
        )
        keys = ", ".join(DIMENSIONS)
        expected = self.database.rows(
            f"SELECT toStartOfHour(t.created_at, 'UTC') AS hour, {keys}, count() AS calls, "
            f"sum(t.is_error) AS errors, {sums}, sum(t.cost_usd IS NULL) AS unpriced_calls, "
            "sum(t.cost_usd IS NULL AND t.usage_source = 'none') AS unmetered_calls "
            f"FROM {TABLE} AS t WHERE {window} GROUP BY hour, {keys} ORDER BY hour, {keys}",
            {"hours": list(self.rolled)},
        )
        names = [name for name in COLUMNS if name != "latency_ms"]
        found = self.database.rows(f"SELECT {', '.join(names)} FROM {ROLLUP} ORDER BY hour, {keys}")
        assert len(found) == len(expected)
        assert found == expected
        left = self.database.rows(f"SHOW TABLES LIKE '{ROLLUP}\\_\\_%'")
        assert left == []


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RolledUp]:
    """One for all tests: each leaves the roll-up exact."""
    settings = Settings.from_environment(environment_of(tmp_path_factory.mktemp("rollup")))
    make_database(settings)
    with closing(RolledUp(settings)) as warehouse:
        yield warehouse
    drop_database(settings)


@pytest.fixture
def loaded(warehouse: RolledUp) -> RolledUp:
    """Five hours of a day, loaded and rolled up."""
    warehouse.load_all({hour: calls(hour, 10 + 20 * n) for n, hour in enumerate(HOURS)})
    warehouse.roll_up(*HOURS)
    return warehouse


def test_the_rollup_is_what_the_calls_add_up_to(loaded: RolledUp) -> None:
    loaded.check()
    [rare] = loaded.database.rows(
        "SELECT sum(unpriced_calls) AS unpriced, sum(unmetered_calls) AS unmetered, "
        f"sum(other_cost_usd) AS other FROM {ROLLUP}"
    )
    assert min(rare.values()) > 0


def test_the_columns_are_those_of_the_table(loaded: RolledUp) -> None:
    columns = loaded.database.rows(
        "SELECT name FROM system.columns WHERE database = currentDatabase() "
        "AND table = {table:String}",
        {"table": ROLLUP},
    )
    assert sorted(column["name"] for column in columns) == sorted(COLUMNS)


def test_merged_latencies_are_within_a_percent_of_the_exact_ones(loaded: RolledUp) -> None:
    for key in ("hour", "organization_id", "is_byok", "1"):
        merged = loaded.database.rows(
            f"SELECT {key} AS key, quantilesBFloat16Merge(0.5, 0.95)(latency_ms) AS latency "
            f"FROM {ROLLUP} WHERE hour < '2026-03-02' GROUP BY key ORDER BY key"
        )
        exact = loaded.database.rows(
            f"SELECT {key.replace('hour', 'toStartOfHour(created_at)')} AS key, "
            "quantilesExactWeighted(0.5, 0.95)(latency_ms, 1) AS latency FROM llm_traces "
            "WHERE latency_ms > 0 AND created_at < '2026-03-02' GROUP BY key ORDER BY key"
        )
        assert [row["key"] for row in merged] == [row["key"] for row in exact]
        for ours, theirs in zip(merged, exact, strict=True):
            assert ours["latency"] == pytest.approx(theirs["latency"], rel=0.01)


def test_the_views_sum_up_what_is_billed_apart_from_calls_by_own_keys(loaded: RolledUp) -> None:
    loaded.load(MIDNIGHT + DAY, calls(MIDNIGHT + DAY, 20))
    loaded.roll_up(MIDNIGHT + DAY)
    [unrolled] = loaded.database.rows(f"SELECT sum(calls) AS calls FROM {ROLLUP}")
    [all_calls] = loaded.database.rows(f"SELECT count() AS calls FROM {TABLE}")
    assert unrolled == all_calls
    for view, of in (("daily", "toDate(created_at) AS day"), ("monthly", "0 AS month")):
        period = of.rpartition(" ")[2]
        expected = loaded.database.rows(
            f"SELECT {of}, model, count() AS calls, sum(total_tokens) AS tokens, "
            "sumIf(t.cost_usd, is_byok = 0) AS cost, sumIf(t.cost_usd, is_byok = 1) AS byok, "
            "sumIf(t.other_cost_usd, is_byok = 0) AS other, "
            "countIf(cost_usd IS NULL AND usage_source = 'none') AS unmetered "
            f"FROM {TABLE} AS t GROUP BY {period}, model ORDER BY {period}, model"
        )
        found = loaded.database.rows(
            f"SELECT {'day' if view == 'daily' else '0 AS month'}, model, sum(calls) AS calls, "
            "sum(total_tokens) AS tokens, sum(cost_usd) AS cost, sum(byok_list_cost_usd) AS byok, "
            "sum(other_cost_usd) AS other, sum(unmetered_calls) AS unmetered "
            f"FROM llm_usage_{view} GROUP BY {period}, model ORDER BY {period}, model"
        )
        assert [
            {**row, **{name: row[name] or 0 for name in ("cost", "byok", "other")}}
            for row in expected
        ] == (found)
    [month] = loaded.database.rows("SELECT min(month) AS month FROM llm_usage_monthly")
    assert f"{month['month']}" == f"{MIDNIGHT:%Y-%m-%d}"


@pytest.mark.parametrize(
    ("view", "period"),
    [
        ("llm_usage_daily", "toDate(created_at) AS day"),
        ("llm_usage_monthly", "toStartOfMonth(created_at) AS month"),
    ],
)
def test_the_latencies_of_the_views_are_those_of_the_calls(
    loaded: RolledUp, view: str, period: str
) -> None:
    hour = MIDNIGHT + 5 * DAY
    same = {"agent_id": "agent-0", "call_type": "summary", "billing_plan_type": "pro"}
    loaded.load(hour, [row | same for row in calls(hour, 120)])
    loaded.roll_up(hour)
    columns = (period.rpartition(" ")[2], *(name for name in DIMENSIONS if name != "is_byok"))
    keys = ", ".join(columns)
    found = loaded.database.rows(
        f"SELECT {keys}, calls, p50_latency_ms AS p50, p95_latency_ms AS p95 FROM {view} "
        f"ORDER BY {keys}"
    )
    expected = loaded.database.rows(
        f"SELECT {period}, {keys.partition(', ')[2]}, count() AS calls, "
        "quantilesExactWeightedIf(0.5, 0.95)(latency_ms, 1, latency_ms > 0) AS latency "
        f"FROM {TABLE} GROUP BY {keys} ORDER BY {keys}"
    )
    assert [{name: row[name] for name in (*columns, "calls")} for row in found] == [
        {name: row[name] for name in (*columns, "calls")} for row in expected
    ]
    assert sum(row["calls"] >= 5 and row["p50"] < row["p95"] for row in found) >= 6
    for ours, theirs in zip(found, expected, strict=True):
        assert [ours["p50"], ours["p95"]] == pytest.approx(theirs["latency"], rel=0.01)


def test_an_hour_that_equals_is_left_alone(loaded: RolledUp) -> None:
    before = loaded.parts()
    results = loaded.roll_up(*HOURS)
    assert not any(result.was_written for result in results)
    assert loaded.parts() == before


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(calls(HOURS[1], 33, seed=2), id="other calls"),
        pytest.param(calls(HOURS[1], 30)[:5], id="fewer calls"),
        pytest.param([], id="none any more"),
        pytest.param(
            [
                row | {"billing_plan_type": row["billing_plan_type"].replace("pro", "max")}
                for row in calls(HOURS[1], 30)
            ],
            id="a restated plan, with rows and sums as they were",
        ),
    ],
)
def test_an_hour_that_changed_is_rolled_up_again(loaded: RolledUp, rows: list[Row]) -> None:
    loaded.load(HOURS[1], rows)
    found = loaded.compare()
    assert list(found) == [HOURS[1]]
    results = loaded.roll_up(*HOURS)
    assert [result.was_written for result in results] == [hour == HOURS[1] for hour in HOURS]
    assert loaded.compare() == {}
    loaded.check()


def test_an_hour_without_calls_leaves_no_row(loaded: RolledUp) -> None:
    [result] = loaded.roll_up(MIDNIGHT + 5 * HOUR)
    assert (result.was_written, result.found) == (False, NOTHING)
    loaded.check()


def test_a_day_that_became_empty_leaves_no_row(warehouse: RolledUp) -> None:
    hour = MIDNIGHT + 7 * DAY
    warehouse.load(hour, calls(hour, 10))
    warehouse.roll_up(hour)
    warehouse.load(hour, [])
    assert warehouse.roll_up(hour)[0].was_written
    warehouse.check()


def test_hours_of_a_day_are_swapped_in_together(
    warehouse: RolledUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = [MIDNIGHT + 9 * DAY + number * HOUR for number in range(20, 28)]  # over midnight
    warehouse.load_all({hour: calls(hour, 5) for hour in hours})
    windows: list[int] = []
    replace = Swap.replace

    def counting(self: Swap, window: Window, fill: Callable[[str], None]) -> set[str]:
        windows.append(len(window.hours))
        return replace(self, window, fill)

    monkeypatch.setattr(Swap, "replace", counting)
    warehouse.roll_up(*hours)
    assert windows == [4, 4]
    warehouse.check()


IN_HOUR = "WHERE hour = '2026-03-01 01:00:00'"
DAMAGES = {
    "the hour is gone": f"DELETE FROM {ROLLUP} {IN_HOUR}",
    "rows are doubled": f"INSERT INTO {ROLLUP} SELECT * FROM {ROLLUP} {IN_HOUR}",
    "a cost changed": f"ALTER TABLE {ROLLUP} UPDATE output_cost_usd = output_cost_usd + "
    f"toDecimal128('0.000000000000000001', 18) {IN_HOUR}",
    "a customer changed": f"ALTER TABLE {ROLLUP} UPDATE billing_customer_id = 'cus_9' {IN_HOUR}",
    "latencies are gone": f"ALTER TABLE {ROLLUP} UPDATE latency_ms = initializeAggregation("
    f"'quantilesBFloat16StateIf(0.5, 0.95)', toUInt64(0), 0) {IN_HOUR}",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_found_and_repaired(loaded: RolledUp, damage: str) -> None:
    loaded.database.execute(damage, None, {"mutations_sync": 2, "lightweight_deletes_sync": 2})
    found = loaded.compare()
    assert list(found) == [HOURS[1]]
    assert all(text.startswith(f"{ROLLUP}: ") for text in found[HOURS[1]])
    [result] = loaded.roll_up(HOURS[0])  # of the same day
    assert result.repaired_hours == (HOURS[1],)
    loaded.check()


@pytest.mark.parametrize("is_first", [False, True], ids=["an hour differs", "the first ever"])
def test_a_stop_after_any_statement_is_made_good_by_the_next_roll_up(
    warehouse: RolledUp, is_first: bool
) -> None:
    hours = [MIDNIGHT + 13 * DAY] if is_first else [MIDNIGHT + 12 * DAY, MIDNIGHT + 12 * DAY + HOUR]
    before = warehouse.rolled.union(hours)
    warehouse.load_all({hour: calls(hour, 4) for hour in hours})
    warehouse.roll_up(*hours)
    doubled = f"INSERT INTO {ROLLUP} SELECT * FROM {ROLLUP} WHERE hour = {{hour:DateTime}}"
    for statements in count(1):
        if is_first:
            drop_rollup(warehouse)
        else:
            warehouse.database.execute(doubled, {"hour": hours[0]})
        try:
            with stopping_after(statements):
                warehouse.roll_up(hours[0])
        except Stopped:
            warehouse.roll_up(hours[statements % len(hours)])  # the other one makes it good too
            warehouse.rolled = set(hours) if is_first else before
            warehouse.check()
            assert views_of(warehouse) == set(VIEWS)
        else:
            break
    assert statements > 10
    warehouse.roll_up(*sorted(before))
    warehouse.check()


def drop_rollup(warehouse: RolledUp) -> None:
    for name in (*VIEWS, ROLLUP):
        warehouse.database.execute(f"DROP TABLE IF EXISTS {name} SYNC")
    warehouse.rolled.clear()


def views_of(warehouse: RolledUp) -> set[str]:
    """Return the views that add up the same calls as the roll-up."""
    [rolled] = warehouse.database.rows(f"SELECT sum(calls) AS calls FROM {ROLLUP}")
    views = warehouse.database.rows(
        "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine = 'View'"
    )
    return {
        view["name"]
        for view in views
        if warehouse.database.rows(f"SELECT sum(calls) AS calls FROM {view['name']}") == [rolled]
    }


@pytest.mark.parametrize("statements", [1, 2, 3])
def test_a_first_definition_that_stopped_is_finished_by_the_next(
    loaded: RolledUp, statements: int
) -> None:
    everything = sorted(loaded.rolled)
    drop_rollup(loaded)
    with pytest.raises(Stopped), stopping_after(statements):
        define_table(loaded.database, ROLLUP)
    assert len(views_of(loaded)) == statements - 1
    define_table(loaded.database, ROLLUP)
    assert views_of(loaded) == set(VIEWS)
    loaded.roll_up(*everything)
    loaded.check()


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_that_was_dropped_is_made_again(loaded: RolledUp, view: str) -> None:
    parts = loaded.parts()
    loaded.database.execute(f"DROP VIEW {view} SYNC")
    assert loaded.compare() == {}
    assert views_of(loaded) == set(VIEWS)
    assert loaded.parts() == parts


def test_an_hour_whose_batch_is_gone_is_rolled_up(loaded: RolledUp) -> None:
    hour = MIDNIGHT + 14 * DAY
    loaded.load(hour, calls(hour, 10))
    loaded.store.remove(hour)
    [result] = loaded.roll_up(hour)
    assert (result.was_written, result.found["calls"]) == (True, 10)
    loaded.check()


@pytest.mark.parametrize("table", [ROLLUP, TABLE], ids=["of the roll-up", "of the traces"])
def test_a_swap_that_left_old_and_new_parts_is_finished_first(loaded: RolledUp, table: str) -> None:
    with leaving_old_and_new_parts(f"`{table}__ready`"):
        loaded.load(HOURS[1], calls(HOURS[1], 12, seed=2))
        loaded.roll_up(HOURS[1])
    assert loaded.compare().keys() <= {HOURS[1]}
    loaded.roll_up(HOURS[1])
    loaded.check()


def test_another_writer_is_named_with_the_asset_to_materialize(loaded: RolledUp) -> None:
    loaded.load(HOURS[1], calls(HOURS[1], 12, seed=2))
    inserting = f"INSERT INTO {ROLLUP} SELECT * FROM {ROLLUP} {IN_HOUR} LIMIT 1"
    with (
        another_writer(
            lambda: loaded.database.execute(inserting), before="RENAME TABLE", times=SWAP_ATTEMPTS
        ),
        pytest.raises(
            ClickHouseError, match=f"of {ROLLUP} during .* then materialize {ROLLUP} again"
        ),
    ):
        loaded.roll_up(HOURS[1])
    loaded.roll_up(HOURS[1])
    loaded.check()


def test_a_reader_sees_the_hour_as_it_was_or_as_it_is(
    loaded: RolledUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = f"SELECT hour, sum(calls) AS calls FROM {ROLLUP} GROUP BY hour ORDER BY hour"
    before = loaded.database.rows(query)
    loaded.load(HOURS[1], calls(HOURS[1], 12, seed=2))
    seen: list[list[Row]] = []
    execute = Database.execute

    def looking(self: Database, *arguments: Any) -> None:
        execute(self, *arguments)
        seen.append(self.rows(query))

    with monkeypatch.context() as context:
        context.setattr(Database, "execute", looking)
        loaded.roll_up(HOURS[1])
    after = loaded.database.rows(query)
    assert before != after
    assert all(each in (before, after) for each in seen)
    assert seen[0] == before


@pytest.mark.parametrize(
    "kept_from", [BEGINNING, HOURS[1], HOURS[3]], ids=["without", "within", "after"]
)
@pytest.mark.parametrize("is_cut", [False, True], ids=["at once", "cut and repeated"])
def test_an_erased_organization_is_gone_from_the_rollup(
    loaded: RolledUp,
    monkeypatch: pytest.MonkeyPatch,
    is_cut: bool,
    kept_from: datetime,  # where the retention begins, which has dropped nothing yet
) -> None:
    # Of the last hour, some calls stay.
    erased = erasure("org-1", before=HOURS[2] + HOUR / 2)
    assert set(count_traces(loaded.database, loaded.store, erased).rollup) == set(HOURS[:2])
    # One part of all hours, of which a swap only masks rows, until a merge takes them away.
    loaded.database.execute(f"OPTIMIZE TABLE {ROLLUP} FINAL")
    setting = "max_bytes_to_merge_at_max_space_in_pool"
    loaded.database.execute(f"ALTER TABLE {ROLLUP} MODIFY SETTING {setting} = 1")
    record_erasure(loaded.store.files, erased)
    remove_from_batches(loaded.store, erased)
    if is_cut:
        with monkeypatch.context() as context:
            context.setattr("llm_trace_pipeline.upkeep.erase.roll_up", _stop)
            with pytest.raises(Stopped):
                erase_from_clickhouse(loaded.database, loaded.store, erased, kept_from)
    erase_from_clickhouse(loaded.database, loaded.store, erased, kept_from)
    assert count_traces(loaded.database, loaded.store, erased).is_nothing
    on_disk = loaded.database.rows(
        f"SELECT DISTINCT hour FROM {ROLLUP} WHERE organization_id = 'org-1' "
        "AND hour < '2026-03-02' ORDER BY hour "
        "SETTINGS apply_deleted_mask = 0"
    )
    assert [row["hour"] for row in on_disk] == HOURS[2:]
    loaded.database.execute(f"ALTER TABLE {ROLLUP} RESET SETTING {setting}")
    loaded.check()


def _stop(*_: Any) -> None:
    raise Stopped


def test_the_retention_drops_the_days_of_both_tables(loaded: RolledUp) -> None:
    kept = MIDNIGHT + 20 * DAY
    loaded.load(kept, calls(kept, 5))
    loaded.roll_up(kept)
    settings = loaded.settings.model_copy(update={"retention_days": 1})
    apply_retention(loaded.database, loaded.store, settings, kept + DAY + HOUR)
    assert loaded.database.rows(f"SELECT DISTINCT hour FROM {ROLLUP}") == [{"hour": kept}]
    loaded.rolled = {kept}
    loaded.check()
