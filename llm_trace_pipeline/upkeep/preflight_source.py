"""What is missing in the operational database before a load, with the exact repair."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import pyarrow as pa

from llm_trace_pipeline.errors import SourceError
from llm_trace_pipeline.source.postgres import Source, unfit_columns
from llm_trace_pipeline.source.session import SHOW_ALL_ROWS, Session, files_that_name
from llm_trace_pipeline.source.snapshot import OPTIONAL_TABLES, Snapshot
from llm_trace_pipeline.source.standby import UnknownLagError, ask_lag
from llm_trace_pipeline.sql import read_sql, render
from llm_trace_pipeline.trace.billing import HISTORY_SCHEMA
from llm_trace_pipeline.upkeep.problems import Problem

_TRACE = (
    "id created_at updated_at is_deleted org_id organization_id agent_id agent_tags run_id step_id "
    "call_type"
)
_STEP_TOKENS = (
    "prompt_tokens completion_tokens total_tokens cached_input_tokens cache_write_tokens "
    "reasoning_tokens"
)
# The statements of sql/operational decide whether something is missing: they may have been edited.
# PostgreSQL names the first missing column only; by these names all of them are named at once.
_TABLES = {
    "provider_traces": f"{_TRACE} request_json response_json llm_config",
    "provider_trace_metadata": _TRACE,
    "steps": f"id created_at is_deleted project_id trace_id provider_name provider_category model "
    f"{_STEP_TOKENS}",
    "step_metrics": "id llm_request_ns",
    "organization_billing_details": "organization_id plan_type cost_source stripe_customer_id "
    "created_at updated_at",
}
_HOURLY_TABLES = ("provider_traces", "provider_trace_metadata", "steps")
_STATEMENTS = ("ledger", "folded", "traces", "too_wide", "unaccounted_steps")
_BILLING = "operational/billing.sql"
_BILLING_FIELDS = [field for field in HISTORY_SCHEMA if field.name != "seen_at"]


def check_source(source: Source, until: datetime) -> list[Problem]:
    """Return the problems of the operational database; ``until`` ends the last hour to load."""
    with ExitStack() as stack:
        try:
            session = stack.enter_context(source.session())
        except SourceError as error:
            repair = (
                "check host, port, database, role and password in OPERATIONAL_DATABASE_URL, and "
                "whether the server lets this machine in (pg_hba.conf)"
            )
            return [Problem(str(error), repair)]
        snapshot = Snapshot(source.session, session)
        session.set(
            tables=json.dumps({table: names.split() for table, names in _TABLES.items()}),
            **dict.fromkeys(("start", "end"), until.isoformat()),
            **dict.fromkeys(("folded", "too_wide"), "[]"),
        )
        tables = session.rows(read_sql("preflight/tables.sql"))
        [server] = session.rows(read_sql("preflight/server.sql"))
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
            *(Problem(found.message, found.repair) for found in unfit_columns(session)),
            *_check_indexes(tables),
            *_check_hours(snapshot),
            *_check_billing(session, answers[read_sql(_BILLING)]),
        ]


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
    if table["hides_rows"]:
        yield Problem(
            f"a row-level security policy hides rows of {qualified}: {role} can load no hour",
            SHOW_ALL_ROWS.replace("…", role),
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


def _check_hours(snapshot: Snapshot) -> Iterator[Problem]:
    """Count the traces that no load will ever see."""
    answer = _ask(snapshot.leader, snapshot.statement("outside_hours"))
    if isinstance(answer, SourceError):  # said by _check_statements
        return
    [outside] = answer.to_pylist()
    if outside["rows"]:
        yield Problem(
            f"{outside['rows']} traces are of no hour: their created_at is missing, infinite, "
            "before 1970 or more than a day ahead; no load sees them",
            "UPDATE provider_traces SET created_at = …; such as to the time of their step",
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
            "edit that file: (…)::text AS plan_type gives a column its type, "
            "(…) AT TIME ZONE 'UTC' AS valid_from a time its zone",
        )
        return
    [nulls] = session.rows(render("preflight/unplaced_billing.sql", billing=read_sql(_BILLING)))
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
