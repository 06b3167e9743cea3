"""Kinds of targets, told from what the server shows, and what is refused of each.

- One server, embedded or not: its tables are its own.
- Shared storage: replicas behind one address, any of which may answer a statement. A table made as
  MergeTree becomes SharedMergeTree there, so that all replicas see the staging table, the clone and
  the journal. Every statement carries the settings by which it sees what was done before.
- A replicated table on one node: the staging tables are plain ones of that node, so that every
  statement of a load must reach it.
- A cluster: a node of every shard, each by its own name; see ``cluster.py``.

Two things would lose rows without an error. REPLACE and ATTACH PARTITION take the parts that the
executing node knows (ClickHouse issues 73697, 103186): where a staging table is not on every node
that may be asked, there must be one node. And a statement that a database hands on to all its
replicas would attach from the empty staging tables of the others (ClickHouse issue 115746).
"""

from collections.abc import Iterable
from typing import Any

from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.clickhouse.tables import is_replicated
from llm_trace_pipeline.errors import ClickHouseError
from llm_trace_pipeline.sql import read_sql

_SHARED = "Shared"  # begins the names of the engines of shared storage
_REPLICATED = "Replicated"


def described(database: Database, layout: dict[str, Any]) -> str:
    """Return what kind of target a database is, in words.

    Args:
        database: where the table lies.
        layout: the table's row of ``system.tables``; empty where it is still to be made.
    """
    if database.cluster:
        return f"the cluster {database.cluster.name}"
    if database.is_shared:
        return "shared storage, whichever replica answers"
    if database.is_embedded:
        return "the embedded engine"
    if layout and is_replicated(database, layout):
        return f"a replicated table, on the node {_names(database.nodes)}"
    return f"one server, {_names(database.nodes)}"


def require_one_target(database: Database) -> None:
    """Refuse a database whose statements may miss what the statements before them did.

    Raises:
        ClickHouseError: several servers with storage of their own answer behind the address, or the
            database hands statements on to its replicas.
    """
    if database.is_embedded or database.is_shared or database.shard:
        return
    found = database.rows(read_sql("clickhouse/database.sql"), {"database": database.name})
    if found and found[0]["engine"] == _REPLICATED:
        raise ClickHouseError(
            f"{database.name} is a Replicated database, which would repeat the swap of a partition "
            "on every replica, from tables that are empty there",
            "set CLICKHOUSE_DATABASE to one that is made with ENGINE = Atomic, and for several "
            "nodes CLICKHOUSE_CLUSTER",
        )
    if len(database.nodes) > 1:
        raise ClickHouseError(
            f"CLICKHOUSE_ENDPOINT leads to several servers ({_names(database.nodes)}), and a load "
            "would find on one of them what it left on another",
            "set CLICKHOUSE_ENDPOINT to the address of one of them, or set CLICKHOUSE_CLUSTER",
        )


def is_shared_engine(layout: dict[str, Any]) -> bool:
    """Whether a table, by its row of ``system.tables``, lies on storage that replicas share."""
    return str(layout["engine"]).startswith(_SHARED)


def _names(nodes: Iterable[str]) -> str:
    """Return the names of servers that ``node.sql`` found, without their ids."""
    return ", ".join(sorted(node.partition(" ")[0] for node in nodes))
