"""Preflight: what is missing at either end, with the exact repair."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

import pyarrow as pa

from llm_trace_pipeline.batches.files import files_of
from llm_trace_pipeline.clickhouse.client import Database, connect
from llm_trace_pipeline.clickhouse.cluster import LOCAL_TABLE, shards_of
from llm_trace_pipeline.clickhouse.tables import TABLE, layout_of, newer_schema, schema_version
from llm_trace_pipeline.errors import BatchError, ClickHouseError, SourceError
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.source.postgres import OPTIONAL_TABLES, Session, Source, files_that_name
from llm_trace_pipeline.source.standby import UnknownLagError, ask_lag
from llm_trace_pipeline.sql import quote_identifier, read_sql
from llm_trace_pipeline.trace.billing import HISTORY_SCHEMA
from llm_trace_pipeline.trace.columns import COLUMNS, SCHEMA_VERSION

_TRACE = (
    "id created_at updated_at is_deleted org_id organization_id agent_id agent_tags run_id step_id "
    "call_type"
)
_STEP_TOKENS = (
    "prompt_tokens completion_tokens total_tokens cached_input_tokens cache_write_tokens "
    "reasoning_tokens"
)
# Whether something is missing is for the statements to say, which may have been edited; these only
# let everything that is missing be named at once, where PostgreSQL names the first.
_TABLES = {
    "provider_traces": f"{_TRACE} request_json response_json llm_config",
    "provider_trace_metadata": _TRACE,
    "steps": f"id created_at is_deleted project_id trace_id provider_name provider_category model "
    f"{_STEP_TOKENS}",
    "step_metrics": "id llm_request_ns",
    "organization_billing_details": "organization_id plan_type cost_source stripe_customer_id "
    "created_at updated_at",
}
_HOURLY_TABLES = ("provider_traces", "provider_trace_metadata")
_PROBE = "preflight"  # an object that is written and removed
_STATEMENTS = ("ledger", "folded", "traces", "too_wide", "unaccounted_steps")
_BILLING = "operational/billing.sql"
_BILLING_FIELDS = [field for field in HISTORY_SCHEMA if field.name != "seen_at"]

_SAFE_VERSION = (26, 6)
_CHECK_GRANT_VERSION = (25, 1)
_LOADER_PRIVILEGES = (
    "SELECT, INSERT, ALTER ADD COLUMN, ALTER MODIFY COMMENT, ALTER DELETE, CREATE TABLE, DROP TABLE"
    ", CREATE VIEW, DROP VIEW"
)
_PARTITION_KEY, _SORTING_KEY = "toDate(created_at)", "organization_id, created_at, id"
_PROJECTION_MODE = "lightweight_mutation_projection_mode"


@dataclass(frozen=True)
class Problem:
    """What is wrong, and what to do about it; a load fails if it is fatal."""

    message: str
    repair: str
    is_fatal: bool = True

    def __str__(self) -> str:
        """Return the lines that an operator reads."""
        kind = "error" if self.is_fatal else "warning"
        return f"{kind}: {' '.join(self.message.split())}\n  repair: {self.repair}"


def check_source(source: Source, until: datetime) -> list[Problem]:
    """Return what is wrong with the operational database.

    Args:
        source: the operational database.
        until: the end of the last hour to load.
    """
    with ExitStack() as stack:
        try:
            snapshot = stack.enter_context(source.snapshot())
        except SourceError as error:
            repair = (
                "check host, port, database, role and password in OPERATIONAL_DATABASE_URL, and "
                "whether the server lets this machine in (pg_hba.conf)"
            )
            return [Problem(str(error), repair)]
        session = snapshot.leader
        session.set(
            tables=json.dumps({table: names.split() for table, names in _TABLES.items()}),
            **dict.fromkeys(("start", "end"), until.isoformat()),
            **dict.fromkeys(("folded", "too_wide"), "[]"),
        )
        tables = session.rows(read_sql("preflight/tables.sql"))
        [server] = session.rows(
            "SELECT quote_ident(current_user) AS role, quote_ident(current_database()) AS database,"
            " current_setting('server_encoding') AS encoding, pg_is_in_recovery() AS is_standby"
        )
        statements = [*(snapshot.statement(name) for name in _STATEMENTS), read_sql(_BILLING)]
        # Without rows: names, types and grants are checked, and nothing is read.
        answers = {
            sql: _ask(session, f"SELECT * FROM (\n{sql}\n) AS planned LIMIT 0")
            for sql in statements
        }
        return [
            *_check_encoding(server["encoding"]),
            *(_check_standby(session, until) if server["is_standby"] else []),
            *_check_statements(answers, tables, server),
            *_check_indexes(tables),
            *_check_billing(session, answers[read_sql(_BILLING)]),
        ]


def check_batches(settings: Settings) -> list[Problem]:
    """Return what is wrong with the place of the batches; in a bucket, by writing to it."""
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


def _check_encoding(encoding: str) -> Iterator[Problem]:
    if encoding != "UTF8":
        yield Problem(
            f"the operational database is encoded in {encoding}, and sizes are counted in UTF-8",
            "dump it and restore it into one made by "
            "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0;",
        )


def _check_standby(session: Session, until: datetime) -> list[Problem]:
    try:
        lag = ask_lag(session, until)
    except UnknownLagError as error:
        repair = "load an hour only after this standby has all of it, or use the primary"
        return [Problem(str(error), repair, is_fatal=False)]
    return [Problem(lag.message, lag.repair)] if lag else []


def _check_statements(
    answers: dict[str, pa.Table | SourceError],
    tables: Sequence[dict[str, Any]],
    server: dict[str, Any],
) -> list[Problem]:
    """Name all that is missing of what a refused statement reads."""
    problems: list[Problem] = []
    for sql, answer in answers.items():
        if isinstance(answer, SourceError):
            known = [
                problem
                for table in tables
                if re.search(rf"\b{table['name']}\b", sql)
                for problem in _explain(table, server)
            ]
            problems += known or [Problem(str(answer), "edit that file, or grant what is refused")]
    return list(dict.fromkeys(problems))


def _explain(table: dict[str, Any], server: dict[str, Any]) -> Iterator[Problem]:
    """Say what of a table is missing or refused."""
    name, qualified, schema, role = (
        *(table[key] for key in ("name", "qualified", "elsewhere")),
        server["role"],
    )
    files = files_that_name(name)
    if not qualified and name not in OPTIONAL_TABLES:
        yield Problem(
            f"the operational database has no table {name}, which is read by {files}",
            f"ALTER ROLE {role} IN DATABASE {server['database']} SET search_path = {schema}; "
            f"GRANT USAGE ON SCHEMA {schema} TO {role};"
            if schema
            else "set OPERATIONAL_DATABASE_URL to the agent server's database, or edit "
            f"{files} if yours is called otherwise",
        )
    if qualified and table["missing"]:
        yield Problem(
            f"{qualified} has no column {', '.join(table['missing'])}, read by {files}",
            f"edit {files} if yours is called otherwise, or bring the agent server up to date",
        )
    if qualified and not table["is_readable"]:
        yield Problem(
            f"{role} may not read {qualified}, which {files} does",
            f"GRANT SELECT ON {qualified} TO {role};",
        )


def _check_indexes(tables: Sequence[dict[str, Any]]) -> Iterator[Problem]:
    for table in tables:
        # PostgreSQL has no CONCURRENTLY for a partitioned table; a view takes no index at all.
        how = {"r": " CONCURRENTLY", "p": ""}.get(table["kind"])
        if table["name"] in _HOURLY_TABLES and how is not None and not table["has_index"]:
            yield Problem(
                f"no index of {table['qualified']} begins with created_at: every run scans the "
                "whole table",
                f"CREATE INDEX{how} ON {table['qualified']} (created_at);",
                is_fatal=False,
            )


def _check_billing(session: Session, answer: pa.Table | SourceError) -> Iterator[Problem]:
    if isinstance(answer, SourceError):  # said by _check_statements
        return
    unfit = [
        f"{field.name} {'timestamptz' if pa.types.is_timestamp(field.type) else 'text'}"
        for field in _BILLING_FIELDS
        if [each.type for each in answer.schema if each.name == field.name] != [field.type]
    ]
    if unfit:
        yield Problem(
            f"sql/{_BILLING} does not return {', '.join(unfit)}",
            "edit that file: a cast, such as (…)::text AS plan_type, gives a column its type",
        )
        return
    [nulls] = session.rows(
        f"SELECT count(*) AS rows FROM (\n{read_sql(_BILLING)}\n) AS mapping "
        "WHERE organization_id IS NULL OR valid_from IS NULL"
    )
    if nulls["rows"]:
        yield Problem(
            f"sql/{_BILLING} returns {nulls['rows']} rows without organization_id or valid_from; "
            "loads leave them aside",
            "edit that file: give these a value by coalesce(), or leave them out by WHERE",
            is_fatal=False,
        )


def _ask(session: Session, sql: str) -> pa.Table | SourceError:
    """Return the answer, or why there is none; the transaction goes on in either case."""
    try:
        with session.savepoint():
            return session.table(sql)
    except SourceError as error:
        return error


def check_target(settings: Settings) -> list[Problem]:
    """Return what is wrong with ClickHouse."""
    with ExitStack() as stack:
        try:
            database = stack.enter_context(connect(settings, attempts=1))
        except ClickHouseError as error:
            return [Problem(error.message, error.repair or _way_in(settings))]
        refused = list(_check_grants(database, settings))
        return [
            *_check_version(database.version),
            *(refused or _check_tables(database)),
        ]


def _way_in(settings: Settings) -> str:
    if settings.clickhouse_endpoint.startswith("chdb:"):
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
    for grant in _needed_grants(settings):
        if str(database.value(f"CHECK GRANT {grant}")) != "1":
            [user] = database.rows("SELECT currentUser() AS name")
            yield Problem(
                f"ClickHouse: {user['name']} lacks {grant}",
                f"GRANT {grant} TO {quote_identifier(user['name'])};",
            )


def _needed_grants(settings: Settings) -> list[str]:
    name = settings.clickhouse_database
    everything = f"{quote_identifier(name)}.*"
    return [
        # CREATE DATABASE IF NOT EXISTS needs its privilege also where there is nothing to create.
        *([f"CREATE DATABASE ON {everything}"] if name != "default" else []),
        f"{_LOADER_PRIVILEGES} ON {everything}",
        *(f"SELECT ON system.{table}" for table in ("tables", "columns", "parts", "processes")),
        *(["S3 ON *.*"] if settings.is_in_bucket else []),
        *(_needed_grants_of_cluster(name) if settings.clickhouse_cluster else []),
    ]


def _needed_grants_of_cluster(name: str) -> list[str]:
    return [
        "CLUSTER ON *.*",
        "REMOTE ON *.*",  # to make a Distributed table
        f"SYSTEM SYNC REPLICA ON {quote_identifier(name)}.*",
        "SELECT ON system.clusters",
    ]


def _check_tables(database: Database) -> list[Problem]:
    """Return what is wrong with the table; in a cluster, with that of each shard."""
    if not database.cluster:
        table = database.qualified(TABLE)
        before = database.qualified(f"{TABLE}_before")
        anew = f"RENAME TABLE {table} TO {before}; then make backfill"
        return _check_table(database, TABLE, table, anew)
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
        problems += _check_table(shard, LOCAL_TABLE, table, anew)
    return list(dict.fromkeys(problems))


def _check_table(database: Database, name: str, table: str, anew: str) -> list[Problem]:
    """Return what is wrong with a table.

    Args:
        database: where it is.
        name: of the table.
        table: what it is called in statements that mend it.
        anew: how to get another one.
    """
    layout = layout_of(database, name)
    if not layout:
        return []
    if not layout["engine"].endswith("MergeTree"):
        return [Problem(f"{table} is a {layout['engine']}, not a MergeTree", anew)]
    columns = database.rows(
        "SELECT name, type, is_in_sorting_key OR is_in_partition_key AS is_key "
        "FROM system.columns WHERE database = {database:String} AND table = {table:String}",
        {"database": database.name, "table": name},
    )
    if newer := newer_schema(table, layout):
        return [Problem(newer.message, newer.repair)]
    is_upgraded = schema_version(layout) < SCHEMA_VERSION
    problems = [
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
    for key, expected, cost in (
        ("partition_key", _PARTITION_KEY, "every hour loaded clones and verifies its partition"),
        ("sorting_key", _SORTING_KEY, "an organization's calls of a time are slower to find"),
    ):
        if layout[key] != expected:
            what = f"{key.replace('_', ' ')} ({layout[key]}), not ({expected})"
            problems.append(
                Problem(f"{table} has the {what}: it is kept, but {cost}", anew, is_fatal=False)
            )
    return problems


def _check_missing(
    table: str, columns: Sequence[dict[str, Any]], *, is_upgraded: bool
) -> Iterator[Problem]:
    """Name the missing columns, but for those that an upgrade adds."""
    present = {column["name"] for column in columns}
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


def _check_types(table: str, columns: Sequence[dict[str, Any]], anew: str) -> Iterator[Problem]:
    expected = {column.name: column.clickhouse_type for column in COLUMNS}
    for column in columns:
        name, found = column["name"], column["type"]
        wanted = expected.get(name, found)
        # A NULL that is not expected is never stored; one that cannot be stored would become 0.
        if _essence(wanted) not in (
            _essence(found),
            re.sub(r"Nullable\((.*)\)", r"\1", _essence(found)),
        ):
            modify = f"ALTER TABLE {table} MODIFY COLUMN {quote_identifier(name)} {wanted};"
            yield Problem(
                f"{table}: column {name} is {found}, not {wanted}",
                anew if column["is_key"] else modify,
            )


def _essence(clickhouse_type: str) -> str:
    """Return the type without what changes no value: a dictionary, the time zone shown."""
    bare = re.sub(r"LowCardinality\((.*?\)?)\)", r"\1", clickhouse_type)
    return re.sub(r"(?<=^DateTime64\(6), '[^']*'", "", bare)
