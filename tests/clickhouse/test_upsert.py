"""The upsert against the real engine: other layouts, other writers, stops, kills and readers."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_trace_pipeline.batches.store import BatchStore, Manifest
from llm_trace_pipeline.clickhouse.client import Database, connect
from llm_trace_pipeline.clickhouse.upsert import ATTEMPTS, HourLoader, LoadResult
from llm_trace_pipeline.errors import BatchError, ClickHouseError
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.sql import read_sql
from llm_trace_pipeline.trace.columns import (
    ARROW_SCHEMA,
    COLUMNS,
    COST_COLUMNS,
    COST_TYPE,
    SCHEMA_VERSION,
)
from llm_trace_pipeline.upkeep.preflight import check_target
from tests.clickhouse.upsert_process import (
    KILLED_HOURS,
    READY,
    T0,
    TABLE,
    UNLOADED_HOUR,
    UNLOADED_ROWS,
    Row,
    left_over_tables,
    make_rows,
    publish,
    small_blocks,
)
from tests.target import ENDPOINT, drop_database, environment_of, make_database

DAY = timedelta(days=1)
# On a server only the client is killed, while the statement that it sent runs on.
KILLS = int(os.environ.get("SOAK_KILLS") or (15 if ENDPOINT else 20))
SEED = int(os.environ.get("UPSERT_TEST_SEED") or time.time_ns() % 10**6)
ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"

# The table as it was before billing.
OWN_COLUMNS = (
    *("billing_plan_type", "billing_cost_source", "billing_customer_id"),
    *("billing_match", "payload_hash", *COST_COLUMNS, "price_version"),
)
BLANK = dict.fromkeys(OWN_COLUMNS, "") | {"payload_hash": 0} | dict.fromkeys(COST_COLUMNS)
BEFORE_BILLING = """
CREATE TABLE {table} (
    id String, organization_id String, project_id String, agent_id String,
    agent_tags Array(String), run_id String, step_id String, trace_id String,
    call_type LowCardinality(String), provider LowCardinality(String), model String,
    is_byok UInt8, request_size_bytes UInt64, response_size_bytes UInt64, prompt_tokens UInt64,
    completion_tokens UInt64, total_tokens UInt64, cached_input_tokens Nullable(UInt64),
    cache_write_tokens Nullable(UInt64), reasoning_tokens Nullable(UInt64), latency_ms UInt64,
    is_error UInt8, error_type String, error_message String, request_json String CODEC(ZSTD(3)),
    response_json String, llm_config_json String, created_at DateTime64(6, 'UTC')
) ENGINE = {engine} PARTITION BY toYYYYMM(created_at) ORDER BY (organization_id, created_at, id)
"""


class Warehouse:
    """A ClickHouse and a batch store of their own, and the rows that the table has to hold."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.settings = Settings.from_environment(environment)
        make_database(self.settings)
        self.store = BatchStore.of(self.settings)
        self.expected: dict[datetime, list[Row]] = {}
        self._opened = ExitStack()
        self.database = self._opened.enter_context(connect(self.settings))

    def close(self) -> None:
        self._opened.close()

    def reopen(self) -> None:
        """Start the engine again, as the next process would."""
        self.close()
        self.database = self._opened.enter_context(connect(self.settings))

    def publish(self, hour: datetime, rows: int, version: int = 1) -> Manifest:
        """Make a batch of the hour, and expect its rows."""
        self.expected[hour] = make_rows(hour, rows, version)
        return publish(self.store, hour, self.expected[hour])

    def load(self, hour: datetime, rows: int, version: int = 1) -> LoadResult:
        """Make a batch of the hour and load it."""
        return self.load_batch(self.publish(hour, rows, version))

    def load_batch(self, manifest: Manifest, *, force: bool = False) -> LoadResult:
        [result] = HourLoader(self.database, self.store).load([manifest.hour], force=force)
        assert result.differences == ()
        return result

    def insert(self, rows: list[Row]) -> None:
        """Insert rows past the upsert, as another writer does."""
        self.insert_table(pa.Table.from_pylist(rows, ARROW_SCHEMA))

    def insert_table(self, rows: pa.Table) -> None:
        self.database._client.insert_arrow(TABLE, rows, database=self.database.name)  # noqa: SLF001 -- no part of the path under test

    def rows(self) -> list[Row]:
        return self.database.rows(f"SELECT * FROM {TABLE} ORDER BY created_at, id")

    def check(self) -> None:
        """Compare all rows of the table, and look for what an upsert should have dropped."""
        found = self.rows()
        expected = [row for hour in sorted(self.expected) for row in self.expected[hour]]
        assert _by_hour(found) == _by_hour(expected)  # fails with a short text
        assert found == expected
        assert left_over_tables(self.database) == []


def _by_hour(rows: list[Row]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in rows:
        hour = f"{row['created_at']:%Y-%m-%d %H}"
        counts[hour] = counts.get(hour, 0) + 1
    return counts


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Warehouse]:
    warehouse = Warehouse(tmp_path, environment_of(tmp_path))
    yield warehouse
    warehouse.close()
    drop_database(warehouse.settings)


def hours_of(result: LoadResult) -> tuple[datetime, ...]:
    return result.repaired_hours


# Kills: the longest test comes first, so that the others run beside it


@contextmanager
def loading(
    warehouse: Warehouse, seed: int, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Let a process load hours; it is killed in the end."""
    with start(warehouse, seed, environment) as child:
        try:
            yield child
        finally:
            child.kill()


def fill_day(warehouse: Warehouse) -> None:
    """Load the hours that are going to be loaded again, and insert rows of one that is not."""
    with small_blocks():
        for hour in KILLED_HOURS:
            warehouse.load(hour, 40)
    warehouse.expected[UNLOADED_HOUR] = make_rows(UNLOADED_HOUR, UNLOADED_ROWS)
    warehouse.insert(warehouse.expected[UNLOADED_HOUR])


def start(
    warehouse: Warehouse, seed: int, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a process that loads hours as soon as it is told to."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.clickhouse.upsert_process", str(warehouse.folder), str(seed)],
        cwd=ROOT,
        env=os.environ | (environment or {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def report_of(child: subprocess.Popen[str]) -> dict[str, Any]:
    """Tell a process to begin, and return what it found and what its first load did."""
    assert child.stdin
    assert child.stdout
    child.stdin.write("begin\n")
    child.stdin.flush()
    line = child.stdout.readline()
    assert line, "the loading process ended; its error is above"
    report: dict[str, Any] = json.loads(line)
    return report


def test_kills_inside_the_swap_are_made_good_by_the_next_load(
    warehouse: Warehouse, record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(SEED)  # noqa: S311 -- test data
    fill_day(warehouse)
    warehouse.load(T0 + DAY, 20)
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
    manifests = [warehouse.store.manifest(hour) for hour in (*KILLED_HOURS, T0 + DAY)]
    for manifest in manifests:
        assert manifest
        warehouse.load_batch(manifest)
        batch = [pq.read_table(str(path)) for path in warehouse.store.part_paths(manifest)]
        rows = [row for part in batch for row in part.to_pylist()]
        warehouse.expected[manifest.hour] = sorted(
            rows, key=lambda row: (row["created_at"], row["id"])
        )
    warehouse.check()


# Readers

POLL = f"""
SELECT toStartOfHour(created_at, 'UTC') AS hour, count() AS rows, uniqExact(id) AS ids,
    sum(payload_hash) AS payload_hash
FROM {TABLE} GROUP BY hour
"""
Polled = tuple[int, int, int]


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
        T0: (60, 60),
        T0 + HOUR: (60, 20),
        T0 + 2 * HOUR: (60, 0),
        T0 + 3 * HOUR + DAY: (60, 0),  # alone in its day
        T0 + 4 * HOUR + 2 * DAY: (60, 30),  # alone in its day
    }
    steady = {T0 + 9 * HOUR: 30, T0 + 5 * DAY: 30}
    batches = {
        (hour, version): make_rows(hour, rows, version)
        for hour, counts in changing.items()
        for version, rows in enumerate(counts)
    } | {(hour, 0): make_rows(hour, rows) for hour, rows in steady.items()}
    allowed: dict[datetime, set[Polled]] = {}
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
    hour = T0 + 9 * HOUR
    for offset in neighbours:
        warehouse.load(hour + offset * HOUR, 11)
    for rows, version in versions:
        result = warehouse.load_batch(warehouse.publish(hour, rows, version), force=True)
        assert (result.found.rows, result.repaired_hours) == (rows, ())
        warehouse.check()


def test_neighbours_are_swapped_in_together(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = [T0 + number * HOUR for number in range(20, 28)]  # over midnight
    for number, hour in enumerate(hours):
        warehouse.load(hour, 5 + number)
    for number in (0, 1, 3, 4, 5, 6):
        warehouse.publish(hours[number], 0 if number == 5 else 9 + number, 2)
    windows: list[list[datetime]] = []
    replace = HourLoader._replace

    def counting(self: HourLoader, manifests: Sequence[Manifest]) -> set[str]:
        windows.append([manifest.hour for manifest in manifests])
        return replace(self, manifests)

    monkeypatch.setattr(HourLoader, "_replace", counting)
    results = HourLoader(warehouse.database, warehouse.store).load(hours)
    assert windows == [hours[:2], hours[3:7]]
    written = [True, True, False, True, True, True, True, False]
    assert [result.was_written for result in results] == written
    assert [result.expected.hour for result in results] == hours
    assert {(result.differences, result.repaired_hours) for result in results} == {((), ())}
    warehouse.check()


def test_hours_of_many_bytes_are_not_loaded_together(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = [T0 + number * HOUR for number in range(6)]
    sizes = [warehouse.publish(hour, 10).payload_bytes for hour in hours[:5]]
    monkeypatch.setattr("llm_trace_pipeline.clickhouse.upsert.BYTES_TOGETHER", sum(sizes[:2]))
    groups = HourLoader(warehouse.database, warehouse.store).in_groups(hours)
    # The last one has no batch: what its load says is its own.
    assert groups == [hours[:2], hours[2:4], hours[4:5], hours[5:]]


def test_an_hour_that_equals_its_batch_is_not_written_again(warehouse: Warehouse) -> None:
    def parts() -> list[str]:
        return sorted(part["name"] for part in warehouse.database.parts(TABLE, f"{T0:%Y%m%d}"))

    warehouse.load(T0 + HOUR, 10)
    assert warehouse.load(T0, 10).was_written
    warehouse.database.execute(f"OPTIMIZE TABLE {TABLE} FINAL")
    before = parts()
    assert not warehouse.load(T0, 10).was_written
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
    warehouse.load(T0, 10)
    warehouse.database.execute(
        f"ALTER TABLE {TABLE} UPDATE {change} WHERE 1 SETTINGS mutations_sync = 2"
    )
    assert warehouse.rows() != warehouse.expected[T0]
    assert warehouse.load(T0, 10).was_written
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
        assert hours_of(warehouse.load(T0 + number * HOUR, 10 + number, version)) == ()
        warehouse.check()


@pytest.mark.parametrize("is_merged", [True, False], ids=["in one part", "in many parts"])
def test_an_hour_of_several_parts_is_taken_out_of_its_day(
    warehouse: Warehouse, is_merged: bool
) -> None:
    hours = [T0 + number * HOUR for number in range(5)]
    with small_blocks():
        for hour in hours:
            warehouse.load(hour, 60)
        if is_merged:
            warehouse.database.execute(f"OPTIMIZE TABLE {TABLE} FINAL")
        for version, hour in enumerate(hours, start=2):
            assert hours_of(warehouse.load(hour, 50, version)) == ()
            warehouse.check()


def test_small_blocks_make_an_hour_of_several_parts(warehouse: Warehouse) -> None:
    """What the kills and the readers below rely on."""
    with small_blocks():
        warehouse.database.define_table(TABLE)
        warehouse.database.execute(f"SYSTEM STOP MERGES {TABLE}")
        warehouse.load(T0, 60)
    parts = warehouse.database.parts(TABLE, f"{T0:%Y%m%d}")
    assert len(parts) > 2


# Tables that somebody else made

CREATE = read_sql("clickhouse/llm_traces.sql").replace("{table}", TABLE)
DAILY = "PARTITION BY toDate(created_at)"
SORTED = "ORDER BY (organization_id, created_at, id)"
TIME = "DateTime64(6, 'UTC')"
INDEX = "INDEX by_id id"


@pytest.mark.parametrize(
    "ddl",
    [
        pytest.param(CREATE.replace(DAILY, by), id=name)
        for name, by in {
            "partitioned by month": "PARTITION BY toYYYYMM(created_at)",
            "partitioned by hour": "PARTITION BY toStartOfHour(created_at)",
            "not partitioned": "",
            "partitioned by nothing, in so many words": "PARTITION BY tuple()",
            "partitioned by month and organization": "PARTITION BY (toYYYYMM(created_at), "
            "organization_id)",
        }.items()
    ]
    + [
        pytest.param(CREATE.replace(TIME, "DateTime64(6, 'America/New_York')"), id="New York days"),
        pytest.param(
            CREATE.replace(TIME, "DateTime64(6, 'Asia/Kolkata')"),
            id="Indian days, where an hour spans two partitions",
        ),
        pytest.param(CREATE.replace(SORTED, "ORDER BY id"), id="sorted by id alone"),
        pytest.param(CREATE.replace(SORTED, "ORDER BY tuple()"), id="not sorted"),
        pytest.param(
            CREATE.replace(SORTED, f"PRIMARY KEY organization_id {SORTED}"),
            id="with a shorter primary key",
        ),
        pytest.param(
            CREATE.replace(
                SORTED, "ORDER BY (organization_id, sipHash64(id)) SAMPLE BY sipHash64(id)"
            ),
            id="with a sampling key",
        ),
        pytest.param(
            CREATE.replace("= MergeTree", "= ReplacingMergeTree(created_at)"),
            id="ReplacingMergeTree",
        ),
        pytest.param(
            CREATE.replace(SORTED, f"{SORTED} TTL toDateTime(created_at) + INTERVAL 50 YEAR"),
            id="with a TTL",
        ),
        pytest.param(
            CREATE.partition("SETTINGS")[0]
            + " SETTINGS index_granularity = 16, min_bytes_for_wide_part = 0",
            id="with settings of its own",
        ),
        pytest.param(
            CREATE.replace(
                INDEX,
                "PROJECTION tokens (SELECT organization_id, sum(total_tokens) "
                f"GROUP BY organization_id), {INDEX}",
            ),
            id="with a projection",
        ),
        pytest.param(
            CREATE.replace(
                INDEX,
                "cost Float64 DEFAULT 2 * total_tokens, day Date MATERIALIZED toDate(created_at), "
                f"tag_count UInt64 ALIAS length(agent_tags), CONSTRAINT c CHECK id != '', {INDEX}",
            ),
            id="with columns and a constraint of its own",
        ),
    ],
)
def test_a_table_of_another_layout_holds_exact_hours(warehouse: Warehouse, ddl: str) -> None:
    warehouse.database.execute(ddl)
    layout = warehouse.database.layout(TABLE) | {"comment": ""}
    hours = [T0 + number * HOUR for number in (17, 18, 19, 28)]
    names = ", ".join(ARROW_SCHEMA.names)

    def check() -> None:
        found = warehouse.database.rows(f"SELECT {names} FROM {TABLE} ORDER BY created_at, id")
        assert found == [row for hour in hours for row in warehouse.expected.get(hour, [])]
        assert left_over_tables(warehouse.database) == []

    for hour in hours:
        assert hours_of(warehouse.load(hour, 30)) == ()
        check()
    warehouse.database.execute(f"OPTIMIZE TABLE {TABLE} FINAL")
    for hour, rows in ((hours[1], 20), (hours[3], 10), (hours[1], 0), (hours[0], 25)):
        assert hours_of(warehouse.load(hour, rows, 2)) == ()
        check()
    assert warehouse.database.layout(TABLE) | {"comment": ""} == layout
    if "PROJECTION" in ddl:
        totals = warehouse.database.rows(
            f"SELECT organization_id, sum(total_tokens) AS tokens FROM {TABLE} "
            "GROUP BY organization_id ORDER BY organization_id SETTINGS "
            "optimize_use_projections = 1, force_optimize_projection_name = 'tokens'"
        )
        loaded = warehouse.rows()
        assert [total["tokens"] for total in totals] == [
            sum(row["total_tokens"] for row in loaded if row["organization_id"] == organization)
            for organization in sorted({row["organization_id"] for row in loaded})
        ]


def test_a_table_that_keeps_milliseconds_is_reported_as_different(warehouse: Warehouse) -> None:
    warehouse.database.execute(CREATE.replace(TIME, "DateTime64(3, 'UTC')"))
    warehouse.publish(T0, 20)
    [result] = HourLoader(warehouse.database, warehouse.store).load([T0])
    assert [text.split()[:2] for text in result.differences] == [["content", "hash"]]


def test_a_batch_that_was_switched_before_its_turn_is_not_loaded(warehouse: Warehouse) -> None:
    empty = warehouse.publish(T0, 0)
    current = warehouse.publish(T0, 10, 2)
    for _ in range(2):
        assert warehouse.load_batch(empty).expected == current
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


# The definition in sql/


def columns_of(database: Database, table: str = TABLE) -> list[dict[str, Any]]:
    return database.rows(
        "SELECT name, type, comment FROM system.columns WHERE table = {table:String} "
        "AND database = {database:String} ORDER BY position",
        {"table": table, "database": database.name},
    )


def test_the_definition_is_the_declared_columns(warehouse: Warehouse) -> None:
    warehouse.database.define_table(TABLE)
    families = {
        pa.string(): ("String", "LowCardinality(String)"),
        pa.uint64(): ("UInt64",),
        pa.uint8(): ("UInt8",),
        pa.list_(pa.string()): ("Array(String)",),
        pa.timestamp("us", tz="UTC"): ("DateTime64(6, 'UTC')",),
        COST_TYPE: ("Decimal(38, 18)",),
    }
    found = columns_of(warehouse.database)
    assert [(row["name"], row["comment"]) for row in found] == [
        (column.name, column.description) for column in COLUMNS
    ]
    for row, column in zip(found, COLUMNS, strict=True):
        types = families[column.arrow_type]
        if column.is_nullable:
            types = tuple(f"Nullable({name})" for name in types)
        if not column.repeats:
            types = tuple(name for name in types if "LowCardinality" not in name)
        assert row["type"] in types, column.name


def test_defining_the_table_again_changes_nothing(warehouse: Warehouse) -> None:
    def definition() -> list[dict[str, Any]]:
        return warehouse.database.rows(f"SHOW CREATE TABLE {TABLE}")

    warehouse.database.define_table(TABLE)
    first = definition()
    warehouse.load(T0, 5)
    warehouse.database.define_table(TABLE)
    assert definition() == first
    warehouse.check()


@pytest.mark.parametrize("engine", ["ReplacingMergeTree", "MergeTree"])
def test_a_table_from_before_billing_is_upgraded_with_its_rows(
    warehouse: Warehouse, engine: str
) -> None:
    old = make_rows(T0 + 30 * HOUR, 9)
    old_columns = [name for name in ARROW_SCHEMA.names if name not in OWN_COLUMNS]
    assert len(old_columns) == 28
    warehouse.database.define_table("bystander")
    fresh = columns_of(warehouse.database, "bystander")
    warehouse.database.execute("DROP TABLE bystander SYNC")
    warehouse.database.execute(BEFORE_BILLING.format(table=TABLE, engine=engine))
    warehouse.insert_table(pa.Table.from_pylist(old, ARROW_SCHEMA).select(old_columns))
    warehouse.expected[T0 + 30 * HOUR] = [row | BLANK for row in old]

    for version in (1, 2):
        warehouse.load(T0, 14, version)
        warehouse.check()
    upgraded = columns_of(warehouse.database)
    assert [row["name"] for row in upgraded] == ARROW_SCHEMA.names
    assert [row for row in upgraded if row["name"] in OWN_COLUMNS] == [
        row for row in fresh if row["name"] in OWN_COLUMNS
    ]
    assert warehouse.database.layout(TABLE)["engine"] == engine
    # The old rows' own hour is replaced like any other.
    warehouse.load(T0 + 30 * HOUR, 3)
    warehouse.check()


def schema_of(database: Database) -> str:
    comment: str = database.layout(TABLE)["comment"]
    return comment


def test_a_table_of_every_older_schema_is_upgraded_with_its_rows(warehouse: Warehouse) -> None:
    warehouse.database.define_table(TABLE)
    fresh, comment = columns_of(warehouse.database), schema_of(warehouse.database)
    assert f"schema {SCHEMA_VERSION})" in comment
    recorded = [DATA / f"llm_traces_schema_{version}.sql" for version in range(SCHEMA_VERSION)]
    for path in recorded:
        warehouse.database.execute(f"DROP TABLE {TABLE} SYNC")
        warehouse.database.execute(path.read_text().replace("{table}", TABLE))
        names = [row["name"] for row in columns_of(warehouse.database)]
        old = pa.Table.from_pylist(make_rows(T0 + 2 * HOUR, 9), ARROW_SCHEMA).select(names)
        warehouse.insert_table(old)
        missing = {name: BLANK[name] for name in OWN_COLUMNS if name not in names}
        warehouse.expected = {T0 + 2 * HOUR: [row | missing for row in old.to_pylist()]}
        for version in (1, 2):
            warehouse.load(T0, 14, version)
            warehouse.check()
        assert columns_of(warehouse.database) == fresh
        assert schema_of(warehouse.database) == comment


def test_a_table_that_is_newer_is_refused_and_left_alone(warehouse: Warehouse) -> None:
    warehouse.load(T0, 10)
    warehouse.database.execute(f"ALTER TABLE {TABLE} ADD COLUMN later String AFTER created_at")
    newer = "One row per LLM call (llm_trace_pipeline schema 999)."
    warehouse.database.execute(f"ALTER TABLE {TABLE} MODIFY COMMENT '{newer}'")
    before = warehouse.rows()
    manifest = warehouse.publish(T0, 12, 2)
    with pytest.raises(ClickHouseError, match=r"has schema 999, .* install the newer version"):
        warehouse.load_batch(manifest)
    assert warehouse.rows() == before
    warehouse.close()
    [problem] = check_target(warehouse.settings)
    assert problem.is_fatal
    assert "has schema 999" in problem.message


def test_a_swap_cut_before_an_upgrade_is_finished_after_it(warehouse: Warehouse) -> None:
    for table in (TABLE, READY):
        warehouse.database.execute(BEFORE_BILLING.format(table=table, engine="MergeTree"))
    warehouse.database.execute(
        f"INSERT INTO {READY} (id, created_at) VALUES ('old', '2026-03-02 06:00:00')"
    )
    warehouse.load(T0, 5)
    assert [row["id"] for row in warehouse.rows()][5:] == ["old"]
    assert left_over_tables(warehouse.database) == []


def test_left_overs_of_a_table_that_was_dropped_do_not_come_back(warehouse: Warehouse) -> None:
    warehouse.database.define_table(TABLE)
    warehouse.insert(make_rows(T0, 5))
    for suffix in ("staging", "clone", "ready"):
        warehouse.database.execute(f"CREATE TABLE {TABLE}__{suffix} CLONE AS {TABLE}")
    warehouse.database.execute(f"DROP TABLE {TABLE} SYNC")
    for version in (1, 2):
        warehouse.load(T0 + HOUR, 6, version)
        warehouse.check()


# Other writers


@contextmanager
def another_writer(
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[], object],
    *,
    before: str = "",
    after: str = "",
    times: int = 1,
) -> Iterator[None]:
    """Act before or after a statement that contains a text, the first so many times."""
    execute = Database.execute
    acted = 0
    is_acting = False

    def act_at(moment: str, sql: str) -> None:
        nonlocal acted, is_acting
        if moment and moment in sql and not is_acting and acted < times:
            is_acting = True
            act()
            is_acting = False
            acted += 1

    def acting(self: Database, sql: str, *arguments: Any) -> None:
        tables = sql.replace(f"`{self.name}`.", "")
        act_at(before, tables)
        execute(self, sql, *arguments)
        act_at(after, tables)

    with monkeypatch.context() as context:
        context.setattr(Database, "execute", acting)
        yield
    assert acted == times


STAGING_INTO_CLONE = "ATTACH PARTITION ID {partition:String} FROM `llm_traces__staging`"
TARGET_INTO_CLONE = "ATTACH PARTITION ID {partition:String} FROM `llm_traces`"
MOMENTS = [
    pytest.param(TARGET_INTO_CLONE, id="before the partition is cloned"),
    pytest.param("DELETE FROM", id="before the hour is taken out of the clone"),
    pytest.param(STAGING_INTO_CLONE, id="before the batch is put into the clone"),
    pytest.param("RENAME TABLE", id="before the clone becomes the journal"),
]


def one_part(warehouse: Warehouse) -> None:
    """Merge the day T0, so that an hour is taken out by DELETE."""
    while len(warehouse.database.parts(TABLE, f"{T0:%Y%m%d}")) > 1:
        warehouse.database.execute(f"OPTIMIZE TABLE {TABLE} FINAL")


@pytest.mark.parametrize("moment", MOMENTS)
def test_rows_inserted_into_an_hour_without_batch_survive(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    warehouse.load(T0, 10)
    warehouse.load(T0 + HOUR, 10)
    one_part(warehouse)
    theirs = make_rows(T0 + 5 * HOUR, 3)
    with another_writer(monkeypatch, lambda: warehouse.insert(theirs), before=moment):
        assert hours_of(warehouse.load(T0, 10, 2)) == ()
    warehouse.expected[T0 + 5 * HOUR] = theirs
    warehouse.check()


def test_rows_inserted_right_after_the_swap_survive(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse.load(T0, 10)
    theirs = make_rows(T0 + 5 * HOUR, 3)
    with another_writer(monkeypatch, lambda: warehouse.insert(theirs), after="REPLACE PARTITION"):
        assert hours_of(warehouse.load(T0, 10, 2)) == ()
    warehouse.expected[T0 + 5 * HOUR] = theirs
    warehouse.check()


@pytest.mark.parametrize(
    ("deleted", "inserted"),
    [
        pytest.param("step-1", 0, id="a row deleted"),
        pytest.param("step-1", 1, id="a row inserted and another deleted"),
    ],
)
def test_rows_deleted_from_an_hour_without_batch_do_not_come_back(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch, deleted: str, inserted: int
) -> None:
    warehouse.load(T0, 10)
    hour = T0 + 5 * HOUR
    theirs = make_rows(hour, 10)
    warehouse.insert(theirs[:9])

    def meddle() -> None:
        warehouse.database.execute(
            f"DELETE FROM {TABLE} WHERE step_id = {{id:String}} AND created_at > {{at:DateTime}}",
            {"id": deleted, "at": hour},
        )
        if inserted:
            warehouse.insert(theirs[9:])

    with another_writer(monkeypatch, meddle, before="RENAME TABLE"):
        warehouse.load(T0, 10, 2)
    warehouse.expected[hour] = [row for row in theirs[: 9 + inserted] if row["step_id"] != deleted]
    warehouse.check()


@pytest.mark.parametrize("moment", MOMENTS)
def test_rows_inserted_into_a_loaded_hour_do_not_stay(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    warehouse.load(T0, 10)
    warehouse.load(T0 + HOUR, 10)
    one_part(warehouse)
    theirs = make_rows(T0 + HOUR, 13)[10:]
    with another_writer(monkeypatch, lambda: warehouse.insert(theirs), before=moment):
        assert hours_of(warehouse.load(T0, 10, 2)) == (T0 + HOUR,)
    warehouse.check()


@pytest.mark.parametrize("moment", MOMENTS)
def test_rows_inserted_into_the_hour_itself_do_not_stay(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    warehouse.load(T0, 10)
    warehouse.load(T0 + HOUR, 10)
    one_part(warehouse)
    theirs = make_rows(T0, 13)[10:]
    with another_writer(monkeypatch, lambda: warehouse.insert(theirs), before=moment):
        warehouse.load(T0, 10, 2)
    warehouse.check()


@pytest.mark.parametrize(
    ("before", "statement", "times"),
    [
        pytest.param(0, "`llm_traces` ATTACH PARTITION", 1, id="after a first load"),
        pytest.param(10, "REPLACE PARTITION", 1, id="after a swap"),
        pytest.param(10, "REPLACE PARTITION", ATTEMPTS - 1, id="after swap upon swap"),
    ],
)
def test_rows_inserted_into_the_hour_right_after_it_was_loaded_do_not_stay(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch, before: int, statement: str, times: int
) -> None:
    warehouse.load(T0 + HOUR, 10)
    if before:
        warehouse.load(T0, before)
    theirs = iter(make_rows(T0, 20)[10:])
    with another_writer(
        monkeypatch, lambda: warehouse.insert([next(theirs)]), after=statement, times=times
    ):
        warehouse.load(T0, 10, 2)
    warehouse.check()


@pytest.mark.parametrize("target_rows", [0, 10], ids=["a day without the hour", "the hour loaded"])
def test_rows_that_somebody_inserted_before_are_replaced(
    warehouse: Warehouse, target_rows: int
) -> None:
    warehouse.load(T0 + HOUR, 10)
    if target_rows:
        warehouse.load(T0, target_rows)
    warehouse.insert(make_rows(T0, 5, 7))
    warehouse.insert(make_rows(T0, 15, 8))
    warehouse.load(T0, 10, 2)
    warehouse.check()


def test_a_writer_that_keeps_inserting_is_named_after_some_attempts(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse.load(T0, 10)
    theirs = make_rows(T0 + 5 * HOUR, ATTEMPTS)
    one_by_one = iter(theirs)
    manifest = warehouse.publish(T0, 10, 2)
    with (
        another_writer(
            monkeypatch,
            lambda: warehouse.insert([next(one_by_one)]),
            before="RENAME TABLE",
            times=ATTEMPTS,
        ),
        pytest.raises(
            ClickHouseError,
            match=f"hour 2026-03-01-00:00: another writer kept inserting into partition 20260301 "
            f"of llm_traces during {ATTEMPTS} attempts .* materialize llm_traces again",
        ),
    ):
        warehouse.load_batch(manifest)
    warehouse.load_batch(manifest)
    warehouse.expected[T0 + 5 * HOUR] = theirs
    warehouse.check()


def test_a_merge_of_the_clone_does_not_disturb(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse.database.define_table(TABLE)
    warehouse.database.execute(f"SYSTEM STOP MERGES {TABLE}")
    for number in range(4):
        warehouse.load(T0 + number * HOUR, 10)

    def merge() -> None:
        warehouse.database.execute(f"OPTIMIZE TABLE {TABLE}__clone FINAL")

    with another_writer(monkeypatch, merge, before="DROP PART {"):
        warehouse.load(T0, 10, 2)
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
    damaged = T0 + 7 * HOUR
    for hour in (T0, damaged, T0 + 8 * HOUR, T0 + DAY):
        warehouse.load(hour, 10)
    theirs = make_rows(T0 + 20 * HOUR, 4)
    warehouse.insert(theirs)
    warehouse.expected[T0 + 20 * HOUR] = theirs
    warehouse.database.execute(
        damage.format(table=TABLE, hour="toStartOfHour(created_at) = '2026-03-01 07:00:00'")
    )
    assert len(warehouse.rows()) != 44 or "UPDATE" in damage
    assert hours_of(warehouse.load(T0, 10, 2)) == (damaged,)
    warehouse.check()
    assert hours_of(warehouse.load(T0, 10, 3)) == ()


def test_emptying_an_hour_notices_that_the_rest_of_its_day_is_gone(warehouse: Warehouse) -> None:
    warehouse.load(T0, 10)
    warehouse.load(T0 + HOUR, 10)
    warehouse.database.execute(f"DELETE FROM {TABLE} WHERE created_at >= '2026-03-01 01:00:00'")
    assert hours_of(warehouse.load(T0, 0)) == (T0 + HOUR,)
    warehouse.check()


def test_hours_that_are_about_to_be_loaded_are_left_alone(warehouse: Warehouse) -> None:
    warehouse.load(T0 + HOUR, 10)
    warehouse.publish(T0 + HOUR, 12, 2)
    warehouse.publish(T0, 10)
    loader = HourLoader(warehouse.database, warehouse.store)
    [result] = loader.load([T0], awaiting=frozenset({T0 + HOUR}))
    assert hours_of(result) == ()
    warehouse.expected[T0 + HOUR] = make_rows(T0 + HOUR, 10)
    warehouse.check()


def test_a_lost_part_of_the_batch_leaves_the_table_as_it_was(warehouse: Warehouse) -> None:
    warehouse.load(T0, 10)
    warehouse.load(T0 + HOUR, 10)
    before = warehouse.rows()
    manifest = warehouse.publish(T0, 10, 2)
    Path(str(warehouse.store.part_paths(manifest)[1])).unlink()
    with pytest.raises(BatchError, match=r"hour 2026-03-01-00:00: part .* is missing"):
        warehouse.load_batch(manifest)
    assert warehouse.rows() == before


# Stops


class StoppedError(Exception):
    """The process would have ended here."""


@contextmanager
def stopping_after(monkeypatch: pytest.MonkeyPatch, statements: int) -> Iterator[None]:
    """Stop after so many statements."""
    remaining = statements

    def stopping(statement: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            nonlocal remaining
            statement(*arguments)
            remaining -= 1
            if not remaining:
                raise StoppedError

        return run

    with monkeypatch.context() as context:
        for name in ("execute", "_insert_arrow"):  # which a server is sent
            context.setattr(Database, name, stopping(getattr(Database, name)))
        yield


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
    monkeypatch: pytest.MonkeyPatch,
    others: int,
    before: int,
    rows: int,
    is_same_hour: bool,
) -> None:
    statements = 0
    for statements in count(1):
        day = T0 if others else T0 + statements * DAY
        hour = day + 2 * HOUR
        for number in range(others if statements == 1 else 0):
            warehouse.load(day + (3 + number) * HOUR, 10)
        if statements == 1 or not (before and rows):
            warehouse.load(hour, before)
        if others and statements % 2:
            one_part(warehouse)  # the hour is then taken out by DELETE
        manifest = warehouse.publish(hour, rows, 1 + statements)
        try:
            with stopping_after(monkeypatch, statements):
                warehouse.load_batch(manifest)
        except StoppedError:
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


def test_a_stop_between_hours_that_are_loaded_together_is_made_good(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = [T0 + number * HOUR for number in (22, 23, 24, 25)]  # in two partitions
    for hour in (hours[0] - HOUR, *hours, hours[-1] + HOUR):
        warehouse.load(hour, 10)
    statements = 0
    for statements in count(1):
        for number, hour in enumerate(hours):
            warehouse.publish(hour, 10 + number, 1 + statements)
        loader = HourLoader(warehouse.database, warehouse.store)
        try:
            with stopping_after(monkeypatch, statements):
                loader.load(hours)
        except StoppedError:
            warehouse.reopen()
        else:
            break
        # Any load makes both partitions of the day before exact, and the second one's its own.
        HourLoader(warehouse.database, warehouse.store).load([hours[1]])
        HourLoader(warehouse.database, warehouse.store).load([hours[2]])
        warehouse.check()
    warehouse.check()
    assert statements > 20


@pytest.mark.parametrize("is_same_hour", [True, False], ids=["that hour again", "another hour"])
def test_a_swap_that_left_old_and_new_parts_is_finished(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch, is_same_hour: bool
) -> None:
    """The state that a kill inside REPLACE leaves behind now and then, made on purpose."""
    theirs = make_rows(T0 + 5 * HOUR, 7)
    warehouse.load(T0, 10)
    warehouse.load(T0 + HOUR, 10)
    warehouse.insert(theirs)
    warehouse.expected[T0 + 5 * HOUR] = theirs
    execute = Database.execute

    def leaving_both(self: Database, sql: str, *arguments: Any) -> None:
        if "REPLACE PARTITION" in sql:
            execute(self, sql.replace("REPLACE", "ATTACH"), *arguments)
            raise StoppedError
        execute(self, sql, *arguments)

    manifest = warehouse.publish(T0, 12, 2)
    with monkeypatch.context() as context:
        context.setattr(Database, "execute", leaving_both)
        with pytest.raises(StoppedError):
            warehouse.load_batch(manifest)
    warehouse.reopen()
    assert len(warehouse.rows()) == 10 + 10 + 7 + 12 + 10 + 7
    if is_same_hour:
        warehouse.load_batch(manifest)
    else:
        warehouse.load(T0 + 9 * HOUR, 5)
    warehouse.check()
