"""A cluster of three shards: the upsert is run on nodes that are an engine each, over HTTP.

The engine has no Keeper and no native protocol here: see ``tests/clickhouse/clickhouse_http.py``
for the few clauses that a node puts differently. The rest of them is parsed by the engine, as it
was sent.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch
from uuid import uuid4

import clickhouse_connect
import pyarrow as pa
import pytest

from llm_trace_pipeline.batches.erasures import Erasure
from llm_trace_pipeline.batches.store import BatchStore, Manifest
from llm_trace_pipeline.clickhouse.client import ROLLUP, SHARDING_KEY, Cluster, Database, connect
from llm_trace_pipeline.clickhouse.cluster import LOCAL_TABLE, Shard, loader_of, shards_of
from llm_trace_pipeline.clickhouse.rollup import compare_rollup, roll_up
from llm_trace_pipeline.clickhouse.upsert import LoadResult
from llm_trace_pipeline.errors import ClickHouseError, SettingsError
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.sql import read_sql
from llm_trace_pipeline.trace.columns import COLUMNS, SCHEMA_VERSION
from llm_trace_pipeline.upkeep.erase import count_traces, record, remove_from_batches
from llm_trace_pipeline.upkeep.erase import remove_from_clickhouse as erase_from_clickhouse
from llm_trace_pipeline.upkeep.preflight import _needed_grants_of_cluster, check_target
from llm_trace_pipeline.upkeep.reconcile import compare_table
from llm_trace_pipeline.upkeep.retention import apply_retention
from tests.clickhouse.clickhouse_http import Running, running
from tests.clickhouse.upsert_process import T0, TABLE, Row, make_rows, publish

HOSTS = ["127.0.1.1", "127.0.1.2", "127.0.1.3"]
DEAD_HOST = "127.0.1.9"
WEIGHTS = [2, 1, 3]
ORGANIZATIONS = 20

_REPLICA = "<replica><host>{}</host><port>9000</port></replica>"
_CONFIG = f"""
<clickhouse>
  <remote_servers>
    <three_shards>{{shards}}</three_shards>
    <dead>
      <shard>{_REPLICA.format(HOSTS[0])}</shard>
      <shard>{_REPLICA.format(DEAD_HOST)}{_REPLICA.format(DEAD_HOST)}</shard>
    </dead>
  </remote_servers>
  <macros><shard>01</shard><replica>one</replica></macros>
</clickhouse>
"""


def make_config(folder: Path) -> Path:
    """Write a configuration whose first shard has a dead replica before the one that answers."""
    hosts = [[DEAD_HOST, HOSTS[0]], [HOSTS[1]], [HOSTS[2]]]
    shards = "".join(
        f"<shard><weight>{weight}</weight>{''.join(map(_REPLICA.format, replicas))}</shard>"
        for weight, replicas in zip(WEIGHTS, hosts, strict=True)
    )
    path = folder / "cluster.xml"
    path.write_text(_CONFIG.format(shards=shards), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Running]]:
    """One node per shard, on the same port of different addresses."""
    folder = tmp_path_factory.mktemp("cluster")
    config = str(make_config(folder))
    nodes: list[Running] = []
    with ExitStack() as stack:
        for host in HOSTS:
            port = str(nodes[0].port if nodes else 0)
            arguments = ("--config", config, "--port", port)
            nodes.append(stack.enter_context(running(folder / host, *arguments, host=host)))
        yield nodes


class Deployment:
    """A cluster and a batch store of their own, and the rows that they have to hold."""

    def __init__(self, folder: Path, nodes: list[Running]) -> None:
        self.nodes = nodes
        self.settings = Settings.from_environment(
            {
                "LLM_TRACES_STATE": str(folder),
                "CLICKHOUSE_ENDPOINT": f"http://{HOSTS[1]}:{nodes[0].port}",
                "CLICKHOUSE_CLUSTER": "three_shards",
                "CLICKHOUSE_DATABASE": f"cluster_{uuid4().hex}",
            }
        )
        self.store = BatchStore.of(self.settings)
        self.expected: dict[datetime, list[Row]] = {}
        self._opened = ExitStack()
        self.database = self._opened.enter_context(connect(self.settings))
        self.statements()

    def close(self) -> None:
        self._opened.close()

    def reopen(self) -> None:
        """Connect again, as the next process would."""
        self.close()
        self.database = self._opened.enter_context(connect(self.settings))

    def publish(self, hour: datetime, rows: list[Row]) -> Manifest:
        """Make a batch of the hour, and expect its rows."""
        self.expected[hour] = rows
        return publish(self.store, hour, rows)

    def load(self, *hours: datetime, force: bool = False) -> list[LoadResult]:
        results = loader_of(self.database, self.store).load(hours, force=force)
        assert [result.differences for result in results] == [()] * len(hours)
        return results

    def load_rows(self, hour: datetime, rows: list[Row]) -> LoadResult:
        self.publish(hour, rows)
        [result] = self.load(hour)
        return result

    def rows(self) -> list[Row]:
        """Return what the Distributed table shows."""
        columns = ", ".join(column.name for column in COLUMNS)
        return self.database.rows(
            f"SELECT {columns} FROM {self.database.qualified(TABLE)} ORDER BY created_at, id"
        )

    def shards(self) -> list[Shard]:
        assert self.database.cluster
        return shards_of(self.database, self.database.cluster)

    def ids_by_shard(self) -> list[set[str]]:
        return [
            {row["id"] for row in shard.rows(f"SELECT id FROM {shard.qualified(LOCAL_TABLE)}")}
            for shard in self.shards()
        ]

    def change_shard(self, number: int, action: str) -> None:
        """Do something to the table of a shard, past the loads."""
        shard = self.shards()[number]
        shard.execute(
            f"ALTER TABLE {shard.qualified(LOCAL_TABLE)} {action}", None, {"mutations_sync": 2}
        )

    def check(self) -> None:
        """Compare all rows; each is on its shard, and nothing is left over on any."""
        expected = [row for hour in sorted(self.expected) for row in self.expected[hour]]
        assert sorted(row["id"] for row in self.rows()) == sorted(row["id"] for row in expected)
        assert self.rows() == expected
        by_shard = self.ids_by_shard()
        assert by_shard == [self.ids_of(shard, expected) for shard in self.shards()]
        for shard in self.shards():
            tables = shard.rows(
                "SELECT name FROM system.tables WHERE database = {database:String} ORDER BY name",
                {"database": shard.name},
            )
            assert [row["name"] for row in tables] == [TABLE, LOCAL_TABLE]

    def ids_of(self, shard: Shard, rows: list[Row]) -> set[str]:
        table = pa.table(
            {name: [row[name] for row in rows] for name in ("id", "organization_id")},
            pa.schema([("id", pa.string()), ("organization_id", pa.string())]),
        )
        return set(shard.rows_of(table).column("id").to_pylist())

    def statements(self) -> list[str]:
        """Return what the nodes have executed since the last time."""
        return [sql for node in self.nodes for sql in node.put()]


def rows_of(hour: datetime, version: int = 1, count: int = 60) -> list[Row]:
    """Return rows of many organizations."""
    return [
        {**row, "organization_id": f"org-{number % ORGANIZATIONS}"}
        for number, row in enumerate(make_rows(hour, count, version))
    ]


@pytest.fixture
def deployment(tmp_path: Path, nodes: list[Running]) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path, nodes)
    yield deployment
    deployment.close()


# Where rows belong


def test_shards_are_those_of_the_distributed_table(deployment: Deployment, tmp_path: Path) -> None:
    """Each organization is sent to a shard by the engine, which keeps what it cannot deliver."""
    config = make_config(tmp_path)
    folder = tmp_path / "engine"
    organizations = ["", "ünïcode 🦉", "it's", *(f"org-{uuid4()}" for _ in range(120))]
    table = pa.table({"organization_id": organizations})
    held = [set(shard.rows_of(table).column(0).to_pylist()) for shard in deployment.shards()]

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


@contextmanager
def alone(folder: Path, config: Path) -> Iterator[Database]:
    """A node that does not put anything differently: the embedded engine with the clusters."""
    client = clickhouse_connect.get_client(
        interface="chdb", path=f"{folder}?config-file={config}", tz_mode="aware"
    )
    try:
        yield Database(
            client, "default", is_embedded=True, cluster=Cluster("three_shards", lambda _: client)
        )
    finally:
        client.close()


# Loads


def test_an_hour_is_spread_over_the_shards_and_read_as_one(deployment: Deployment) -> None:
    result = deployment.load_rows(T0, rows_of(T0))
    assert result.was_written
    deployment.check()
    assert all(deployment.ids_by_shard())


def test_loading_again_writes_nothing(deployment: Deployment) -> None:
    deployment.load_rows(T0, rows_of(T0))
    deployment.statements()
    [result] = deployment.load(T0)
    assert not result.was_written
    changes = re.compile(r"^(?:INSERT|ALTER|CREATE|RENAME)\b")
    assert [sql for sql in deployment.statements() if changes.match(sql)] == []
    deployment.check()


def test_changed_rows_are_replaced_beside_other_hours(deployment: Deployment) -> None:
    for number in range(3):
        deployment.load_rows(T0 + number * HOUR, rows_of(T0 + number * HOUR))
    deployment.load_rows(T0 + HOUR, rows_of(T0 + HOUR, version=2, count=40))
    deployment.check()
    deployment.load(T0 + HOUR, force=True)
    deployment.check()


def test_hours_are_loaded_together(deployment: Deployment) -> None:
    hours = [T0 + number * HOUR for number in range(22, 27)]
    for hour in hours:
        deployment.publish(hour, rows_of(hour))
    assert loader_of(deployment.database, deployment.store).in_groups(hours) == [hours]
    deployment.load(*hours)
    deployment.check()


def test_an_hour_becomes_empty_on_a_shard_and_then_on_all(deployment: Deployment) -> None:
    rows = rows_of(T0)
    deployment.load_rows(T0, rows)
    gone = deployment.ids_by_shard()[2]
    deployment.load_rows(T0, [row for row in rows if row["id"] not in gone])
    deployment.check()
    assert [bool(ids) for ids in deployment.ids_by_shard()] == [True, True, False]
    deployment.load_rows(T0, [])
    deployment.check()


def test_a_node_that_reads_the_batch_by_itself_takes_its_own_rows(deployment: Deployment) -> None:
    """As from a bucket; here from a folder of this machine, which the tests' nodes are on too."""
    deployment.publish(T0, rows_of(T0))
    loader = loader_of(deployment.database, deployment.store)
    for shard, _ in loader.targets:
        shard._is_embedded = True  # noqa: SLF001 -- what is read by file(), not sent
    deployment.statements()
    loader.load([T0])
    inserts = [sql for sql in deployment.statements() if sql.startswith("INSERT")]
    assert all("FROM file(" in sql for sql in inserts)
    deployment.check()


def test_payloads_are_left_out_on_every_shard(deployment: Deployment) -> None:
    deployment.settings = deployment.settings.model_copy(update={"payloads": "batches"})
    deployment.reopen()
    deployment.load_rows(T0, rows_of(T0))
    without = {"request_json": "", "response_json": ""}
    assert deployment.rows() == [{**row, **without} for row in deployment.expected[T0]]


# Stops and damage


class Stopped(BaseException):
    """What a killed process looks like from inside."""


@contextmanager
def stopped_at(number: int) -> Iterator[None]:
    """Stop before a statement that changes something."""
    execute = Database.execute
    left = number

    def execute_or_stop(self: Database, *arguments: object) -> None:
        nonlocal left
        if left == 0:
            raise Stopped
        left -= 1
        execute(self, *arguments)  # type: ignore[arg-type]  # whatever they are

    with patch.object(Database, "execute", execute_or_stop):
        yield


def test_a_stop_anywhere_shows_each_organization_whole_and_is_made_good(
    deployment: Deployment,
) -> None:
    old = deployment.expected[T0] = rows_of(T0)
    deployment.load_rows(T0 + HOUR, rows_of(T0 + HOUR))
    deployment.load_rows(T0, old)
    mixed = 0
    for number in range(1000):
        version = 2 + number
        before, after = deployment.expected[T0], rows_of(T0, version, 50 + number % 20)
        deployment.publish(T0, after)
        try:
            with stopped_at(7 * number):
                deployment.load(T0)
        except Stopped:
            found = organizations(deployment.rows())
            was, becomes = organizations(before), organizations(after)
            is_new = {name: rows == becomes[name] for name, rows in found.items()}
            assert all(found[name] == was[name] for name, is_ in is_new.items() if not is_)
            mixed += len(set(is_new.values())) > 1
            deployment.reopen()
            deployment.load(T0)
            deployment.check()
        else:
            break
    deployment.check()
    assert number > 3
    assert mixed > 1


def organizations(rows: list[Row]) -> dict[str, list[Row]]:
    """Return the rows of the hour by organization."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["created_at"] < T0 + HOUR:
            found.setdefault(row["organization_id"], []).append(row)
    return found


def test_a_ready_table_that_a_replica_kept_is_not_replayed(deployment: Deployment) -> None:
    deployment.load_rows(T0, rows_of(T0))
    shard = deployment.shards()[0]
    local, kept, ready = (
        shard.qualified(f"{LOCAL_TABLE}{suffix}") for suffix in ("", "_kept", "__ready")
    )
    shard.execute(f"CREATE TABLE {kept} AS {local}")
    shard.execute(f"ALTER TABLE {kept} ATTACH PARTITION ID '{T0:%Y%m%d}' FROM {local}")
    deployment.load_rows(T0, rows_of(T0, version=2))
    shard.execute(f"RENAME TABLE {kept} TO {ready}")
    loader_of(deployment.database, deployment.store).recover()
    deployment.check()


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
    deployment: Deployment, damage: str, number: int
) -> None:
    hours = [T0, T0 + HOUR]
    for hour in hours:
        deployment.load_rows(hour, rows_of(hour))
    manifests = [each for hour in hours if (each := deployment.store.manifest(hour))]
    assert compare_table(deployment.database, deployment.store, manifests) == {}
    deployment.change_shard(number, damage)
    found = compare_table(deployment.database, deployment.store, manifests)
    assert list(found) == hours
    deployment.load(*hours)
    deployment.check()


def test_another_hour_that_a_shard_lost_is_loaded_from_its_batch(deployment: Deployment) -> None:
    for number in range(2):
        deployment.load_rows(T0 + number * HOUR, rows_of(T0 + number * HOUR))
    deployment.change_shard(1, f"DELETE WHERE created_at < '{T0 + HOUR:%Y-%m-%d %H:%M:%S}'")
    result = deployment.load_rows(T0 + HOUR, rows_of(T0 + HOUR, version=2))
    assert result.repaired_hours == (T0,)
    deployment.check()


def test_a_shard_without_its_table_is_named(deployment: Deployment) -> None:
    deployment.load_rows(T0, rows_of(T0))
    shard = deployment.shards()[1]
    shard.execute(f"DROP TABLE {shard.qualified(LOCAL_TABLE)} SYNC")
    for other in deployment.shards():  # what the message says
        other.execute(f"DROP TABLE {other.qualified(TABLE)} SYNC")
    deployment.load(T0, force=True)
    deployment.check()
    shard.execute(f"DROP TABLE {shard.qualified(LOCAL_TABLE)} SYNC")
    with pytest.raises(ClickHouseError, match=r"shard 2 has no .*llm_traces_local.* of schema"):
        shard.define_table(LOCAL_TABLE)


# Replicas


def test_a_shard_of_which_no_replica_answers_is_named(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    settings = deployment.settings.model_copy(update={"clickhouse_cluster": "dead"})
    with connect(settings) as database:
        with pytest.raises(ClickHouseError, match=r"no replica of shard 2 of dead answers \(") as e:
            loader_of(database, deployment.store)
        assert str(e.value).count(DEAD_HOST) == 2
    [problem] = check_target(settings)
    assert problem.is_fatal
    assert "no replica of shard 2 of dead answers" in problem.message


def test_a_cluster_that_is_not_known_comes_with_those_that_are(deployment: Deployment) -> None:
    settings = deployment.settings.model_copy(update={"clickhouse_cluster": "nowhere"})
    [problem] = check_target(settings)
    assert problem.message == "ClickHouse knows no cluster nowhere"
    assert problem.repair.endswith(": dead, three_shards")


def test_the_embedded_engine_is_no_cluster() -> None:
    with pytest.raises(SettingsError, match=r"^CLICKHOUSE_CLUSTER: needs the http"):
        Settings.from_environment({"CLICKHOUSE_CLUSTER": "three_shards"})


def test_what_is_missing_is_named_with_a_statement_for_all_nodes(deployment: Deployment) -> None:
    assert check_target(deployment.settings) == []
    deployment.load_rows(T0, rows_of(T0))
    for number in range(len(HOSTS)):
        deployment.change_shard(number, "DROP COLUMN is_byok")
    # The nodes of the test have views and no replicated tables.
    view, engine, missing = check_target(deployment.settings)
    assert "is a View, and CLICKHOUSE_CLUSTER takes it for a Distributed" in view.message
    assert "is a MergeTree, not replicated" in engine.message
    assert missing.repair == (
        f"ALTER TABLE {deployment.database.qualified(LOCAL_TABLE)} ON CLUSTER `three_shards` "
        "ADD COLUMN `is_byok` UInt8 AFTER `model`;"
    )
    deployment.database.execute(missing.repair.rstrip(";"))
    assert check_target(deployment.settings) == [view, engine]


# Erasure and retention


def erasure_of(organization: str) -> Erasure:
    return Erasure(
        organization_id=organization,
        agent_id=None,
        before=T0 + 40 * HOUR,
        recorded_at=datetime.now(UTC),
    )


def test_an_erased_organization_is_gone_from_its_shard(deployment: Deployment) -> None:
    for number in range(2):
        hour = T0 + number * HOUR
        deployment.load_rows(hour, rows_of(hour))
        deployment.load_rows(hour, rows_of(hour, version=2))
    of_shards = [
        min(
            row["organization_id"]
            for row in deployment.expected[T0]
            if row["id"] in deployment.ids_of(shard, deployment.expected[T0])
        )
        for shard in deployment.shards()
    ]
    for organization in of_shards:
        erasure = erasure_of(organization)
        found = count_traces(deployment.database, deployment.store, erasure)
        assert found.clickhouse == found.batches == {T0: 3, T0 + HOUR: 3}
        record(deployment.store, erasure)
        remove_from_batches(deployment.store, erasure)
        compared = erase_from_clickhouse(deployment.database, deployment.store, erasure, None)
        assert compared == [T0, T0 + HOUR]
        assert count_traces(deployment.database, deployment.store, erasure).is_nothing
        for hour, rows in deployment.expected.items():
            deployment.expected[hour] = [
                row for row in rows if row["organization_id"] != erasure.organization_id
            ]
        deployment.check()


def test_a_retention_drops_days_on_all_shards(deployment: Deployment) -> None:
    for hour in (T0, T0 + 24 * HOUR):
        deployment.load_rows(hour, rows_of(hour))
    settings = deployment.settings.model_copy(update={"retention_days": 1})
    dropped = apply_retention(
        deployment.database, deployment.store, settings, T0 + 48 * HOUR + HOUR
    )
    assert dropped.partitions == (f"{T0:%Y%m%d}",)
    del deployment.expected[T0]
    deployment.check()


# Statements


def test_each_shard_rolls_up_its_own_organizations(deployment: Deployment) -> None:
    hours = [T0, T0 + HOUR]
    for hour in hours:
        deployment.load_rows(hour, rows_of(hour))
    roll_up(deployment.database, deployment.store, hours)

    def check() -> None:
        sums = "organization_id, sum(total_tokens) AS tokens, sum(cost_usd) AS cost"
        expected, found = (
            deployment.database.rows(
                f"SELECT {hour} AS hour, {calls} AS calls, {sums} "
                f"FROM {deployment.database.qualified(table)} "
                "GROUP BY 1, organization_id ORDER BY 1, organization_id"
            )
            for hour, calls, table in (
                ("toStartOfHour(created_at, 'UTC')", "count()", TABLE),
                ("hour", "sum(calls)", ROLLUP),
            )
        )
        assert len(found) == 2 * ORGANIZATIONS
        assert found == [{**row, "cost": row["cost"] or 0} for row in expected]
        for shard in deployment.shards():
            organizations = shard.rows(
                f"SELECT DISTINCT organization_id FROM {shard.qualified(f'{ROLLUP}_local')} "
                f"EXCEPT SELECT organization_id FROM {shard.qualified(LOCAL_TABLE)}"
            )
            assert organizations == []

    check()
    shard = deployment.shards()[2]
    shard.execute(
        f"ALTER TABLE {shard.qualified(f'{ROLLUP}_local')} DELETE WHERE hour = {{hour:DateTime}}",
        {"hour": T0},
        {"mutations_sync": 2},
    )
    compared = compare_rollup(deployment.database, deployment.store, hours)
    assert list(compared) == [T0]
    results = roll_up(deployment.database, deployment.store, hours)
    assert [result.was_written for result in results] == [
        *(False, False, False, False, True, False),
    ]
    check()


def use_everything(deployment: Deployment) -> None:
    """Have every kind of statement sent."""
    deployment.load_rows(T0, rows_of(T0))
    deployment.load_rows(T0, rows_of(T0, version=2))
    roll_up(deployment.database, deployment.store, [T0])
    erase_from_clickhouse(deployment.database, deployment.store, erasure_of("org-1"), None)
    settings = deployment.settings.model_copy(update={"retention_days": 1})
    apply_retention(deployment.database, deployment.store, settings, T0 + 48 * HOUR)


def test_every_statement_is_one_of_the_engine(deployment: Deployment, tmp_path: Path) -> None:
    """As they were sent: those that the nodes of the test put differently are only parsed."""
    use_everything(deployment)
    # An upgrade is made of the same files.
    upgrades = deployment.database._definition(TABLE, exists=True)  # noqa: SLF001 -- no older table
    sent = {*deployment.statements(), *upgrades}
    with alone(tmp_path / "engine", make_config(tmp_path)) as engine:
        for sql in sent:
            parsed = engine.rows("SELECT formatQuery({sql:String}) AS sql", {"sql": sql})
            assert parsed[0]["sql"]
    name = re.escape(deployment.settings.clickhouse_database)
    on_cluster = sorted(
        re.sub(rf"`{name}`|'{name}'", "db", re.sub(r"(?m)^--.*\n", "", sql)).split("\n")[0]
        for sql in sent
        if "ON CLUSTER" in sql
    )
    local, rollup = "db.`llm_traces_local`", f"db.`{ROLLUP}`"
    assert on_cluster == [
        "ALTER TABLE db.`llm_traces_local` ON CLUSTER `three_shards`",
        "ALTER TABLE db.`llm_traces` ON CLUSTER `three_shards`",
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


def test_the_distributed_table_is_one_that_the_engine_makes_and_upgrades(tmp_path: Path) -> None:
    """On the engine itself, but for ON CLUSTER and replicas."""
    with alone(tmp_path / "engine", make_config(tmp_path)) as engine:
        for exists in (False, True):
            for sql in engine._definition(TABLE, exists=exists):  # noqa: SLF001 -- to be put differently
                alone_sql = re.sub(r" ON CLUSTER `\w+`|Replicated(?=MergeTree)", "", sql)
                engine.execute(re.sub(r"(?<=MergeTree)\(.*\)", "", alone_sql))
        layout = engine.layout(TABLE)
        assert layout["engine_full"] == (
            "Distributed('three_shards', 'default', 'llm_traces_local', "
            "cityHash64(organization_id))"
        )
        assert f"llm_trace_pipeline schema {SCHEMA_VERSION}" in layout["comment"]
        # What a load asks of it besides its columns is resolved, and not asked for.
        assert engine.rows(f"EXPLAIN QUERY TREE SELECT DISTINCT _partition_id FROM {TABLE}")
        columns = "SELECT name, type FROM system.columns WHERE table = {table:String}"
        assert engine.rows(columns, {"table": TABLE}) == engine.rows(
            columns, {"table": LOCAL_TABLE}
        )


def test_a_single_server_is_sent_nothing_of_a_cluster(tmp_path: Path, nodes: list[Running]) -> None:
    deployment = Deployment(tmp_path, nodes)
    deployment.settings = deployment.settings.model_copy(update={"clickhouse_cluster": None})
    deployment.reopen()
    use_everything(deployment)
    assert check_target(deployment.settings) == []
    first, second, third = (node.put() for node in nodes)
    deployment.close()
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
    assert granted == _needed_grants_of_cluster("default")
