"""The definition of the table in ``sql/``, and the upgrade of older tables."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.clickhouse.rollup import compare_rollup, roll_up
from llm_trace_pipeline.clickhouse.tables import ROLLUP, VIEWS, define_table, layout_of
from llm_trace_pipeline.errors import ClickHouseError
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.sql import render
from llm_trace_pipeline.trace.columns import (
    ADDED_COLUMNS,
    ARROW_SCHEMA,
    COLUMNS,
    COST_COLUMNS,
    COST_TYPE,
    SCHEMA_VERSION,
)
from llm_trace_pipeline.upkeep.preflight_target import check_target
from tests.harness.rows import DAY, MIDNIGHT, TABLE, make_rows
from tests.harness.statements import Stopped, recording, stopping_after
from tests.harness.warehouse import Warehouse, left_over_tables

DATA = Path(__file__).parents[1] / "data"
SCHEMA_0 = DATA / "llm_traces_schema_0.sql"
ROLLUP_SCHEMA_2 = DATA / "llm_usage_hourly_schema_2.sql"

# The table as it was before billing.
OWN_COLUMNS = (
    *("billing_plan_type", "billing_cost_source", "billing_customer_id"),
    *("billing_match", "payload_hash", *COST_COLUMNS, "price_version", *ADDED_COLUMNS),
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


def columns_of(database: Database, table: str = TABLE) -> list[dict[str, Any]]:
    return database.rows(
        "SELECT name, type, comment FROM system.columns WHERE table = {table:String} "
        "AND database = {database:String} ORDER BY position",
        {"table": table, "database": database.name},
    )


def test_the_definition_is_the_declared_columns(warehouse: Warehouse) -> None:
    define_table(warehouse.database, TABLE)
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

    define_table(warehouse.database, TABLE)
    first = definition()
    warehouse.load(MIDNIGHT, 5)
    define_table(warehouse.database, TABLE)
    assert definition() == first
    warehouse.check()


@pytest.mark.parametrize("engine", ["ReplacingMergeTree", "MergeTree"])
def test_a_table_from_before_billing_is_upgraded_with_its_rows(
    warehouse: Warehouse, engine: str
) -> None:
    old = make_rows(MIDNIGHT + 30 * HOUR, 9)
    old_columns = [name for name in ARROW_SCHEMA.names if name not in OWN_COLUMNS]
    assert len(old_columns) == 28
    define_table(warehouse.database, "bystander")
    fresh = columns_of(warehouse.database, "bystander")
    warehouse.database.execute("DROP TABLE bystander SYNC")
    warehouse.database.execute(BEFORE_BILLING.format(table=TABLE, engine=engine))
    warehouse.insert_table(pa.Table.from_pylist(old, ARROW_SCHEMA).select(old_columns))
    warehouse.expected[MIDNIGHT + 30 * HOUR] = [row | BLANK for row in old]

    for version in (1, 2):
        warehouse.load(MIDNIGHT, 14, version)
        warehouse.check()
    upgraded = columns_of(warehouse.database)
    assert [row["name"] for row in upgraded] == ARROW_SCHEMA.names
    assert [row for row in upgraded if row["name"] in OWN_COLUMNS] == [
        row for row in fresh if row["name"] in OWN_COLUMNS
    ]
    assert layout_of(warehouse.database, TABLE)["engine"].removeprefix("Shared") == engine
    # The old rows' own hour is replaced like any other.
    warehouse.load(MIDNIGHT + 30 * HOUR, 3)
    warehouse.check()


def schema_of(database: Database, table: str = TABLE) -> str:
    comment: str = layout_of(database, table)["comment"]
    return comment


def test_a_table_from_before_schemas_had_numbers_is_upgraded_with_its_rows(
    warehouse: Warehouse,
) -> None:
    define_table(warehouse.database, TABLE)
    fresh, comment = columns_of(warehouse.database), schema_of(warehouse.database)
    assert f"schema {SCHEMA_VERSION})" in comment
    warehouse.database.execute(f"DROP TABLE {TABLE} SYNC")
    warehouse.database.execute(SCHEMA_0.read_text().replace("{table}", TABLE))
    names = [row["name"] for row in columns_of(warehouse.database)]
    old = pa.Table.from_pylist(make_rows(MIDNIGHT + 2 * HOUR, 9), ARROW_SCHEMA).select(names)
    warehouse.insert_table(old)
    missing = {name: BLANK[name] for name in OWN_COLUMNS if name not in names}
    warehouse.expected = {MIDNIGHT + 2 * HOUR: [row | missing for row in old.to_pylist()]}
    for version in (1, 2):
        warehouse.load(MIDNIGHT, 14, version)
        warehouse.check()
    assert columns_of(warehouse.database) == fresh
    assert schema_of(warehouse.database) == comment


def test_the_rollup_of_an_older_version_is_defined_until_all_of_it_is_there_and_then_no_more(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    for table in (TABLE, ROLLUP):
        define_table(warehouse.database, table)
    assert schema_of(warehouse.database, ROLLUP).endswith(f"schema {SCHEMA_VERSION}).")
    raised = SCHEMA_VERSION + 1
    monkeypatch.setattr("llm_trace_pipeline.clickhouse.tables.SCHEMA_VERSION", raised)
    with pytest.raises(Stopped), stopping_after(3):  # the table and its two views
        define_table(warehouse.database, ROLLUP)
    with recording() as again:
        define_table(warehouse.database, ROLLUP)
    assert len(again) == 4
    assert schema_of(warehouse.database, ROLLUP).endswith(f"schema {raised}).")
    with recording() as once_more:
        define_table(warehouse.database, ROLLUP)
    assert once_more == []


def test_a_rollup_of_schema_2_is_upgraded_with_its_rows(warehouse: Warehouse) -> None:
    database, store = warehouse.database, warehouse.store
    define_table(database, TABLE)
    define_table(database, ROLLUP)
    fresh, comment = columns_of(database, ROLLUP), schema_of(database, ROLLUP)
    views = {view: columns_of(database, view) for view in VIEWS}
    for name in (*VIEWS, ROLLUP):
        database.execute(f"DROP TABLE {name} SYNC")
    database.execute(ROLLUP_SCHEMA_2.read_text().replace("{table}", ROLLUP))
    for view in VIEWS:
        database.execute(f"CREATE VIEW {view} AS SELECT sum(prompt_tokens) AS tokens FROM {ROLLUP}")
    names = [row["name"] for row in columns_of(database, ROLLUP)]
    columns = ", ".join(names)
    compared = ", ".join(name for name in names if name != "latency_ms")  # which has no order
    old_rows = f"SELECT {compared} FROM {ROLLUP} WHERE hour >= '2026-03-02' ORDER BY ALL"
    first, second, plain = MIDNIGHT, MIDNIGHT + DAY, MIDNIGHT + DAY + HOUR
    of_schema_2 = {"usage_source": "response", "other_cost_usd": None}
    warehouse.load(first, 20)
    warehouse.load(second, 20)
    warehouse.load(plain, [row | of_schema_2 for row in make_rows(plain, 20)])
    rolled_up = render("clickhouse/roll_up.sql", table=TABLE, filter="1")
    database.execute(f"INSERT INTO {ROLLUP} ({columns}) SELECT {columns} FROM ({rolled_up})")
    before = database.rows(old_rows)

    [result] = roll_up(database, store, [first])
    assert (result.was_written, result.differences, result.repaired_hours) == (True, (), ())
    assert columns_of(database, ROLLUP) == fresh
    assert {view: columns_of(database, view) for view in VIEWS} == views
    assert schema_of(database, ROLLUP) == comment
    assert database.rows(old_rows) == before
    of_second = warehouse.expected[second]
    other = sum(row["other_cost_usd"] or 0 for row in of_second)
    unmetered = sum(row["usage_source"] == "none" and not row["cost_usd"] for row in of_second)
    found = compare_rollup(database, store, [first, second, plain])
    assert list(found) == [second]
    assert found[second][:2] == (
        f"{ROLLUP}: other_cost_usd 0E-18, not {other}",
        f"{ROLLUP}: unmetered_calls 0, not {unmetered}",
    )
    assert [text.partition(":")[2][:14] for text in found[second][2:]] == [" content hash "]
    roll_up(database, store, [second])
    assert compare_rollup(database, store, [first, second, plain]) == {}


def test_a_table_that_is_newer_is_refused_and_left_alone(warehouse: Warehouse) -> None:
    warehouse.load(MIDNIGHT, 10)
    warehouse.database.execute(f"ALTER TABLE {TABLE} ADD COLUMN later String AFTER created_at")
    newer = "One row per LLM call (llm_trace_pipeline schema 999)."
    warehouse.database.execute(f"ALTER TABLE {TABLE} MODIFY COMMENT '{newer}'")
    before = warehouse.rows()
    manifest = warehouse.publish(MIDNIGHT, 12, 2)
    with pytest.raises(ClickHouseError, match=r"has schema 999, .* install the newer version"):
        warehouse.load_batch(manifest)
    assert warehouse.rows() == before
    warehouse.close()
    [problem] = check_target(warehouse.settings)
    assert problem.is_fatal
    assert "has schema 999" in problem.message


def test_a_swap_cut_before_an_upgrade_is_finished_after_it(warehouse: Warehouse) -> None:
    for table in (TABLE, f"{TABLE}__ready"):
        warehouse.database.execute(BEFORE_BILLING.format(table=table, engine="MergeTree"))
    warehouse.database.execute(
        f"INSERT INTO {f'{TABLE}__ready'} (id, created_at) VALUES ('old', '2026-03-02 06:00:00')"
    )
    warehouse.load(MIDNIGHT, 5)
    assert [row["id"] for row in warehouse.rows()][5:] == ["old"]
    assert left_over_tables(warehouse.database) == []


def test_left_overs_of_a_table_that_was_dropped_do_not_come_back(warehouse: Warehouse) -> None:
    define_table(warehouse.database, TABLE)
    warehouse.insert(make_rows(MIDNIGHT, 5))
    for suffix in ("staging", "clone", "ready"):
        warehouse.database.execute(f"CREATE TABLE {TABLE}__{suffix} CLONE AS {TABLE}")
    warehouse.database.execute(f"DROP TABLE {TABLE} SYNC")
    for version in (1, 2):
        warehouse.load(MIDNIGHT + HOUR, 6, version)
        warehouse.check()
