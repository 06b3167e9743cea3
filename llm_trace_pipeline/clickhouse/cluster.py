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
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from clickhouse_connect.driver.client import Client

from llm_trace_pipeline.batches.manifest import Manifest
from llm_trace_pipeline.batches.parts import PartPath
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import (
    IN_WINDOW,
    SHARDING_KEY,
    Cluster,
    Database,
    HourTotals,
    local_name,
    retried,
    schema_version,
)
from llm_trace_pipeline.clickhouse.upsert import TABLE, HourLoader, loading, window_of
from llm_trace_pipeline.errors import ClickHouseError, TransientClickHouseError
from llm_trace_pipeline.hours import key_of
from llm_trace_pipeline.trace.columns import COLUMNS, PAYLOAD_COLUMNS, SCHEMA_VERSION
from llm_trace_pipeline.trace.tally import Tally, tally_of

LOCAL_TABLE = local_name(TABLE)
_LOCAL = local_name("")
_COUNTED = [column.name for column in COLUMNS if column.name not in PAYLOAD_COLUMNS]
_Rows = TypeVar("_Rows", pa.RecordBatch, pa.Table)
_ORGANIZATIONS_AT_ONCE = 1000  # a server takes a value of 128 KiB


class Shard(Database):
    """The database on the replica of a shard that is loaded."""

    swap_can_be_cut = False

    def __init__(
        self, client: Client, of: Database, number: int, slots: range, all_slots: int
    ) -> None:
        """Use the client of a replica.

        Args:
            client: of the replica.
            of: the same database, on the node that is asked for all shards.
            number: of the shard.
            slots: which remainders of the sharding key are its own.
            all_slots: what the key is divided by: the weights of all shards.
        """
        super().__init__(client, of.name, is_embedded=False, keeps_payloads=of.keeps_payloads)
        self.number = number
        # What the Distributed table does with a row.
        self._is_own = (
            f"{SHARDING_KEY} % {all_slots} >= {slots.start} "
            f"AND {SHARDING_KEY} % {all_slots} < {slots.stop}"
        )
        self._rows_to_insert = f" WHERE {self._is_own}"
        self._known: dict[str, bool] = {}

    def rows_of(self, batch: _Rows) -> _Rows:
        """Return the rows of a batch or table whose organizations are on this shard."""
        organizations = batch.column("organization_id")
        distinct = organizations.unique().to_pylist()
        unknown = [each for each in distinct if each not in self._known]
        for start in range(0, len(unknown), _ORGANIZATIONS_AT_ONCE):
            asked = unknown[start : start + _ORGANIZATIONS_AT_ONCE]
            answers = self.rows(
                "SELECT arrayJoin({organizations:Array(String)}) AS organization_id, "
                f"{self._is_own} AS is_own",
                {"organizations": asked},
            )
            self._known |= {row["organization_id"]: bool(row["is_own"]) for row in answers}
        own = pa.array([each for each in distinct if self._known[each]], pa.string())
        return batch.filter(pc.is_in(organizations, value_set=own))

    def _insert_arrow(self, table: str, rows: pa.Table) -> None:
        super()._insert_arrow(table, self.rows_of(rows))

    def define_table(self, table: str) -> None:
        """See that the table is there: it was made on all nodes at once.

        Raises:
            ClickHouseError: it is missing, or older.
        """
        layout = self.layout(table)
        if not layout or schema_version(layout) != SCHEMA_VERSION:
            in_front = self.qualified(table.removesuffix(_LOCAL))
            raise ClickHouseError(
                f"shard {self.number} has no {self.qualified(table)} of schema {SCHEMA_VERSION}",
                f"DROP TABLE {in_front} on all nodes, which holds no row itself: the "
                "next load makes what is missing",
            )

    def catch_up(self, table: str) -> None:
        """Fetch the parts that other replicas have.

        Raises:
            ClickHouseError: the table is not replicated, or fetching takes too long.
        """
        if self.has_table(table):
            self.execute(f"SYSTEM SYNC REPLICA {self.qualified(table)} LIGHTWEIGHT")


def shards_of(database: Database, cluster: Cluster) -> list[Shard]:
    """Connect to the first replica of each shard that answers.

    Raises:
        ClickHouseError: the cluster is not known, or no replica of a shard answers.
    """
    nodes = database.rows(
        "SELECT shard_num, shard_weight, host_name FROM system.clusters "
        "WHERE cluster = {cluster:String} ORDER BY shard_num, replica_num",
        {"cluster": cluster.name},
    )
    if not nodes:
        known = database.rows("SELECT DISTINCT cluster FROM system.clusters ORDER BY cluster")
        raise ClickHouseError(
            f"ClickHouse knows no cluster {cluster.name}",
            "set CLICKHOUSE_CLUSTER to one of system.clusters: "
            + (", ".join(row["cluster"] for row in known) or "there is none"),
        )
    weights = {node["shard_num"]: node["shard_weight"] for node in nodes}
    shards: list[Shard] = []
    first_slot = 0
    for number, weight in weights.items():
        hosts = [node["host_name"] for node in nodes if node["shard_num"] == number]
        slots = range(first_slot, first_slot := first_slot + weight)
        client = retried(partial(_first_client, cluster, hosts, number))
        shards.append(Shard(client, database, number, slots, sum(weights.values())))
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

    def __init__(self, store: BatchStore, shard: Shard, manifests: Sequence[Manifest]) -> None:
        self.files = store.files
        self._store = store
        self._whole = {manifest.hour: manifest for manifest in manifests}
        self._own = {manifest.hour: self._count(shard, manifest) for manifest in manifests}

    def _count(self, shard: Shard, manifest: Manifest) -> Manifest:
        tally = Tally()
        for batch in self._store.column_batches(manifest, _COUNTED):
            rows = shard.rows_of(batch)
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
            shard.catch_up(LOCAL_TABLE)

    def _load(self, manifests: Sequence[Manifest]) -> tuple[dict[datetime, HourTotals], set[str]]:
        """Replace a window on one shard after the other, and read it back from all together."""
        hours = [manifest.hour for manifest in manifests]
        for manifest in manifests:  # a damaged batch must not reach some shards only
            self._batches.part_paths(manifest)
        for shard in self._shards:
            batches = _BatchesOfShard(self._batches, shard, manifests)
            for result in HourLoader(shard, batches, LOCAL_TABLE).load_held(hours, force=True):
                if result.differences:
                    raise ClickHouseError(
                        f"hour {key_of(result.expected.hour)}: shard {shard.number} differs "
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
def reading(database: Database, store: BatchStore) -> Iterator[bool]:
    """Hold the loads of ``llm_traces`` off while it is read, and tell whether it exists.

    A swap that was cut, which shows rows twice, is finished first; an older table is upgraded.

    Args:
        database: where the table lies.
        store: where its batches lie.

    Raises:
        BatchError: another process loads and did not finish in time.
        ClickHouseError: a statement failed, or a newer version of this program made the table.
    """
    with loading(store.files):
        retried(loader_of(database, store).recover)
        if exists := database.has_table(TABLE):
            retried(partial(database.define_table, TABLE))
        yield exists
