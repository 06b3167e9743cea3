"""Kinds of targets: a service of shared storage, imitated, and replicas with storage of their own.

What loads on any server is run against the service by ``make test-http`` too.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import gethostname
from threading import Thread
from types import MappingProxyType
from typing import Any

import pytest

from llm_trace_pipeline.clickhouse import client, kinds, upsert
from llm_trace_pipeline.clickhouse.client import Cluster, Database, connect
from llm_trace_pipeline.clickhouse.cluster import loader_of
from llm_trace_pipeline.clickhouse.kinds import described
from llm_trace_pipeline.clickhouse.pins import SHARED_PINS, Pins
from llm_trace_pipeline.clickhouse.tables import layout_of
from llm_trace_pipeline.errors import ClickHouseError
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.sql import render
from llm_trace_pipeline.upkeep.preflight_target import (
    check_target,
    kind_of_target,
    needed_grants_of_kind,
)
from tests.harness.bucket import Bucket
from tests.harness.http_server import USERS, Fault, Running, running, settings_of_server
from tests.harness.rows import MIDNIGHT, TABLE
from tests.harness.service import REFUSED_ROLE, STORAGE_POLICY
from tests.harness.warehouse import Warehouse, make_database

ROLE = "arn:aws:iam::123456789012:role/llm-traces"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("service"), *USERS, kind="service") as service:
        yield service


@pytest.fixture
def shared(tmp_path: Path, service: Running) -> Iterator[Warehouse]:
    """A database of the service."""
    settings = settings_of_server(tmp_path, service.port)
    make_database(settings)
    warehouse = Warehouse(settings)
    yield warehouse
    service.put()
    warehouse.close()


def test_the_kind_is_told_from_the_server(shared: Warehouse) -> None:
    assert check_target(shared.settings) == []
    assert kind_of_target(shared.settings) == "shared storage, whichever replica answers"
    assert needed_grants_of_kind(shared.database) == ["REMOTE ON *.*"]
    shared.load(MIDNIGHT, 10)
    assert layout_of(shared.database, TABLE)["engine"] == "SharedMergeTree"
    assert check_target(shared.settings) == []


def test_a_table_that_is_there_already_is_loaded(shared: Warehouse) -> None:
    """In the words of the agent server's own scripts."""
    engine = "SharedMergeTree('/clickhouse/tables/{uuid}/{shard}', '{replica}')"
    table = shared.database.qualified(TABLE)
    shared.database.execute(render("clickhouse/llm_traces.sql", table=table, engine=engine))
    shared.load(MIDNIGHT, 10)
    shared.load(MIDNIGHT + HOUR, 10)
    shared.load(MIDNIGHT, 0, 2)
    shared.check()
    assert check_target(shared.settings) == []


@pytest.mark.parametrize(
    "setting",
    ["select_sequential_consistency", "database_replicated_enforce_synchronous_settings"],
)
def test_without_its_settings_a_load_would_go_wrong(
    shared: Warehouse, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    """That the service is one in which they matter."""
    fewer = tuple(
        Pins(
            each.reason,
            MappingProxyType({k: value for k, value in each.values.items() if k != setting}),
        )
        for each in SHARED_PINS
    )
    monkeypatch.setattr(client, "SHARED_PINS", fewer)
    shared.reopen()

    def load() -> None:
        for version in range(5):
            shared.load(MIDNIGHT, 10 + version, version)
            shared.load(MIDNIGHT + HOUR, 10 + version, version)

    with pytest.raises((AssertionError, ClickHouseError)):
        load()


def test_an_answer_that_was_cut_off_is_made_good(
    shared: Warehouse, service: Running, waits: list[float]
) -> None:
    """As a load balancer does to a connection on which nothing was said for a while."""
    shared.load(MIDNIGHT, 10)
    shared.load(MIDNIGHT + HOUR, 10)
    for version, statement in enumerate(("INSERT INTO", "REPLACE PARTITION"), start=2):
        manifest = shared.publish(MIDNIGHT, 10 + version, version)
        service.put(Fault("reset", statement, is_executed=True))
        shared.load_batch(manifest)
        assert not service.faults_left()
    shared.check()
    assert len(waits) == 2


def test_a_statement_that_runs_on_another_replica_is_waited_for(
    shared: Warehouse, service: Running
) -> None:
    staging = shared.database.qualified(f"{TABLE}__staging")

    def run() -> None:
        with connect(shared.settings) as database:
            database.rows(f"SELECT sleepEachRow(1) FROM numbers(3) -- {staging}")

    running_on = Thread(target=run)
    running_on.start()
    statement = render(
        "clickhouse/running.sql", processes="clusterAllReplicas('default', system.processes)"
    )
    while not shared.database.rows(statement, {"tables": [staging]}):
        assert running_on.is_alive()
    service.put()
    loader_of(shared.database, shared.store).recover()
    asked = [sql for sql in service.put() if "SELECT query_id" in sql]
    running_on.join()
    assert len(asked) > 1


def test_a_service_that_sleeps_is_waited_for_and_the_log_says_so(
    shared: Warehouse,
    service: Running,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "_SLOW_SECONDS", 0.01)
    service.put(Fault("wake", seconds=0.5))
    with connect(shared.settings) as database:
        assert database.rows("SELECT 1 AS one") == [{"one": 1}]
    assert [record.getMessage() for record in caplog.records] == [
        "ClickHouse does not answer yet: an idle service takes up to 120 s to wake up"
    ]


@pytest.mark.parametrize("role", [ROLE, REFUSED_ROLE], ids=["taken", "refused"])
def test_a_bucket_is_read_by_role_or_its_rows_are_sent(
    tmp_path: Path,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    role: str,
) -> None:
    environment = {
        "TRACE_BATCH_URI": bucket.uri,
        "AWS_ENDPOINT_URL": bucket.server.endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": bucket.server.key_id,
        "AWS_SECRET_ACCESS_KEY": bucket.server.secret,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with running(tmp_path / "service", *USERS, kind="service") as service:
        settings = settings_of_server(
            tmp_path, service.port, CLICKHOUSE_S3_ROLE_ARN=role, **environment
        )
        make_database(settings)
        warehouse = Warehouse(settings)
        sent: list[Any] = []
        execute = Database.execute

        def listen(self: Database, sql: str, *arguments: Any) -> None:
            sent.append(sql)
            execute(self, sql, *arguments)

        monkeypatch.setattr(Database, "execute", listen)
        warehouse.load(MIDNIGHT, 10)
        warehouse.load(MIDNIGHT + HOUR, 10)
        warehouse.check()
        warehouse.close()
        problems = check_target(settings)
    assert ["cannot read s3://" in problem.message for problem in problems] == [True] * (
        role == REFUSED_ROLE
    )
    assert not any(problem.is_fatal for problem in problems)
    reads = [sql for sql in sent if "INSERT INTO" in sql]
    assert bool(reads) == (role == ROLE)
    assert all(f"extra_credentials(role_arn = '{role}')" in sql for sql in reads)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert ["ClickHouse cannot read s3://" in line for line in said] == [True] * (
        role == REFUSED_ROLE
    )


def layouts(change: Callable[[str, dict[str, Any]], dict[str, Any]]) -> Callable[..., Any]:
    """Return what tells how a table is made, with changes."""
    return lambda database, table: change(table, layout_of(database, table))


def test_staging_tables_of_another_family_are_refused(
    shared: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.load(MIDNIGHT, 10)
    manifest = shared.publish(MIDNIGHT, 12, 2)
    with monkeypatch.context() as patched:
        patched.setattr(
            upsert,
            "layout_of",
            layouts(lambda name, found: found | {"engine": "MergeTree"} if "__" in name else found),
        )
        with pytest.raises(ClickHouseError, match="becomes MergeTree, and llm_traces is Shared"):
            shared.load_batch(manifest)
    shared.load_batch(manifest)
    shared.check()


def test_staging_tables_lie_where_the_table_lies(
    shared: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.load(MIDNIGHT, 10)
    manifest = shared.publish(MIDNIGHT, 12, 2)
    monkeypatch.setattr(
        upsert,
        "layout_of",
        layouts(lambda name, found: found | {"storage_policy": "s3"} if "__" in name else found),
    )
    # The policy of the table is asked for, which the engine behind the service does not have.
    with pytest.raises(ClickHouseError, match=f"storage policy `?{STORAGE_POLICY}"):
        shared.load_batch(manifest)


def test_a_cluster_on_shared_storage_is_refused(shared: Warehouse) -> None:
    settings = shared.settings.model_copy(update={"clickhouse_cluster": "default"})
    [problem] = check_target(settings)
    assert problem.message.startswith("CLICKHOUSE_CLUSTER is set")


# Replicas with storage of their own


def test_several_servers_behind_one_address_are_refused(
    shared: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Database, "is_shared", False)
    manifest = shared.publish(MIDNIGHT, 10)
    said = r"leads to several servers \(replica-0, replica-1, replica-2\)"
    with pytest.raises(ClickHouseError, match=said):
        shared.load_batch(manifest)
    [problem] = check_target(shared.settings)
    assert problem.is_fatal
    assert "CLICKHOUSE_CLUSTER" in problem.repair


def test_kinds_have_names(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(warehouse.database._client, "default", is_embedded=False)  # noqa: SLF001 -- to stand for a server
    assert described(database, {}) == f"one server, {gethostname()}"
    replicated = {"engine": "ReplicatedMergeTree"}
    assert described(database, replicated) == f"a replicated table, on the node {gethostname()}"
    monkeypatch.setattr(database, "cluster", Cluster("analytics", lambda _: database._client))  # noqa: SLF001 -- as above
    assert described(database, replicated) == "the cluster analytics"


def test_a_replicated_database_is_refused(
    shared: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Database, "is_shared", False)
    monkeypatch.setattr(kinds, "read_sql", lambda _: "SELECT 'Replicated' AS engine")
    manifest = shared.publish(MIDNIGHT, 10)
    with pytest.raises(ClickHouseError, match="is a Replicated database"):
        shared.load_batch(manifest)


def test_a_replicated_table_is_caught_up_and_no_journal_of_it_is_replayed(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine has no Keeper: that a replica catches up is seen, and not done."""
    warehouse.load(MIDNIGHT, 10)
    for action in (
        f"CREATE TABLE {TABLE}__ready AS {TABLE}",
        f"ALTER TABLE {TABLE}__ready ATTACH PARTITION ID '{MIDNIGHT:%Y%m%d}' FROM {TABLE}",
    ):
        warehouse.database.execute(action)
    caught_up: list[str] = []
    monkeypatch.setattr(
        upsert,
        "layout_of",
        layouts(lambda _, found: found and found | {"engine": "ReplicatedMergeTree"}),
    )
    monkeypatch.setattr(upsert, "catch_up", lambda _, table: caught_up.append(table))
    warehouse.publish(MIDNIGHT, 12, 2)
    warehouse.database.execute(f"TRUNCATE TABLE {TABLE}")
    warehouse.load_hours(MIDNIGHT)
    assert caught_up[0] == TABLE
    warehouse.check()
