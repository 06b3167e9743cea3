"""Loads into a cluster of three shards, on nodes that are an engine each, over HTTP."""

import re
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pytest

from llm_trace_pipeline.batches.erasures import record_erasure
from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.clickhouse.cluster import LOCAL_TABLE, loader_of
from llm_trace_pipeline.clickhouse.tables import define_table, definition_of
from llm_trace_pipeline.clickhouse.traces import in_groups, own_rows
from llm_trace_pipeline.errors import ClickHouseError, SettingsError
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.upkeep.covered import count_traces
from llm_trace_pipeline.upkeep.erase import remove_from_batches
from llm_trace_pipeline.upkeep.erase import remove_from_clickhouse as erase_from_clickhouse
from llm_trace_pipeline.upkeep.preflight_target import check_target
from llm_trace_pipeline.upkeep.reconcile import compare_table
from llm_trace_pipeline.upkeep.retention import apply_retention
from tests.harness.cluster import (
    DEAD_HOST,
    HOSTS,
    WEIGHTS,
    ClusterWarehouse,
    alone,
    make_config,
    rows_of,
)
from tests.harness.rows import DAY, MIDNIGHT, TABLE, Row, erasure
from tests.harness.statements import Stopped, stopping_after

MILLISECOND = timedelta(milliseconds=1)

# Where rows belong


def test_shards_are_those_of_the_distributed_table(
    cluster: ClusterWarehouse, tmp_path: Path
) -> None:
    """Each organization is sent to a shard by the engine, which keeps what it cannot deliver."""
    config = make_config(tmp_path)
    folder = tmp_path / "engine"
    organizations = ["", "ünïcode 🦉", "it's", *(f"org-{uuid4()}" for _ in range(120))]
    table = pa.table({"organization_id": organizations})
    held = [set(own_rows(shard, table).column(0).to_pylist()) for shard in cluster.shards()]

    sent: list[set[str]] = [set() for _ in WEIGHTS]
    with alone(folder, config) as engine:
        engine.execute("CREATE TABLE local (organization_id String) ENGINE = MergeTree ORDER BY ()")
        engine.execute(
            "CREATE TABLE distributed AS local ENGINE = "
            "Distributed(three_shards, default, local, cityHash64(organization_id))"
        )
        engine.execute("SYSTEM STOP DISTRIBUTED SENDS distributed")
        seen: set[Path] = set()
        for organization in organizations:
            engine.execute(
                "INSERT INTO distributed SELECT {organization:String}",
                {"organization": organization},
                {"distributed_foreground_insert": 0, "prefer_localhost_replica": 0},
            )
            new = set(folder.rglob("shard*/*.bin")) - seen
            seen |= new
            [number] = {int(re.findall(r"shard(\d+)_", str(path))[0]) for path in new}
            sent[number - 1].add(organization)
    assert held == sent
    assert all(sent)


# Loads


def test_an_hour_is_spread_over_the_shards_and_read_as_one(cluster: ClusterWarehouse) -> None:
    result = cluster.load(MIDNIGHT, rows_of(MIDNIGHT))
    assert result.was_written
    cluster.check()
    assert all(cluster.ids_by_shard())


def test_loading_again_writes_nothing(cluster: ClusterWarehouse) -> None:
    cluster.load(MIDNIGHT, rows_of(MIDNIGHT))
    cluster.statements()
    [result] = cluster.load_hours(MIDNIGHT)
    assert not result.was_written
    changes = re.compile(r"^(?:INSERT|ALTER|CREATE|RENAME)\b")
    assert [sql for sql in cluster.statements() if changes.match(sql)] == []
    cluster.check()


def test_changed_rows_are_replaced_beside_other_hours(cluster: ClusterWarehouse) -> None:
    for number in range(3):
        cluster.load(MIDNIGHT + number * HOUR, rows_of(MIDNIGHT + number * HOUR))
    cluster.load(MIDNIGHT + HOUR, rows_of(MIDNIGHT + HOUR, version=2, count=40))
    cluster.check()
    cluster.load_hours(MIDNIGHT + HOUR, force=True)
    cluster.check()


def test_hours_are_loaded_together(cluster: ClusterWarehouse) -> None:
    hours = [MIDNIGHT + number * HOUR for number in range(22, 27)]
    for hour in hours:
        cluster.publish(hour, rows_of(hour))
    assert in_groups(cluster.store, hours) == [hours]
    cluster.load_hours(*hours)
    cluster.check()


def test_an_hour_becomes_empty_on_a_shard_and_then_on_all(cluster: ClusterWarehouse) -> None:
    rows = rows_of(MIDNIGHT)
    cluster.load(MIDNIGHT, rows)
    gone = cluster.ids_by_shard()[2]
    cluster.load(MIDNIGHT, [row for row in rows if row["id"] not in gone])
    cluster.check()
    assert [bool(ids) for ids in cluster.ids_by_shard()] == [True, True, False]
    cluster.load(MIDNIGHT, [])
    cluster.check()


def test_a_node_that_reads_the_batch_by_itself_takes_its_own_rows(
    cluster: ClusterWarehouse,
) -> None:
    """As from a bucket; here from a folder of this machine, which the tests' nodes are on too."""
    cluster.publish(MIDNIGHT, rows_of(MIDNIGHT))
    loader = loader_of(cluster.database, cluster.store)
    for shard, _ in loader.targets:
        shard.is_embedded = True  # what is read by file(), not sent
    cluster.statements()
    loader.load([MIDNIGHT])
    inserts = [sql for sql in cluster.statements() if "INSERT INTO" in sql]
    assert all("FROM file(" in sql for sql in inserts)
    cluster.check()


def test_payloads_are_left_out_on_every_shard(cluster: ClusterWarehouse) -> None:
    cluster.settings = cluster.settings.model_copy(update={"payloads": "batches"})
    cluster.reopen()
    cluster.load(MIDNIGHT, rows_of(MIDNIGHT))
    without = {"request_json": "", "response_json": ""}
    assert cluster.rows() == [{**row, **without} for row in cluster.expected[MIDNIGHT]]


# Stops and damage


def test_a_stop_anywhere_shows_each_organization_whole_and_is_made_good(
    cluster: ClusterWarehouse,
) -> None:
    old = cluster.expected[MIDNIGHT] = rows_of(MIDNIGHT)
    cluster.load(MIDNIGHT + HOUR, rows_of(MIDNIGHT + HOUR))
    cluster.load(MIDNIGHT, old)
    mixed = 0
    for number in range(1, 1000):
        version = 1 + number
        before, after = cluster.expected[MIDNIGHT], rows_of(MIDNIGHT, version, 50 + number % 20)
        cluster.publish(MIDNIGHT, after)
        try:
            with stopping_after(7 * number):
                cluster.load_hours(MIDNIGHT)
        except Stopped:
            found = organizations(cluster.rows())
            was, becomes = organizations(before), organizations(after)
            is_new = {name: rows == becomes[name] for name, rows in found.items()}
            assert all(found[name] == was[name] for name, is_ in is_new.items() if not is_)
            mixed += len(set(is_new.values())) > 1
            cluster.reopen()
            cluster.load_hours(MIDNIGHT)
            cluster.check()
        else:
            break
    cluster.check()
    assert number > 3
    assert mixed > 1


def organizations(rows: list[Row]) -> dict[str, list[Row]]:
    """Return the rows of the hour by organization."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["created_at"] < MIDNIGHT + HOUR:
            found.setdefault(row["organization_id"], []).append(row)
    return found


def test_a_ready_table_that_a_replica_kept_is_not_replayed(cluster: ClusterWarehouse) -> None:
    cluster.load(MIDNIGHT, rows_of(MIDNIGHT))
    shard = cluster.shards()[0]
    local, kept, ready = (
        shard.qualified(f"{LOCAL_TABLE}{suffix}") for suffix in ("", "_kept", "__ready")
    )
    shard.execute(f"CREATE TABLE {kept} AS {local}")
    shard.execute(f"ALTER TABLE {kept} ATTACH PARTITION ID '{MIDNIGHT:%Y%m%d}' FROM {local}")
    cluster.load(MIDNIGHT, rows_of(MIDNIGHT, version=2))
    shard.execute(f"RENAME TABLE {kept} TO {ready}")
    loader_of(cluster.database, cluster.store).recover()
    cluster.check()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param("DELETE WHERE organization_id != ''", id="all_rows_are_gone"),
        pytest.param("UPDATE model = 'another' WHERE 1", id="a_text_is_changed"),
        pytest.param("UPDATE total_tokens = 1 WHERE 1", id="tokens_are_changed"),
    ],
)
@pytest.mark.parametrize("number", range(len(HOSTS)), ids=["first", "second", "third"])
def test_a_damaged_shard_is_found_and_mended(
    cluster: ClusterWarehouse, damage: str, number: int
) -> None:
    hours = [MIDNIGHT, MIDNIGHT + HOUR]
    for hour in hours:
        cluster.load(hour, rows_of(hour))
    manifests = [each for hour in hours if (each := cluster.store.manifest(hour))]
    assert compare_table(cluster.database, cluster.store, manifests) == {}
    cluster.change_shard(number, damage)
    found = compare_table(cluster.database, cluster.store, manifests)
    assert list(found) == hours
    cluster.load_hours(*hours)
    cluster.check()


def test_another_hour_that_a_shard_lost_is_loaded_from_its_batch(cluster: ClusterWarehouse) -> None:
    for number in range(2):
        cluster.load(MIDNIGHT + number * HOUR, rows_of(MIDNIGHT + number * HOUR))
    cluster.change_shard(1, f"DELETE WHERE created_at < '{MIDNIGHT + HOUR:%Y-%m-%d %H:%M:%S}'")
    result = cluster.load(MIDNIGHT + HOUR, rows_of(MIDNIGHT + HOUR, version=2))
    assert result.repaired_hours == (MIDNIGHT,)
    cluster.check()


def test_shards_with_narrower_columns_are_loaded_and_compared(cluster: ClusterWarehouse) -> None:
    database = cluster.database
    define_table(database, TABLE)
    for table in (TABLE, LOCAL_TABLE):
        database.execute(f"DROP TABLE {database.qualified(table)}{database.on_cluster} SYNC")
    for statement in definition_of(database, TABLE, exists=False):
        database.execute(statement.replace("DateTime64(6, ", "DateTime64(3, "))
    for version in (1, 2):
        cluster.load(MIDNIGHT, rows_of(MIDNIGHT, version))
    manifest = cluster.store.manifest(MIDNIGHT)
    assert manifest
    assert compare_table(database, cluster.store, [manifest]) == {}
    cluster.expected[MIDNIGHT] = [
        row | {"created_at": MIDNIGHT + (row["created_at"] - MIDNIGHT) // MILLISECOND * MILLISECOND}
        for row in cluster.expected[MIDNIGHT]
    ]
    cluster.check()


def test_a_shard_without_its_table_is_named(cluster: ClusterWarehouse) -> None:
    cluster.load(MIDNIGHT, rows_of(MIDNIGHT))
    shard = cluster.shards()[1]
    shard.execute(f"DROP TABLE {shard.qualified(LOCAL_TABLE)} SYNC")
    for other in cluster.shards():  # what the message says
        other.execute(f"DROP TABLE {other.qualified(TABLE)} SYNC")
    cluster.load_hours(MIDNIGHT, force=True)
    cluster.check()
    shard.execute(f"DROP TABLE {shard.qualified(LOCAL_TABLE)} SYNC")
    with pytest.raises(ClickHouseError, match=r"shard 2 has no .*llm_traces_local.* of schema"):
        define_table(shard, LOCAL_TABLE)


# Replicas


def test_a_shard_of_which_no_replica_answers_is_named(
    cluster: ClusterWarehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    settings = cluster.settings.model_copy(update={"clickhouse_cluster": "dead"})
    with connect(settings) as database:
        with pytest.raises(ClickHouseError, match=r"no replica of shard 2 of dead answers \(") as e:
            loader_of(database, cluster.store)
        assert str(e.value).count(DEAD_HOST) == 2
    [problem] = check_target(settings)
    assert problem.is_fatal
    assert "no replica of shard 2 of dead answers" in problem.message


def test_a_cluster_that_is_not_known_comes_with_those_that_are(cluster: ClusterWarehouse) -> None:
    settings = cluster.settings.model_copy(update={"clickhouse_cluster": "nowhere"})
    [problem] = check_target(settings)
    assert problem.message == "ClickHouse knows no cluster nowhere"
    assert problem.repair.endswith(": dead, three_shards")


def test_the_embedded_engine_is_no_cluster() -> None:
    with pytest.raises(SettingsError, match=r"^CLICKHOUSE_CLUSTER: needs the http"):
        Settings.from_environment({"CLICKHOUSE_CLUSTER": "three_shards"})


def test_what_is_missing_is_named_with_a_statement_for_all_nodes(cluster: ClusterWarehouse) -> None:
    assert check_target(cluster.settings) == []
    cluster.load(MIDNIGHT, rows_of(MIDNIGHT))
    for number in range(len(HOSTS)):
        cluster.change_shard(number, "DROP COLUMN is_byok")
    # The nodes of the test have views and no replicated tables.
    view, engine, missing = check_target(cluster.settings)
    assert "is a View, and CLICKHOUSE_CLUSTER takes it for a Distributed" in view.message
    assert "is a MergeTree, not replicated" in engine.message
    assert missing.repair == (
        f"ALTER TABLE {cluster.database.qualified(LOCAL_TABLE)} ON CLUSTER `three_shards` "
        "ADD COLUMN `is_byok` UInt8 AFTER `model`;"
    )
    cluster.database.execute(missing.repair.rstrip(";"))
    assert check_target(cluster.settings) == [view, engine]


# Erasure and retention


def test_an_erased_organization_is_gone_from_its_shard(cluster: ClusterWarehouse) -> None:
    for number in range(2):
        hour = MIDNIGHT + number * HOUR
        cluster.load(hour, rows_of(hour))
        cluster.load(hour, rows_of(hour, version=2))
    of_shards = [
        min(
            row["organization_id"]
            for row in cluster.expected[MIDNIGHT]
            if row["id"] in cluster.ids_of(shard, cluster.expected[MIDNIGHT])
        )
        for shard in cluster.shards()
    ]
    for organization in of_shards:
        erased = erasure(organization, before=MIDNIGHT + 2 * DAY)
        found = count_traces(cluster.database, cluster.store, erased)
        assert found.clickhouse == found.batches == {MIDNIGHT: 3, MIDNIGHT + HOUR: 3}
        record_erasure(cluster.store.files, erased)
        remove_from_batches(cluster.store, erased)
        compared = erase_from_clickhouse(cluster.database, cluster.store, erased)
        assert compared == [MIDNIGHT, MIDNIGHT + HOUR]
        assert count_traces(cluster.database, cluster.store, erased).is_nothing
        for hour, rows in cluster.expected.items():
            cluster.expected[hour] = [row for row in rows if row["organization_id"] != organization]
        cluster.check()


def test_a_retention_drops_days_on_all_shards(cluster: ClusterWarehouse) -> None:
    for hour in (MIDNIGHT, MIDNIGHT + 24 * HOUR):
        cluster.load(hour, rows_of(hour))
    settings = cluster.settings.model_copy(update={"retention_days": 1})
    dropped = apply_retention(
        cluster.database, cluster.store, settings, MIDNIGHT + 48 * HOUR + HOUR
    )
    assert dropped.partitions == (f"{MIDNIGHT:%Y%m%d}",)
    del cluster.expected[MIDNIGHT]
    cluster.check()
