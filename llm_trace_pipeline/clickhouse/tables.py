"""The tables: how llm_traces, the roll-up and its views are made, upgraded and asked about.

A table's comment tells the version of its schema. An older table is upgraded in place; schema 0 is
a table from before this project, such as the live writer's.

In a cluster a table is a Distributed one, which holds no rows: they lie in the local tables of the
shards behind it, all rows of an organization on one shard.
"""

import re
import time
from collections.abc import Mapping
from typing import Any

from llm_trace_pipeline.clickhouse.client import Cluster, Database, Shard
from llm_trace_pipeline.clickhouse.errors import STATEMENT_SECONDS
from llm_trace_pipeline.errors import ClickHouseError
from llm_trace_pipeline.sql import quote_identifier, quote_text, read_sql, render
from llm_trace_pipeline.trace.columns import SCHEMA_VERSION

TABLE = "llm_traces"
ROLLUP = "llm_usage_hourly"
# The views of the roll-up: the column that tells the period, and the function that gives its start.
VIEWS = {"llm_usage_daily": ("day", "toDate"), "llm_usage_monthly": ("month", "toStartOfMonth")}
SHARDING_KEY = "cityHash64(organization_id)"

_LOCAL = "_local"
_ALL_ROWS = frozenset({"1", "1_UInt8"})  # the condition of a row policy that hides none
_PROCESSES = "system.processes"
# The cluster that a service of shared storage names its own replicas by.
_ALL_PROCESSES = "clusterAllReplicas('default', system.processes)"
_MERGE_TREE = "MergeTree"
# The path has no {uuid}: a node that joins later would get another one than its replicas have.
_REPLICATED = "ReplicatedMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')"


def in_window(column: str) -> str:
    """Return the condition that a time lies in a window; ``Window.parameters`` are its values."""
    return f"{column} >= {{start:DateTime64(6, 'UTC')}} AND {column} < {{end:DateTime64(6, 'UTC')}}"


IN_WINDOW = in_window("created_at")


def local_name(table: str) -> str:
    """Return the name of the table that holds a shard's own rows, behind a table of a cluster."""
    return f"{table}{_LOCAL}"


def name_in_front(table: str) -> str:
    """Return the name of the table that is queried: of this one, or in front of a shard's own."""
    return table.removesuffix(_LOCAL)


def layout_of(database: Database, table: str) -> dict[str, Any]:
    """Return the table's row of ``system.tables``; empty where it does not exist."""
    found = database.rows(
        read_sql("clickhouse/layout.sql"), {"database": database.name, "table": table}
    )
    return found[0] if found else {}


def has_table(database: Database, table: str) -> bool:
    """Whether the table exists."""
    return bool(layout_of(database, table))


def tables_that_begin(database: Database, prefix: str) -> list[str]:
    """Return the tables of the database whose names begin so, in their order."""
    found = database.rows(
        read_sql("clickhouse/tables_that_begin.sql"), {"database": database.name, "prefix": prefix}
    )
    return [row["name"] for row in found]


def schema_version(layout: Mapping[str, Any]) -> int:
    """Return the version of the schema that a row of ``system.tables`` tells; 0: none."""
    said = re.search(r"\bllm_trace_pipeline schema (\d+)", layout["comment"])
    return int(said[1]) if said else 0


def newer_schema(table: str, layout: Mapping[str, Any]) -> ClickHouseError | None:
    """Return the error of loading into a table of a newer schema; None: the schema is known."""
    if (version := schema_version(layout)) <= SCHEMA_VERSION:
        return None
    return ClickHouseError(
        f"{table} has schema {version}, and this version of the program knows up to "
        f"{SCHEMA_VERSION}",
        "install the newer version that made it, or set another CLICKHOUSE_DATABASE",
    )


def hidden_rows(database: Database, table: str) -> ClickHouseError | None:
    """Return the error that a row policy hides rows of a table; None where all are seen.

    A table without rows hides none, whatever policy it has.
    """
    plan = database.rows(render("clickhouse/read_plan.sql", table=database.qualified(table)))
    lines = "\n".join(row["explain"] for row in plan)
    filters = re.findall(r"Row level filter column:\s*(.+?)(?: \(removed\))?$", lines, re.MULTILINE)
    if not filters or filters[0] in _ALL_ROWS:
        return None
    name = database.qualified(table)
    return ClickHouseError(
        f"a row policy shows the user of {name} only the rows where {filters[0]}: the others would "
        "be loaded again, and be there twice",
        f"SHOW ROW POLICIES ON {name}; then ALTER ROW POLICY … ON {name} TO ALL EXCEPT that user",
    )


def require_all_rows(database: Database, table: str) -> None:
    """Refuse to go on where a row policy hides rows of a table.

    Raises:
        ClickHouseError: a row policy of the user hides some.
    """
    if error := hidden_rows(database, table):
        raise error


def define_table(database: Database, table: str) -> None:
    """Make a table where it is missing; bring an older one up to date in place.

    The tables of a cluster are made on all its nodes at once, from any of them. A replica of a
    shard only sees that its own is there.

    Raises:
        ClickHouseError: a newer version of this program made the table, or a shard lacks it.
    """
    if database.shard:
        _require_local(database, database.shard, table)
        return
    if not database.use():
        name = quote_identifier(database.name)
        database.execute(f"CREATE DATABASE IF NOT EXISTS {name}{database.on_cluster}")
        database.use()
    layout = layout_of(database, table)
    if layout and (newer := newer_schema(database.qualified(table), layout)):
        raise newer
    is_current = layout and schema_version(layout) == SCHEMA_VERSION
    if not is_current or (table == ROLLUP and not _has_views(database)):
        for statement in definition_of(database, table, exists=bool(layout)):
            database.execute(statement)


def _require_local(database: Database, shard: Shard, table: str) -> None:
    layout = layout_of(database, table)
    if not layout or schema_version(layout) != SCHEMA_VERSION:
        in_front = database.qualified(name_in_front(table))
        raise ClickHouseError(
            f"shard {shard.number} has no {database.qualified(table)} of schema {SCHEMA_VERSION}",
            f"DROP TABLE {in_front} on all nodes, which holds no row itself: the "
            "next load makes what is missing",
        )


def _has_views(database: Database) -> bool:
    """Whether the views of the roll-up exist: they are made after it, and can be dropped."""
    return all(has_table(database, view) for view in VIEWS)


def definition_of(database: Database, table: str, *, exists: bool) -> list[str]:
    """Return the statements that make or upgrade a table; in a cluster, the local ones first.

    They can run again, after all of them or some of the first ones ran, without a further effect.
    """
    target = f"{database.qualified(table)}{database.on_cluster}"
    if table == ROLLUP:
        make, upgrade = "clickhouse/llm_usage_hourly.sql", "clickhouse/upgrade_hourly.sql"
        views = [
            render(
                "clickhouse/llm_usage_by_period.sql",
                view=f"{database.qualified(view)}{database.on_cluster}",
                table=database.qualified(table),
                period=period,
                start_of=start_of,
            )
            for view, (period, start_of) in VIEWS.items()
        ]
        comment = _comment("Usage by hour")
        # Last: it tells that all the rest of this version is there.
        commented = render("clickhouse/comment.sql", table=target, comment=comment)
        upgraded = render(upgrade, table=target)
        if not database.cluster:
            made = render(make, table=target, engine=_MERGE_TREE)
            return [upgraded if exists else made, *views, commented]
        local = _local_target(database, table)
        distributed = _distributed(database, database.cluster, table, comment)
        return [
            _local(database, make, table),
            render(upgrade, table=local),  # one that was there already
            render("clickhouse/comment.sql", table=local, comment=comment),
            upgraded if exists else distributed,
            *views,
            commented,
        ]
    make, upgrade = "clickhouse/llm_traces.sql", "clickhouse/upgrade.sql"
    if not database.cluster:
        if exists:
            return [render(upgrade, table=target)]
        return [render(make, table=target, engine=_MERGE_TREE)]
    distributed = _distributed(database, database.cluster, table, _comment("One row per LLM call"))
    return [
        _local(database, make, table),
        render(upgrade, table=_local_target(database, table)),  # one that was there already
        render(upgrade, table=target) if exists else distributed,
    ]


def _comment(text: str) -> str:
    """Return a table's comment, quoted, with the version of its schema."""
    return quote_text(f"{text} (llm_trace_pipeline schema {SCHEMA_VERSION}).")


def _local_target(database: Database, table: str) -> str:
    """Return what a statement for all local tables behind a table of the cluster names."""
    return f"{database.qualified(local_name(table))}{database.on_cluster}"


def _local(database: Database, make: str, table: str) -> str:
    """Return the statement that makes the local tables behind a table of the cluster."""
    return render(make, table=_local_target(database, table), engine=_REPLICATED)


def _distributed(database: Database, cluster: Cluster, table: str, comment: str) -> str:
    """Return the statement that makes a table of the cluster in front of the local ones."""
    name = local_name(table)
    return render(
        "clickhouse/distributed.sql",
        table=f"{database.qualified(table)}{database.on_cluster}",
        local=database.qualified(name),
        cluster=quote_text(cluster.name),
        database=quote_text(database.name),
        name=quote_text(name),
        key=SHARDING_KEY,
        comment=comment,
    )


def parts_of(database: Database, table: str, partition: str) -> dict[str, int]:
    """Return the parts of a partition that have rows, by name: their largest block numbers.

    A merged part has a name of its own, and the largest block number of its sources: only an insert
    brings a larger one.
    """
    found = database.rows(
        render("clickhouse/parts.sql", table=database.qualified(table)), {"partition": partition}
    )
    # <partition>_<smallest block>_<largest block>_<level>, and _<mutation> after that.
    end = len(partition) + 1
    return {row["name"]: int(row["name"][end:].split("_")[1]) for row in found}


def wait_for_statements_on(database: Database, *tables: str) -> None:
    """Wait until no running statement names one of the tables.

    On a server a statement runs on after its load was killed or lost the connection.

    Raises:
        ClickHouseError: a statement runs for longer than it may.
    """
    deadline = time.monotonic() + STATEMENT_SECONDS
    names = {"tables": [database.qualified(table) for table in tables]}
    statement = render(
        "clickhouse/running.sql", processes=_ALL_PROCESSES if database.is_shared else _PROCESSES
    )
    while running := database.rows(statement, names):
        if time.monotonic() > deadline:
            ids = ", ".join(f"'{row['query_id']}'" for row in running)
            raise ClickHouseError(
                "ClickHouse: a statement of an earlier load still runs",
                f"wait, or KILL QUERY WHERE query_id IN ({ids})",
            )
        time.sleep(0.2)  # nothing tells when it ends


def is_replicated(database: Database, layout: Mapping[str, Any]) -> bool:
    """Whether a table, by its row of ``system.tables``, has replicas with parts of their own."""
    return database.shard is not None or layout["engine"].startswith("Replicated")


def catch_up(database: Database, table: str) -> None:
    """Let a replica fetch the parts of the other replicas of a table."""
    database.execute(f"SYSTEM SYNC REPLICA {database.qualified(table)} LIGHTWEIGHT")
