"""The read side: ``python -m bench.read`` asks 30 days of the table as analysts and support do.

The same rows lie in three tables: ``loaded``, by day as hourly loads and the engine's own merges
left it; ``daily``, the same with each day merged to the end; ``monthly``, one partition, merged to
the end. What a partition a day costs a reader is the ratio to the last. All are kept for the next
run.
"""

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

from bench.__main__ import DATA, ROOT, machine, say
from llm_trace_pipeline.clickhouse.client import Database, connect
from llm_trace_pipeline.clickhouse.tables import IN_WINDOW, define_table, has_table
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.sql import render
from llm_trace_pipeline.trace.columns import COLUMNS

RESULTS = ROOT / "bench" / "read.json"
START = datetime(2026, 3, 1, tzinfo=UTC)  # the days lie in one month
DAYS = 30
ROWS_AN_HOUR = 10_000
RUNS = 15
TABLES = ("loaded", "daily", "monthly")

# Processor time is that of all threads of the engine: what else the machine does changes it less.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
Medians = dict[str, dict[str, float]]  # milliseconds by query and table

# The calls of one hour, a pure function of their numbers. Of 200 organizations the first makes 13 %
# of the calls, the hundredth 0.2 %; each has 20 agents; of 10 models the first has a third.
_CALLS = """
INSERT INTO {table} ({columns})
WITH
    toUInt64(pow(201, sipHash64('rank', number) / pow(2, 64))) - 1 AS rank,
    toUInt64(10 * pow(sipHash64('model', number) / pow(2, 64), 2)) AS model_number,
    rank * 20 + sipHash64('agent', number) % 20 AS agent,
    (name, key) -> toString(reinterpretAsUUID(sipHash128(name, key))) AS uuid_of
SELECT
    uuid_of('id', number) AS id,
    'org-' || uuid_of('organization', rank) AS organization_id,
    'project-' || uuid_of('project', intDiv(agent, 4)) AS project_id,
    'agent-' || uuid_of('agent', agent) AS agent_id,
    if(agent % 2 = 1, ['production', 'eu'], []) AS agent_tags,
    'run-' || uuid_of('run', intDiv(number, 4)) AS run_id,
    'step-' || uuid_of('step', number) AS step_id,
    lower(hex(sipHash128('trace', number))) AS trace_id,
    'agent_step' AS call_type,
    ['openai', 'anthropic', 'google_ai'][model_number % 3 + 1] AS provider,
    'model-' || toString(model_number) AS model,
    rank % 10 = 9 AS is_byok,
    length(request_json) AS request_size_bytes,
    length(response_json) AS response_size_bytes,
    100 + sipHash64('prompt', number) % 20000 AS prompt_tokens,
    10 + sipHash64('completion', number) % 2000 AS completion_tokens,
    prompt_tokens + completion_tokens AS total_tokens,
    if(model_number % 3 = 2, NULL, intDiv(prompt_tokens, 2)) AS cached_input_tokens,
    if(model_number % 3 = 1, intDiv(prompt_tokens, 10), NULL) AS cache_write_tokens,
    if(model_number % 3 = 0, intDiv(completion_tokens, 3), NULL) AS reasoning_tokens,
    500 + sipHash64('latency', number) % 20000 AS latency_ms,
    sipHash64('error', number) % 50 = 0 AS is_error,
    if(is_error, 'rate_limit_error', '') AS error_type,
    if(is_error, 'Too many requests', '') AS error_message,
    '{"model":"' || model || '","messages":[{"role":"user","content":"'
        || hex(sipHash128('request', number)) || '"}]}' AS request_json,
    '{"id":"' || trace_id || '","usage":{"prompt_tokens":' || toString(prompt_tokens)
        || ',"completion_tokens":' || toString(completion_tokens) || '}}' AS response_json,
    '{"model":"' || model || '","model_endpoint_type":"' || provider || '"}' AS llm_config_json,
    ['free', 'basic', 'pro', 'max'][rank % 4 + 1] AS billing_plan_type,
    if(rank % 4 = 0, 'quota', 'credits') AS billing_cost_source,
    'cus_' || toString(rank) AS billing_customer_id,
    {hour:DateTime64(6, 'UTC')} + toIntervalMicrosecond(
        intDiv((number - {first:UInt64}) * 3600000000, {count:UInt64})
    ) AS created_at,
    'as_of' AS billing_match,
    xxh3(request_json, response_json) AS payload_hash
FROM numbers({first:UInt64}, {count:UInt64})
"""

# Else the engine remembers which granules the same condition found empty.
_FAIR = "use_query_condition_cache = 0"
_OF_ORGANIZATION = "organization_id = {organization:String}"
_OF_STEP = "step_id = {step:String}"
_USAGE = (
    "count() AS calls, sum(prompt_tokens) AS prompt, sum(completion_tokens) AS completion, "
    "sum(cached_input_tokens) AS cached, sum(total_tokens) AS total FROM {table}"
)
_BY_MODEL = (
    f"SELECT model, {_USAGE} WHERE {_OF_ORGANIZATION} AND {IN_WINDOW} GROUP BY ALL ORDER BY ALL"
)
_LAST = (
    "SELECT id, created_at, agent_id, step_id, model, total_tokens, latency_ms, is_error "
    f"FROM {{table}} WHERE {_OF_ORGANIZATION} ORDER BY created_at DESC LIMIT 20"
)
_LATEST = "ORDER BY created_at DESC LIMIT 1"
# Of each: the statement, and whose calls it asks for: those of the organization with the nth most,
# or one call's (None), another one in each run.
QUERIES: dict[str, tuple[str, int | None]] = {
    "usage by model, big organization": (_BY_MODEL, 0),
    "usage by model, typical organization": (_BY_MODEL, 99),
    "last 20 calls, big organization": (_LAST, 0),
    "last 20 calls, typical organization": (_LAST, 99),
    "call by organization and step_id": (
        f"SELECT * FROM {{table}} WHERE {_OF_ORGANIZATION} AND {_OF_STEP} {_LATEST}",
        None,
    ),
    "call by step_id": (f"SELECT * FROM {{table}} WHERE {_OF_STEP} {_LATEST}", None),
    "call by id": ("SELECT * FROM {table} WHERE id = {id:String}", None),
    "usage by plan": (
        f"SELECT billing_plan_type AS plan, {_USAGE} WHERE {IN_WINDOW} GROUP BY ALL ORDER BY ALL",
        None,
    ),
}


def main() -> None:
    """Make the tables where they are missing, measure, print, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.read")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"of each query; default: {RUNS}")
    parser.add_argument("--scale", type=float, default=1.0, help="a trial: less data, no file")
    arguments = parser.parse_args()
    count = round(ROWS_AN_HOUR * arguments.scale)
    endpoint = f"chdb://{DATA / f'read_{count}'}"
    # As a server has it: the allocator's setting that bounds a load doubles what a query takes.
    os.environ["JE_MALLOC_CONF"] = "dirty_decay_ms:5000"
    with connect(Settings.model_validate({"CLICKHOUSE_ENDPOINT": endpoint})) as database:
        if not has_table(database, TABLES[-1]):
            make_tables(database, count)
        parts = {table: part_count(database, table) for table in TABLES}
        medians = measure(database, TABLES, arguments.runs)
    for clock in CLOCKS:
        print_table(clock, medians[clock], parts)
    if arguments.scale == 1:
        results: dict[str, Any] = {
            "machine": machine(),
            "rows": count * 24 * DAYS,
            "parts": parts,
            "median_ms": medians,
            "over_monthly": {
                clock: {
                    query: {
                        table: round(each[table] / each["monthly"], 2)
                        for table in ("loaded", "daily")
                    }
                    for query, each in of_clock.items()
                }
                for clock, of_clock in medians.items()
            },
        }
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        say(f"\nwritten to {RESULTS.relative_to(ROOT)}")


def make_tables(database: Database, count: int) -> None:
    """Make the three tables; the last one is complete when it has its name."""
    say(f"making {count * 24 * DAYS:,} rows three times")
    for table in (*TABLES, "new"):
        database.execute(f"DROP TABLE IF EXISTS {database.qualified(table)}")
    define_table(database, "loaded")
    calls = _CALLS.replace("{table}", database.qualified("loaded")).replace(
        "{columns}", ", ".join(column.name for column in COLUMNS)
    )
    for number in range(24 * DAYS):
        values = {"hour": START + number * HOUR, "first": number * count, "count": count}
        database.execute(calls, values)
    while database.rows("SELECT 1 FROM system.merges"):
        time.sleep(1)  # the engine has no statement that waits for its merges
    database.execute(  # what is measured stays as it is
        f"ALTER TABLE {database.qualified('loaded')} "
        "MODIFY SETTING max_bytes_to_merge_at_max_space_in_pool = 1"
    )
    add_copy(database, "daily")
    add_copy(
        database, "new", ("PARTITION BY toDate(created_at)", "PARTITION BY toYYYYMM(created_at)")
    )
    database.execute(
        f"RENAME TABLE {database.qualified('new')} TO {database.qualified(TABLES[-1])}"
    )


def add_copy(database: Database, table: str, *changes: tuple[str, str]) -> None:
    """Make a table of the same rows by the same definition but for some changes, and merge it."""
    definition = render(
        "clickhouse/llm_traces.sql", table=database.qualified(table), engine="MergeTree"
    )
    for old, new in changes:
        assert old in definition, old
        definition = definition.replace(old, new)
    database.execute(definition)
    database.execute(
        f"INSERT INTO {database.qualified(table)} SELECT * FROM {database.qualified('loaded')}"
    )
    database.execute(f"OPTIMIZE TABLE {database.qualified(table)} FINAL")


def part_count(database: Database, table: str) -> int:
    """Return how many parts a table consists of."""
    count: int = database.rows(
        "SELECT count() AS parts FROM system.parts WHERE database = {database:String} "
        "AND table = {table:String} AND active",
        {"database": database.name, "table": table},
    )[0]["parts"]
    return count


def measure(database: Database, tables: Sequence[str], runs: int) -> dict[str, Medians]:
    """Ask each table in turn, so that what else the machine does meets all of them alike."""
    monthly = database.qualified("monthly")
    organizations = database.rows(
        f"SELECT organization_id AS organization FROM {monthly} GROUP BY ALL ORDER BY count() DESC"
    )
    calls = database.rows(
        "SELECT organization_id AS organization, step_id AS step, id "
        f"FROM {monthly} ORDER BY sipHash64(id) LIMIT {runs + 1}"
    )
    window = {"start": START, "end": START + timedelta(days=DAYS)}
    seconds: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for number in range(runs + 1):  # the first one warms up
        for query, (statement, rank) in QUERIES.items():
            values = window | (calls[number] if rank is None else organizations[rank])
            answers = []
            for table in tables:
                sql = statement.replace("{table}", database.qualified(table))
                started = {clock: now() for clock, now in CLOCKS.items()}
                answers.append(database.rows(f"{sql} SETTINGS {_FAIR}", values))
                if number:
                    for clock, now in CLOCKS.items():
                        seconds[clock, query, table].append(now() - started[clock])
            assert answers[0], query
            assert all(answer == answers[0] for answer in answers), query
    return {
        clock: {
            query: {
                table: round(median(seconds[clock, query, table]) * 1000, 2) for table in tables
            }
            for query in QUERIES
        }
        for clock in CLOCKS
    }


def print_table(clock: str, medians: Medians, parts: dict[str, int]) -> None:
    """Print a line per query: milliseconds in each table, and the ratio to the last one."""
    *others, last = parts
    say(f"\n{f'median ms, {clock}':38}{''.join(f'{table:>12}' for table in parts)}")
    say(f"{'parts':38}{''.join(f'{count:12}' for count in parts.values())}")
    for query, of_query in medians.items():
        ratios = "".join(
            f"  {table}/{last} {of_query[table] / of_query[last]:5.2f}" for table in others
        )
        say(f"{query:38}{''.join(f'{of_query[table]:12.1f}' for table in parts)}{ratios}")


if __name__ == "__main__":
    main()
