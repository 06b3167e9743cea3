"""What it costs to see which hours changed: ``python -m bench.ledger`` times the source's ledger.

30 days with 10 million traces, each with its step and its metrics, in a PostgreSQL of their own,
which is kept for the next run. The payloads are small: the ledger reads none.
"""

import argparse
import re
import time
from datetime import UTC, datetime, timedelta

from adbc_driver_postgresql import dbapi

from bench.__main__ import DATA, say
from bench.data import execute, start_server
from llm_trace_pipeline.hours import Window
from llm_trace_pipeline.source.postgres import Source
from llm_trace_pipeline.sql import read_sql

START = datetime(2026, 3, 1, tzinfo=UTC)
DAYS = 30
TRACES = 10_000_000
WINDOWS = (1, 7, 30)  # days, up to the end
RUNS = 3  # after one that warms up

# What is stored of one day, a pure function of the numbers: 200 organizations of skewed sizes.
_ROWS = """
CREATE TEMPORARY TABLE calls AS
SELECT
    md5('call ' || number) AS key,
    'step-' || md5('step ' || number)::uuid AS step_id,
    floor(pow(201, (hashint8extended(number, 1) & 1048575) / 1048576.0))::int - 1 AS rank,
    (hashint8extended(number, 2) & 15)::int AS agent,
    (hashint8extended(number, 3) & 16383)::int AS tokens,
    number % 10 AS model,
    '{day}'::timestamptz + (number - {first}) * interval '1 day' / {count} AS created_at
FROM generate_series({first}, {first} + {count} - 1) AS number;
INSERT INTO provider_traces (
    id, request_json, response_json, step_id, agent_id, agent_tags, call_type, run_id, source,
    org_id, llm_config, organization_id, created_at, updated_at
)
SELECT
    'provider_trace-' || key::uuid, json_build_object('model', 'model-' || model),
    json_build_object('usage', json_build_object('total_tokens', tokens)), step_id,
    'agent-' || md5(rank || ' ' || agent)::uuid, '["production", "eu"]', 'agent_step',
    'run-' || md5('run ' || key)::uuid, 'memgpt-server', 'org-' || md5('org ' || rank)::uuid,
    '{{"model_endpoint_type": "openai"}}', 'org-' || md5('org ' || rank)::uuid,
    created_at, created_at
FROM calls;
INSERT INTO steps (
    id, organization_id, project_id, trace_id, provider_name, provider_category, model,
    prompt_tokens, completion_tokens, total_tokens, cached_input_tokens, created_at, updated_at
)
SELECT
    step_id, 'org-' || md5('org ' || rank)::uuid, 'project-' || md5('project ' || rank)::uuid, key,
    'openai', 'base', 'model-' || model, tokens, tokens / 10, tokens + tokens / 10, tokens / 2,
    created_at, created_at
FROM calls;
INSERT INTO step_metrics (id, llm_request_ns, created_at, updated_at)
SELECT step_id, tokens * 1000000::bigint, created_at, created_at FROM calls;
DROP TABLE calls
"""


def main() -> None:
    """Make the rows where they are missing, measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.ledger")
    parser.add_argument("--scale", type=float, default=1.0, help="a trial: less data")
    url = ensure_rows(start_server(DATA / "ledger"), round(TRACES * parser.parse_args().scale))
    execute(url, read_sql("demo/schema.sql"))  # makes the index that an earlier run dropped
    measure(url, "index on created_at")
    execute(url, "DROP INDEX ix_provider_traces_created_at")
    measure(url, "no index on created_at")


def ensure_rows(server_url: str, traces: int) -> str:
    """Make the rows where they are missing; return the URL of their database."""
    name = f"ledger_{traces}"
    url = server_url.replace("/postgres?", f"/{name}?", 1)
    with dbapi.connect(server_url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_database WHERE datname = $1", (name,))
        if cursor.fetchone():
            return url
    say(f"making {traces:,} traces")
    # Under another name, so that an interrupted run leaves no half-made rows behind.
    execute(server_url, f"DROP DATABASE IF EXISTS {name}_new", f"CREATE DATABASE {name}_new")
    new_url = url.replace("?", "_new?", 1)
    # Keys are random: to sort them once at the end takes a fraction of filling an index with them.
    keyed = ("provider_traces", "steps", "step_metrics")
    execute(
        new_url,
        read_sql("demo/schema.sql"),
        "DROP INDEX ix_step_id, ix_provider_traces_created_at",
        *(f"ALTER TABLE {table} DROP CONSTRAINT {table}_pkey" for table in keyed),
    )
    count = traces // DAYS
    for number in range(DAYS):
        day = START + timedelta(days=number)
        execute(new_url, _ROWS.format(day=day.isoformat(), first=number * count, count=count))
    execute(
        new_url,
        *(f"ALTER TABLE {table} ADD PRIMARY KEY (id)" for table in keyed),
        read_sql("demo/schema.sql"),
        "VACUUM ANALYZE",
        "CHECKPOINT",
    )
    execute(server_url, f"ALTER DATABASE {name}_new RENAME TO {name}")
    return url


def measure(url: str, title: str) -> None:
    """Time the ledger of each window, as the job that finds changed hours asks for it."""
    end = START + timedelta(days=DAYS)
    with Source(url).snapshot() as snapshot:
        hash_function = re.search(r"hash\w+extended", snapshot.statement("ledger"))
        assert hash_function is not None
        say(f"\n{title}, {hash_function[0]}")
        for days in WINDOWS:
            seconds = []
            for _ in range(RUNS + 1):
                started = time.perf_counter()
                ledger = snapshot.ledger(Window(end - timedelta(days=days), end))
                seconds.append(time.perf_counter() - started)
                assert len(ledger) == days * 24, len(ledger)
            rows = sum(hour.rows for hour in ledger.values())
            runs = ", ".join(f"{each:.1f}" for each in seconds[1:])
            say(f"{days:4} days {rows:12,} traces   s: {runs} (first {seconds[0]:.1f})")


if __name__ == "__main__":
    main()
