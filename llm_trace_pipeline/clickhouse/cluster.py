"""Loads into a ClickHouse cluster: the upsert, shard by shard, on one replica of every shard.

``llm_traces`` is a Distributed table in front of the tables ``llm_traces_local`` of the shards. All
rows of an organization lie on one shard. A shard takes its rows of a batch by the upsert of a
single server, in one step. Between the steps of two shards, some organizations have the new hour
and some the old one, but every organization is whole. A stop there is made good by the next load,
which compares all shards together with the manifest.

Replicas. A shard's load stays on the first replica that answers. That replica first fetches the
parts of the others (SYSTEM SYNC REPLICA): its clone of a day would else lack rows, and the swap
take them from all replicas. ``alter_sync = 2`` lets a swap return when every replica has it, so
that any replica shows the rows that are compared. A swap of replicated tables is one entry in
Keeper, done or not. So a ``__ready`` table is no journal here, and is never replayed: a replica
that kept one while another replica was loaded would bring old rows back.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial

from clickhouse_connect.driver.client import Client

from llm_trace_pipeline.batches.manifest import Manifest
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import Cluster, Database, Shard, retried
from llm_trace_pipeline.clickhouse.loads import Figures, Hour, Loader, loading, window_of
from llm_trace_pipeline.clickhouse.tables import (
    SHARDING_KEY,
    TABLE,
    define_table,
    has_table,
    local_name,
)
from llm_trace_pipeline.clickhouse.traces import Traces, counted, own_rows
from llm_trace_pipeline.clickhouse.upsert import Swap
from llm_trace_pipeline.errors import ClickHouseError, TransientClickHouseError
from llm_trace_pipeline.hours import BEGINNING, key_of
from llm_trace_pipeline.sql import read_sql

LOCAL_TABLE = local_name(TABLE)


def shards_of(database: Database, cluster: Cluster) -> list[Database]:
    """Connect to the first replica of each shard that answers.

    Raises:
        ClickHouseError: the cluster is not known, or no replica of a shard answers.
    """
    nodes = database.rows(read_sql("clickhouse/nodes.sql"), {"cluster": cluster.name})
    if not nodes:
        known = database.rows(read_sql("clickhouse/clusters.sql"))
        raise ClickHouseError(
            f"ClickHouse knows no cluster {cluster.name}",
            "set CLICKHOUSE_CLUSTER to one of system.clusters: "
            + (", ".join(row["cluster"] for row in known) or "there is none"),
        )
    weights = {node["shard_num"]: node["shard_weight"] for node in nodes}
    # What the Distributed table does with a row.
    remainder = f"{SHARDING_KEY} % {sum(weights.values())}"
    shards: list[Database] = []
    first = 0
    for number, weight in weights.items():
        hosts = [node["host_name"] for node in nodes if node["shard_num"] == number]
        shard = Shard(number, f"{remainder} >= {first} AND {remainder} < {first + weight}")
        first += weight
        shards.append(
            Database(
                retried(partial(_first_client, cluster, hosts, number)),
                database.name,
                is_embedded=False,
                intake=database.intake,
                shard=shard,
            )
        )
    return shards


def _first_client(cluster: Cluster, hosts: Sequence[str], shard: int) -> Client:
    failures: list[str] = []
    for host in hosts:
        try:
            return cluster.client_of(host)
        except TransientClickHouseError as error:
            failures.append(f"{host}: {error.message}")
    raise TransientClickHouseError(
        f"no replica of shard {shard} of {cluster.name} answers ({'; '.join(failures)})"
    )


class TracesOfShard(Traces):
    """What a shard's own table is to hold of some hours: the rows of its organizations."""

    def __init__(self, shard: Database, store: BatchStore, hours: Sequence[Hour]) -> None:
        """Read the batches of some hours for the rows that are the shard's own."""
        super().__init__(shard, store, LOCAL_TABLE)
        self._own = {
            each.hour: self._own_part_of(each.batch) for each in hours if each.batch is not None
        }

    def _own_part_of(self, manifest: Manifest) -> Hour:
        own = counted(
            self._store, manifest, lambda rows: self._held.as_held(own_rows(self._database, rows))
        )
        return Hour(manifest.hour, own, manifest if own["rows"] else None)

    def expected(self, hours: Sequence[datetime]) -> list[Hour]:
        """Return the shard's part of the hours' batches."""
        return [self._own[hour] for hour in hours]

    def expected_around(self, hours: Sequence[datetime]) -> list[Hour]:  # noqa: ARG002 -- no other hour counts
        """Return nothing: other hours are compared over all shards together."""
        return []


class ClusterLoader(Loader):
    """Loads hours into all shards; what it compares is what the Distributed table shows."""

    def __init__(
        self, database: Database, cluster: Cluster, store: BatchStore, kept_from: datetime
    ) -> None:
        """Load from the store; ``kept_from`` is where the retention begins."""
        super().__init__(database, TABLE, Traces(database, store), store.files, kept_from)
        self._store = store
        self._shards = shards_of(database, cluster)

    @property
    def targets(self) -> list[tuple[Database, str]]:
        """Where rows lie: a replica of each shard, and the name of its own table."""
        return [(shard, LOCAL_TABLE) for shard in self._shards]

    def try_recover(self) -> None:
        """Drop what an interrupted load left on any shard, and let its replica catch up."""
        for shard in self._shards:
            Swap(shard, LOCAL_TABLE, self.time_column).recover()

    def _load(self, hours: Sequence[Hour]) -> tuple[dict[datetime, Figures], set[str]]:
        """Replace contiguous hours on one shard after the other, and read them back from all."""
        for each in hours:  # a damaged batch must not reach some shards only
            if each.batch:
                self._store.part_paths(each.batch)
        for number, shard in enumerate(self._shards, start=1):
            contents = TracesOfShard(shard, self._store, hours)
            loader = Loader(shard, LOCAL_TABLE, contents, self._files)
            for result in loader.load_held([each.hour for each in hours], force=True):
                if result.differences:
                    raise ClickHouseError(
                        f"hour {key_of(result.expected.hour)}: shard {number} differs "
                        f"from the batch after the load: {', '.join(result.differences)}",
                        "pause who else writes there, then materialize llm_traces and "
                        "llm_usage_hourly again",
                    )
        window = window_of(hours)
        partitions = self._swap.partitions_of(window)
        return self._contents.found(window), partitions


def loader_of(database: Database, store: BatchStore, kept_from: datetime = BEGINNING) -> Loader:
    """Return what loads hours into ``llm_traces``, on one server or in a cluster.

    Args:
        database: where the table lies.
        store: where the batches lie.
        kept_from: where the retention begins; earlier hours may lack what their batches hold.

    Raises:
        ClickHouseError: the cluster is not known, or no replica of a shard answers.
    """
    if database.cluster:
        return ClusterLoader(database, database.cluster, store, kept_from)
    return Loader(database, TABLE, Traces(database, store), store.files, kept_from)


@contextmanager
def repaired_for_reading(database: Database, store: BatchStore) -> Iterator[bool]:
    """Repair and upgrade ``llm_traces``, then keep loads off while it is read.

    This writes: a swap that was cut shows rows twice, and is finished first; an older table is
    upgraded.

    Args:
        database: where the table lies.
        store: where its batches lie.

    Yields:
        Whether the table exists.

    Raises:
        BatchError: another process loads and did not finish in time.
        ClickHouseError: a statement failed, or a newer version of this program made the table.
    """
    with loading(store.files):
        retried(loader_of(database, store).recover)
        if exists := has_table(database, TABLE):
            retried(partial(define_table, database, TABLE))
        yield exists
