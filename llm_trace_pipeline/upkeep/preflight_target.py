"""What is missing where batches and tables go before a load, with the exact repair."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import pairwise

from llm_trace_pipeline.batches.files import files_of
from llm_trace_pipeline.clickhouse.client import Database, connect
from llm_trace_pipeline.clickhouse.cluster import LOCAL_TABLE, shards_of
from llm_trace_pipeline.clickhouse.held import HeldColumn, columns_of
from llm_trace_pipeline.clickhouse.kinds import described, require_one_target
from llm_trace_pipeline.clickhouse.tables import (
    ROLLUP,
    TABLE,
    hidden_rows,
    is_replicated,
    layout_of,
    local_name,
    newer_schema,
    schema_version,
)
from llm_trace_pipeline.clickhouse.traces import Traces, credentials_of
from llm_trace_pipeline.clickhouse.ttl import ttl_that_deletes
from llm_trace_pipeline.clickhouse.upsert import Swap
from llm_trace_pipeline.errors import BatchError, ClickHouseError
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.sql import quote_identifier, read_sql, render
from llm_trace_pipeline.trace.columns import COLUMNS, PAYLOAD_COLUMNS, SCHEMA_VERSION
from llm_trace_pipeline.upkeep.problems import Problem

_PROBE = "preflight"  # an object that is written and removed
_SAFE_VERSION = (26, 6)
_CHECK_GRANT_VERSION = (25, 1)
_LOADER_PRIVILEGES = (
    "SELECT, INSERT, ALTER ADD COLUMN, ALTER MODIFY COLUMN, ALTER MODIFY COMMENT, ALTER DELETE, "
    "ALTER UPDATE, CREATE TABLE, DROP TABLE, CREATE VIEW, DROP VIEW"
)
_SYSTEM_TABLES = ("tables", "columns", "processes", "mutations", "parts")
_PARTITION_KEY = "toDate(created_at)"
_SORTING_KEY = "organization_id, agent_id, created_at, id"
_FORMER_CODECS = ("", "CODEC(ZSTD(1))")  # the server's own, and ours until payloads had their own
_DEFINITION = "clickhouse/llm_traces.sql"
_PROJECTION_MODE = "lightweight_mutation_projection_mode"


def check_batches(settings: Settings) -> list[Problem]:
    """Return the problems of the place of the batches; into a bucket, an object is written."""
    try:
        files = files_of(settings)
        if settings.is_in_bucket:
            files.switch(_PROBE, b"")
            files.remove([_PROBE])
    except BatchError as error:
        repair = (
            "check TRACE_BATCH_URI, AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, and whether that key may list, read, write and delete there"
        )
        return [Problem(str(error), repair)]
    return []


def check_target(settings: Settings) -> list[Problem]:
    """Return the problems of ClickHouse: its address, version, grants and tables."""
    with ExitStack() as stack:
        try:
            database = stack.enter_context(connect(settings, attempts=1))
        except ClickHouseError as error:
            return [Problem(error.message, error.repair or _way_in(settings))]
        refused = [*_check_grants(database, settings), *_check_kind(database)]
        return [
            *_check_version(database.version),
            *(refused or [*_check_tables(database), *_check_reach(database, settings)]),
        ]


def kind_of_target(settings: Settings) -> str:
    """Return what kind of ClickHouse it is, in words.

    Raises:
        ClickHouseError: it cannot be reached.
    """
    with connect(settings) as database:
        return described(database, layout_of(database, TABLE))


def _check_kind(database: Database) -> Iterator[Problem]:
    try:
        require_one_target(database)
    except ClickHouseError as error:
        yield Problem(error.message, error.repair)


def _way_in(settings: Settings) -> str:
    if settings.is_embedded:
        return "let the process that uses it end, or set CLICKHOUSE_ENDPOINT to another folder"
    return "start the server, or set CLICKHOUSE_ENDPOINT to its HTTP port: 8123, with TLS 8443"


def _check_version(version: tuple[int, int]) -> Iterator[Problem]:
    if version < _SAFE_VERSION:
        yield Problem(
            f"ClickHouse {version[0]}.{version[1]} can resurrect replaced rows after a restart "
            "(ClickHouse issue 107605): these hours would hold rows twice",
            "upgrade ClickHouse to 26.6 or newer",
            is_fatal=False,
        )


def _check_grants(database: Database, settings: Settings) -> Iterator[Problem]:
    if database.version < _CHECK_GRANT_VERSION:
        return
    for grant in (*needed_grants(settings), *needed_grants_of_kind(database)):
        if str(database.value(f"CHECK GRANT {grant}")) != "1":
            [user] = database.rows("SELECT currentUser() AS name")
            yield Problem(
                f"ClickHouse: {user['name']} lacks {grant}",
                f"GRANT {grant} TO {quote_identifier(user['name'])};",
            )


def needed_grants(settings: Settings) -> list[str]:
    """Return the privileges that loads use, as ``GRANT`` names them."""
    name = settings.clickhouse_database
    everything = f"{quote_identifier(name)}.*"
    return [
        # CREATE DATABASE IF NOT EXISTS needs its privilege also where there is nothing to create.
        *([f"CREATE DATABASE ON {everything}"] if name != "default" else []),
        f"{_LOADER_PRIVILEGES} ON {everything}",
        *(f"SELECT ON system.{table}" for table in _SYSTEM_TABLES),
        *(["S3 ON *.*"] if settings.is_in_bucket else []),
        *(needed_grants_of_cluster(name) if settings.clickhouse_cluster else []),
    ]


def needed_grants_of_kind(database: Database) -> list[str]:
    """Return the privileges that loads use besides on a server of the kind that this one is."""
    if database.is_shared:
        return ["REMOTE ON *.*"]  # to see the statements that run on other replicas
    layout = layout_of(database, TABLE)
    if not database.cluster and layout and is_replicated(database, layout):
        return [f"SYSTEM SYNC REPLICA ON {quote_identifier(database.name)}.*"]
    return []


def needed_grants_of_cluster(name: str) -> list[str]:
    """Return the privileges that loads use besides in a cluster, by the name of the database."""
    return [
        "CLUSTER ON *.*",
        "REMOTE ON *.*",  # to make a Distributed table
        f"SYSTEM SYNC REPLICA ON {quote_identifier(name)}.*",
        "SELECT ON system.clusters",
    ]


def _check_reach(database: Database, settings: Settings) -> Iterator[Problem]:
    """Have ClickHouse read an object of the bucket; what it refuses this process is said before."""
    if not settings.is_in_bucket:
        return
    statement = render("clickhouse/reach.sql", credentials=credentials_of(database))
    with suppress(BatchError):
        files = files_of(settings)
        files.switch(_PROBE, b"")
        try:
            database.execute(statement, {"place": files.url(_PROBE)})
        except ClickHouseError as error:
            yield Problem(
                f"ClickHouse cannot read {settings.trace_batch_uri} by itself: the rows are read "
                f"here and sent, which takes longer ({error.message})",
                "let the server read it, by its configuration or by CLICKHOUSE_S3_ROLE_ARN",
                is_fatal=False,
            )
        finally:
            files.remove([_PROBE])


def _check_tables(database: Database) -> list[Problem]:
    """Return the problems of the table; in a cluster, of the tables of all shards."""
    if not database.cluster:
        table = database.qualified(TABLE)
        before = database.qualified(f"{TABLE}_before")
        anew = f"RENAME TABLE {table} TO {before}; then make backfill"
        return [*_check_table(database, TABLE, table, anew), *_check_views(database)]
    try:
        shards = shards_of(database, database.cluster)
    except ClickHouseError as error:
        return [Problem(error.message, error.repair or "start it, or repair system.clusters")]
    anew = "set another CLICKHOUSE_DATABASE; then make backfill"
    problems: list[Problem] = []
    layout = layout_of(database, TABLE)
    if layout and layout["engine"] != "Distributed":
        problems.append(
            Problem(
                f"{database.qualified(TABLE)} is a {layout['engine']}, and CLICKHOUSE_CLUSTER "
                "takes it for a Distributed",
                anew,
            )
        )
    table = f"{database.qualified(LOCAL_TABLE)}{database.on_cluster}"
    for shard in shards:
        layout = layout_of(shard, LOCAL_TABLE)
        if layout and not layout["engine"].startswith("Replicated"):
            problems.append(Problem(f"{table} is a {layout['engine']}, not replicated", anew))
        problems += [*_check_table(shard, LOCAL_TABLE, table, anew), *_check_views(shard)]
    return list(dict.fromkeys(problems))


def _check_views(database: Database) -> Iterator[Problem]:
    """Name the materialized views that wait for inserts, of which a load makes none."""
    tables = [name for table in (TABLE, ROLLUP) for name in (table, local_name(table))]
    found = database.rows(
        read_sql("preflight/fed_views.sql"), {"database": database.name, "tables": tables}
    )
    for each in found:
        yield Problem(
            f"the materialized view {each['view']} sees nothing of what is loaded into "
            f"{each['table']}: hours are put in place as parts",
            "make it a refreshable view (CREATE MATERIALIZED VIEW … REFRESH EVERY 1 HOUR …), or "
            f"query {ROLLUP} in its place",
            is_fatal=False,
        )


def _check_table(database: Database, name: str, table: str, anew: str) -> list[Problem]:
    """Return the problems of the table ``name``.

    The statements of a repair call it ``table``; ``anew`` is the repair that makes another one.
    """
    layout = layout_of(database, name)
    if not layout:
        return []
    if not layout["engine"].endswith("MergeTree"):
        return [Problem(f"{table} is a {layout['engine']}, not a MergeTree", anew)]
    columns = columns_of(database, name)
    if newer := newer_schema(table, layout):
        return [Problem(newer.message, newer.repair)]
    is_upgraded = schema_version(layout) < SCHEMA_VERSION
    hidden = hidden_rows(database, name)
    problems = [
        *_check_journals(database, name, table),
        *([Problem(hidden.message, hidden.repair)] if hidden else []),
        *_check_missing(table, columns, is_upgraded=is_upgraded),
        *_check_types(table, columns, anew),
    ]
    if f"{_PROJECTION_MODE} = 'throw'" in layout["engine_full"]:
        problems.append(
            Problem(
                f"{table} sets {_PROJECTION_MODE} to 'throw': once it has a projection, no hour of "
                "it can be replaced",
                f"ALTER TABLE {table} RESET SETTING {_PROJECTION_MODE};",
                is_fatal=False,
            )
        )
    kind = re.sub(r"^(Replicated|Shared)", "", layout["engine"])
    if kind != "MergeTree" and not re.search(r"\bid\b", layout["sorting_key"]):
        problems.append(
            Problem(
                f"{table} is a {kind} without id in its sorting key ({layout['sorting_key']}): "
                "merges make one row of calls that share it",
                anew,
            )
        )
    if ttl := ttl_that_deletes(layout["engine_full"]):
        problems.append(
            Problem(
                f"{table} has the TTL {', '.join(ttl)}: hours that it has taken rows of are past "
                "the retention, and neither loaded nor compared",
                f"ALTER TABLE {table} REMOVE TTL; and set LLM_TRACES_RETENTION_DAYS in its place",
                is_fatal=False,
            )
        )
    for key, expected, cost in (
        ("partition_key", _PARTITION_KEY, "every hour loaded clones and verifies its partition"),
        ("sorting_key", _SORTING_KEY, "the calls of an agent, which repeat each other, lie apart"),
    ):
        if layout[key] != expected:
            what = f"{key.replace('_', ' ')} ({layout[key]}), not ({expected})"
            problems.append(
                Problem(f"{table} has the {what}: it is kept, but {cost}", anew, is_fatal=False)
            )
    return [*problems, *_check_codecs(database, name, table)]


def _check_codecs(database: Database, name: str, table: str) -> Iterator[Problem]:
    """Say what payloads would take if they were packed as those of a new table."""
    columns = database.rows(
        read_sql("preflight/codecs.sql"),
        {"database": database.name, "table": name, "names": list(PAYLOAD_COLUMNS)},
    )
    former = [column for column in columns if column["codec"] in _FORMER_CODECS]
    if former:
        size = sum(column["bytes"] or 0 for column in former) / 10**9
        codec = re.findall(r"CODEC\(ZSTD\(3\)\)\s+SETTINGS \(.*?\)", read_sql(_DEFINITION))[0]
        changes = (f"MODIFY COLUMN {quote_identifier(each['name'])} {codec}" for each in former)
        yield Problem(
            f"{table} packs payloads, {size:.1f} GB, in small blocks: in blocks of 4 MB, the calls "
            "of agents took 0.05 of their text instead of 0.12",
            f"ALTER TABLE {table} {', '.join(changes)}; what is merged from then on is packed anew",
            is_fatal=False,
        )


def _check_journals(database: Database, name: str, table: str) -> Iterator[Problem]:
    """Name the journals of swaps that were cut and cannot be finished any more."""
    for journal in Swap(database, name, Traces.time_column).outdated_journals:
        yield Problem(
            f"{journal} is of a swap that was cut before {table} was changed: hours of its "
            "partition may be there twice",
            "load any hour, which loads them from their batches or names the one that cannot be "
            "loaded",
            is_fatal=False,
        )


def _check_missing(
    table: str, columns: Sequence[HeldColumn], *, is_upgraded: bool
) -> Iterator[Problem]:
    """Name the missing columns that no upgrade adds."""
    present = {column.name for column in columns}
    upgrade = read_sql("clickhouse/upgrade.sql") if is_upgraded else ""
    added = re.findall(r"ADD COLUMN IF NOT EXISTS (\w+)", upgrade)
    missing = {
        column.name: f"ADD COLUMN {quote_identifier(column.name)} {column.clickhouse_type}"
        + (f" AFTER {quote_identifier(before.name)}" if before else " FIRST")
        for before, column in pairwise([None, *COLUMNS])
        if column and column.name not in present and column.name not in added
    }
    if missing:
        yield Problem(
            f"{table} has no column {', '.join(missing)}",
            f"ALTER TABLE {table} {', '.join(missing.values())};",
        )


def _check_types(table: str, columns: Sequence[HeldColumn], anew: str) -> Iterator[Problem]:
    """Name the columns that cannot hold all that a batch may have, with what they lose."""
    for column in columns:
        if column.lost:
            consequence = f"an hour with {column.lost} there cannot be loaded"
        elif column.unit > 1:
            consequence = f"times are rounded down to {column.unit / 10**6:g} s, and compared so"
        else:
            continue
        yield Problem(
            f"{table}: column {column.name} is {column.type}, not {column.wanted_type}: "
            f"{consequence}",
            f"{anew} (no ALTER changes the column: it is in the table's key)"
            if column.is_key
            else f"ALTER TABLE {table} {column.alteration};",
            is_fatal=not column.holds_most,
        )
