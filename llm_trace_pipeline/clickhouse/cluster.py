"""Loads into a ClickHouse cluster: the upsert, shard by shard, each on one of its replicas.

``llm_traces`` is a Distributed table in front of ``llm_traces_local``, of which every shard holds
the rows of its organizations. A shard takes its rows of a batch by the same upsert as a single
server, and each is swapped in one step: between two of them some organizations have the new hour
and some the old one, each of them whole. The next load makes good a stop there, since it compares
all shards together with the manifest.

Replicas. A shard's load stays on the first replica that answers, which first fetches what the
others have (SYSTEM SYNC REPLICA): its clone of a day would else lack rows, and the swap take them
from all. ``alter_sync = 2`` lets a swap return when every replica has it, so that what is compared
is what any of them shows. A swap of replicated tables is one entry in Keeper, done or not: a
``__ready`` table is no journal here, and is never replayed. One that a replica kept while another
one was loaded would bring old rows back.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial

from clickhouse_connect.driver.client import Client

from llm_trace_pipeline.batches.manifest import Manifest
from llm_trace_pipeline.batches.parts import PartPath
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import Cluster, Database, Shard, retried
from llm_trace_pipeline.clickhouse.tables import (
    IN_WINDOW,
    SHARDING_KEY,
    TABLE,
    catch_up,
    define_table,
    has_table,
    local_name,
)
from llm_trace_pipeline.clickhouse.traces import HourLoader, HourTotals, own_rows
from llm_trace_pipeline.clickhouse.upsert import loading, window_of
from llm_trace_pipeline.errors import ClickHouseError, TransientClickHouseError
from llm_trace_pipeline.hours import key_of
from llm_trace_pipeline.sql import read_sql
from llm_trace_pipeline.trace.columns import COLUMNS, PAYLOAD_COLUMNS
from llm_trace_pipeline.trace.tally import Tally, tally_of

LOCAL_TABLE = local_name(TABLE)
_COUNTED = [column.name for column in COLUMNS if column.name not in PAYLOAD_COLUMNS]


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
                keeps_payloads=database.keeps_payloads,
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


class _BatchesOfShard:
    """The rows of some batches that belong to a shard, in the way that its load asks for them."""

    def __init__(self, store: BatchStore, shard: Database, manifests: Sequence[Manifest]) -> None:
        self.files = store.files
        self._store = store
        self._whole = {manifest.hour: manifest for manifest in manifests}
        self._own = {manifest.hour: self._count(shard, manifest) for manifest in manifests}

    def _count(self, shard: Database, manifest: Manifest) -> Manifest:
        tally = Tally()
        for batch in self._store.column_batches(manifest, _COUNTED):
            rows = own_rows(shard, batch)
            if rows.num_rows:
                tally.add(tally_of(rows))
        return manifest.model_copy(update=tally.figures())

    def manifest(self, hour: datetime) -> Manifest | None:
        # Other hours are compared over all shards.
        return self._own.get(hour)

    def part_paths(self, manifest: Manifest) -> list[PartPath]:
        return self._store.part_paths(self._whole[manifest.hour]) if manifest.rows else []


class ClusterLoader(HourLoader):
    """Loads hours into all shards; what it compares is what the Distributed table shows."""

    def __init__(
        self, database: Database, cluster: Cluster, store: BatchStore, keep_from: datetime | None
    ) -> None:
        """Load from the store; ``keep_from`` is where the retention begins.

        Raises:
            ClickHouseError: the cluster is not known, or no replica of a shard answers.
        """
        super().__init__(database, store, TABLE, keep_from)
        self._batches = store
        self._shards = shards_of(database, cluster)

    @property
    def targets(self) -> list[tuple[Database, str]]:
        """Where rows lie: a replica of each shard, and the name of its own table."""
        return [(shard, LOCAL_TABLE) for shard in self._shards]

    def recover(self) -> None:
        """Drop what an interrupted load left on any shard, and let its replica catch up.

        Raises:
            ClickHouseError: a statement failed, or one of an earlier load does not end.
        """
        for shard in self._shards:
            HourLoader(shard, self._batches, LOCAL_TABLE).recover()
            catch_up(shard, LOCAL_TABLE)

    def _load(self, manifests: Sequence[Manifest]) -> tuple[dict[datetime, HourTotals], set[str]]:
        """Replace a window on one shard after the other, and read it back from all together."""
        hours = [manifest.hour for manifest in manifests]
        for manifest in manifests:  # a damaged batch must not reach some shards only
            self._batches.part_paths(manifest)
        for number, shard in enumerate(self._shards, start=1):
            batches = _BatchesOfShard(self._batches, shard, manifests)
            for result in HourLoader(shard, batches, LOCAL_TABLE).load_held(hours, force=True):
                if result.differences:
                    raise ClickHouseError(
                        f"hour {key_of(result.expected.hour)}: shard {number} differs "
                        f"from the batch after the load: {', '.join(result.differences)}",
                        "pause who else writes there, then materialize llm_traces and "
                        "llm_usage_hourly again",
                    )
        partitions = self._partitions(self._table, IN_WINDOW, window_of(manifests).parameters)
        return self._totals(manifests), partitions


def loader_of(
    database: Database, store: BatchStore, keep_from: datetime | None = None
) -> HourLoader:
    """Return what loads hours into ``llm_traces``, on one server or in a cluster.

    Args:
        database: where the table lies.
        store: where the batches lie.
        keep_from: where the retention begins; earlier hours may lack what their batches hold.

    Raises:
        ClickHouseError: the cluster is not known, or no replica of a shard answers.
    """
    if database.cluster:
        return ClusterLoader(database, database.cluster, store, keep_from)
    return HourLoader(database, store, keep_from=keep_from)


@contextmanager
def repaired_for_reading(database: Database, store: BatchStore) -> Iterator[bool]:
    """Mend ``llm_traces``, hold its loads off while it is read, and tell whether it exists.

    This writes: a swap that was cut, which shows rows twice, is finished first, and an older table
    is upgraded.

    Args:
        database: where the table lies.
        store: where its batches lie.

    Raises:
        BatchError: another process loads and did not finish in time.
        ClickHouseError: a statement failed, or a newer version of this program made the table.
    """
    with loading(store.files):
        retried(loader_of(database, store).recover)
        if exists := has_table(database, TABLE):
            retried(partial(define_table, database, TABLE))
        yield exists
