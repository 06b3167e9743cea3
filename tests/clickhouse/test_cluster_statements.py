"""What the nodes of a cluster are sent, and what a single server is not."""

import re
from pathlib import Path

import pytest

from llm_trace_pipeline.clickhouse.cluster import LOCAL_TABLE
from llm_trace_pipeline.clickhouse.rollup import compare_rollup, roll_up
from llm_trace_pipeline.clickhouse.tables import (
    ROLLUP,
    SHARDING_KEY,
    define_table,
    definition_of,
    layout_of,
    local_name,
)
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.sql import read_sql
from llm_trace_pipeline.trace.columns import SCHEMA_VERSION
from llm_trace_pipeline.upkeep.erase import remove_from_clickhouse as erase_from_clickhouse
from llm_trace_pipeline.upkeep.preflight_target import check_target, needed_grants_of_cluster
from llm_trace_pipeline.upkeep.retention import apply_retention
from tests.harness.cluster import (
    ORGANIZATIONS,
    ClusterWarehouse,
    alone,
    make_config,
    rows_of,
)
from tests.harness.rows import DAY, MIDNIGHT, TABLE, erasure

ROLLUP_SCHEMA_2 = (Path(__file__).parents[1] / "data" / "llm_usage_hourly_schema_2.sql").read_text(
    encoding="utf-8"
)


def test_each_shard_rolls_up_its_own_organizations(cluster: ClusterWarehouse) -> None:
    hours = [MIDNIGHT, MIDNIGHT + HOUR]
    for hour in hours:
        cluster.load(hour, rows_of(hour))
    roll_up(cluster.database, cluster.store, hours)

    def check() -> None:
        sums = "organization_id, sum(total_tokens) AS tokens, sum(cost_usd) AS cost"
        expected, found = (
            cluster.database.rows(
                f"SELECT {hour} AS hour, {calls} AS calls, {sums} "
                f"FROM {cluster.database.qualified(table)} "
                "GROUP BY 1, organization_id ORDER BY 1, organization_id"
            )
            for hour, calls, table in (
                ("toStartOfHour(created_at, 'UTC')", "count()", TABLE),
                ("hour", "sum(calls)", ROLLUP),
            )
        )
        assert len(found) == 2 * ORGANIZATIONS
        assert found == [{**row, "cost": row["cost"] or 0} for row in expected]
        for shard in cluster.shards():
            organizations = shard.rows(
                f"SELECT DISTINCT organization_id FROM {shard.qualified(f'{ROLLUP}_local')} "
                f"EXCEPT SELECT organization_id FROM {shard.qualified(LOCAL_TABLE)}"
            )
            assert organizations == []

    check()
    shard = cluster.shards()[2]
    shard.execute(
        f"ALTER TABLE {shard.qualified(f'{ROLLUP}_local')} DELETE WHERE hour = {{hour:DateTime}}",
        {"hour": MIDNIGHT},
        {"mutations_sync": 2},
    )
    compared = compare_rollup(cluster.database, cluster.store, hours)
    assert list(compared) == [MIDNIGHT]
    results = roll_up(cluster.database, cluster.store, hours)
    assert [result.was_written for result in results] == [
        *(False, False, False, False, True, False),
    ]
    check()


def use_everything(cluster: ClusterWarehouse) -> None:
    """Have every kind of statement sent."""
    cluster.load(MIDNIGHT, rows_of(MIDNIGHT))
    cluster.load(MIDNIGHT, rows_of(MIDNIGHT, version=2))
    roll_up(cluster.database, cluster.store, [MIDNIGHT])
    erase_from_clickhouse(
        cluster.database, cluster.store, erasure("org-1", before=MIDNIGHT + 2 * DAY)
    )
    settings = cluster.settings.model_copy(update={"retention_days": 1})
    apply_retention(cluster.database, cluster.store, settings, MIDNIGHT + 48 * HOUR)


def test_every_statement_is_one_of_the_engine(cluster: ClusterWarehouse, tmp_path: Path) -> None:
    """As they were sent: those that the nodes of the test put differently are only parsed."""
    use_everything(cluster)
    # An upgrade is made of the same files.
    upgrades = [
        sql
        for table in (TABLE, ROLLUP)
        for sql in definition_of(cluster.database, table, exists=True)
    ]
    sent = {*cluster.statements(), *upgrades}
    with alone(tmp_path / "engine", make_config(tmp_path)) as engine:
        for sql in sent:
            parsed = engine.rows("SELECT formatQuery({sql:String}) AS sql", {"sql": sql})
            assert parsed[0]["sql"]
    name = re.escape(cluster.settings.clickhouse_database)
    on_cluster = sorted(
        re.sub(rf"`{name}`|'{name}'", "db", re.sub(r"(?m)^--.*\n", "", sql)).split("\n")[0]
        for sql in sent
        if "ON CLUSTER" in sql
    )
    local, rollup = "db.`llm_traces_local`", f"db.`{ROLLUP}`"
    assert on_cluster == [
        "ALTER TABLE db.`llm_traces_local` ON CLUSTER `three_shards`",
        "ALTER TABLE db.`llm_traces` ON CLUSTER `three_shards`",
        *[f"ALTER TABLE db.`{ROLLUP}_local` ON CLUSTER `three_shards`"] * 2,  # upgrade and comment
        *[f"ALTER TABLE {rollup} ON CLUSTER `three_shards`"] * 2,
        "CREATE DATABASE IF NOT EXISTS db ON CLUSTER `three_shards`",
        "CREATE OR REPLACE VIEW db.`llm_usage_daily` ON CLUSTER `three_shards` AS",
        "CREATE OR REPLACE VIEW db.`llm_usage_monthly` ON CLUSTER `three_shards` AS",
        "CREATE TABLE IF NOT EXISTS db.`llm_traces_local` ON CLUSTER `three_shards`",
        f"CREATE TABLE IF NOT EXISTS db.`llm_traces` ON CLUSTER `three_shards` AS {local}",
        f"CREATE TABLE IF NOT EXISTS db.`{ROLLUP}_local` ON CLUSTER `three_shards`",
        f"CREATE TABLE IF NOT EXISTS {rollup} ON CLUSTER `three_shards` AS db.`{ROLLUP}_local`",
    ]
    definition, of_rollup = sorted(
        {sql for sql in sent if re.search(r"ON CLUSTER", sql) and "ReplicatedMergeTree(" in sql},
        key=lambda sql: ROLLUP in sql,
    )
    assert "PARTITION BY toDate(hour)\n" in of_rollup
    assert (
        "ENGINE = "
        "ReplicatedMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')\n"
        "PARTITION BY toDate(created_at)\n"
    ) in definition
    assert any(re.fullmatch(r"SYSTEM SYNC REPLICA \S+ LIGHTWEIGHT", sql) for sql in sent)


def test_the_rollup_of_an_older_version_is_brought_up_to_date_on_all_shards(
    cluster: ClusterWarehouse,
) -> None:
    database, local = cluster.database, local_name(ROLLUP)
    define_table(database, ROLLUP)
    columns = (
        "SELECT name, type FROM system.columns WHERE database = {database:String} "
        "AND table = {table:String} ORDER BY position"
    )
    of_local = {"database": database.name, "table": local}
    fresh = database.rows(columns, of_local)
    database.execute(f"DROP TABLE {database.qualified(ROLLUP)}{database.on_cluster} SYNC")
    database.execute(f"DROP TABLE {database.qualified(local)}{database.on_cluster} SYNC")
    old = ROLLUP_SCHEMA_2.replace("{table}", f"{database.qualified(local)}{database.on_cluster}")
    database.execute(old)
    definition = definition_of(database, ROLLUP, exists=False)
    [distributed] = [sql for sql in definition if "ENGINE = Distributed" in sql]
    database.execute(distributed.replace(f"schema {SCHEMA_VERSION}", "schema 2"))
    for is_defined in (True, False):
        cluster.statements()
        define_table(cluster.database, ROLLUP)
        for shard in cluster.shards():
            define_table(shard, local_name(ROLLUP))  # refuses an older one
        assert any("ON CLUSTER" in sql for sql in cluster.statements()) == is_defined
    for shard in cluster.shards():
        assert shard.rows(columns, of_local) == fresh
    cluster.load(MIDNIGHT, rows_of(MIDNIGHT))
    roll_up(database, cluster.store, [MIDNIGHT])
    assert compare_rollup(database, cluster.store, [MIDNIGHT]) == {}
    [rolled] = database.rows(f"SELECT sum(unmetered_calls) AS calls FROM {ROLLUP}")
    assert rolled["calls"] == sum(
        row["usage_source"] == "none" and not row["cost_usd"] for row in rows_of(MIDNIGHT)
    )


@pytest.mark.parametrize("table", [TABLE, ROLLUP])
def test_a_distributed_table_is_one_that_the_engine_makes_and_upgrades(
    tmp_path: Path, table: str
) -> None:
    """On the engine itself, but for ON CLUSTER and replicas."""
    with alone(tmp_path / "engine", make_config(tmp_path)) as engine:
        for exists in (False, True):
            for sql in definition_of(engine, table, exists=exists):
                alone_sql = re.sub(r" ON CLUSTER `\w+`|Replicated(?=MergeTree)", "", sql)
                engine.execute(re.sub(r"(?<=MergeTree)\(.*\)", "", alone_sql))
        layout = layout_of(engine, table)
        assert layout["engine_full"] == (
            f"Distributed('three_shards', 'default', '{table}_local', cityHash64(organization_id))"
        )
        assert f"llm_trace_pipeline schema {SCHEMA_VERSION}" in layout["comment"]
        # What a load asks of it besides its columns is resolved, and not asked for.
        assert engine.rows(f"EXPLAIN QUERY TREE SELECT DISTINCT _partition_id FROM {table}")
        columns = "SELECT name, type FROM system.columns WHERE table = {table:String}"
        assert engine.rows(columns, {"table": table}) == engine.rows(
            columns, {"table": local_name(table)}
        )


def test_a_single_server_is_sent_nothing_of_a_cluster(cluster: ClusterWarehouse) -> None:
    cluster.settings = cluster.settings.model_copy(update={"clickhouse_cluster": None})
    cluster.reopen()
    cluster.statements()
    use_everything(cluster)
    assert check_target(cluster.settings) == []
    first, second, third = (node.put() for node in cluster.nodes)
    assert first == third == []
    assert len(second) > 50
    of_cluster = "CLUSTER|Replicated|REPLICA|Distributed|_local|system.clusters|REMOTE"
    of_cluster += f"|{re.escape(SHARDING_KEY)}"
    assert [sql for sql in second if re.search(of_cluster, sql)] == []


def test_the_loader_is_granted_what_preflight_asks_for_in_a_cluster() -> None:
    granted = re.findall(
        r"^GRANT (.*) TO llm_traces_loader;$",
        read_sql("grants/clickhouse_cluster.sql"),
        re.MULTILINE,
    )
    assert granted == needed_grants_of_cluster("default")
