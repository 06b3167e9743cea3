"""A cluster of three shards: nodes that are an engine each, over HTTP.

The engine has no Keeper and no native protocol here: see ``tests/harness/http_engine.py`` for the
few clauses that a node puts differently. The rest of them is parsed by the engine, as it was sent.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from uuid import uuid4

import clickhouse_connect
import pyarrow as pa

from llm_trace_pipeline.clickhouse.client import Cluster, Database
from llm_trace_pipeline.clickhouse.cluster import LOCAL_TABLE, shards_of
from llm_trace_pipeline.clickhouse.traces import own_rows
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.trace.columns import COLUMNS
from tests.harness.http_server import Running, running
from tests.harness.rows import TABLE, Row, make_rows
from tests.harness.warehouse import Warehouse

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


@contextmanager
def running_nodes(folder: Path) -> Iterator[list[Running]]:
    """Run one node per shard, on the same port of different addresses."""
    config = str(make_config(folder))
    nodes: list[Running] = []
    with ExitStack() as stack:
        for host in HOSTS:
            port = str(nodes[0].port if nodes else 0)
            arguments = ("--config", config, "--port", port)
            nodes.append(stack.enter_context(running(folder / host, *arguments, host=host)))
        yield nodes


class ClusterWarehouse(Warehouse):
    """A database of a cluster and a batch store, and the rows that all shards have to hold."""

    def __init__(self, folder: Path, nodes: list[Running]) -> None:
        super().__init__(
            Settings.from_environment(
                {
                    "LLM_TRACES_STATE": str(folder),
                    "CLICKHOUSE_ENDPOINT": f"http://{HOSTS[1]}:{nodes[0].port}",
                    "CLICKHOUSE_CLUSTER": "three_shards",
                    "CLICKHOUSE_DATABASE": f"cluster_{uuid4().hex}",
                }
            )
        )
        self.nodes = nodes
        self.statements()

    def rows(self) -> list[Row]:
        """Return what the Distributed table shows."""
        columns = ", ".join(column.name for column in COLUMNS)
        return self.database.rows(
            f"SELECT {columns} FROM {self.database.qualified(TABLE)} ORDER BY created_at, id"
        )

    def shards(self) -> list[Database]:
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

    def ids_of(self, shard: Database, rows: list[Row]) -> set[str]:
        table = pa.table(
            {name: [row[name] for row in rows] for name in ("id", "organization_id")},
            pa.schema([("id", pa.string()), ("organization_id", pa.string())]),
        )
        return set(own_rows(shard, table).column("id").to_pylist())

    def statements(self) -> list[str]:
        """Return what the nodes have executed since the last time."""
        return [sql for node in self.nodes for sql in node.put()]


def rows_of(hour: datetime, version: int = 1, count: int = 60) -> list[Row]:
    """Return rows of many organizations."""
    return [
        {**row, "organization_id": f"org-{number % ORGANIZATIONS}"}
        for number, row in enumerate(make_rows(hour, count, version))
    ]


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
