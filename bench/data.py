"""What is measured: one hour of traces per data set, each in a database of its own.

The rows are a pure function of the data set, and are kept for the next run.
"""

import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from adbc_driver_postgresql import dbapi

from bench import agents
from llm_trace_pipeline.demo.postgres import embedded_postgres
from llm_trace_pipeline.demo.responses import (
    ERRORS,
    RECIPES,
    draw_call,
    fill,
    json_text,
    step_counts,
)
from llm_trace_pipeline.demo.rows import ORGANIZATIONS, billing_details, organization_id
from llm_trace_pipeline.demo.text import chance, corpus, random_uuid
from llm_trace_pipeline.demo.traffic import insert
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.source.postgres import Source
from llm_trace_pipeline.sql import read_sql

VERSION = 5  # of the databases; another one makes them anew
START = datetime(2026, 3, 2, 9, tzinfo=UTC)

_AGENTS_PER_ORGANIZATION = 20
_WEIGHTS = [1 / (number + 1) for number in ORGANIZATIONS]
_GIANT_CHARACTERS = (21_000_000, 48_000_000)  # 20 to 50 MB of JSON
_PROCESSES = 2

# Nothing here needs to survive a power cut, and no checkpoint shall fall into a measurement. The
# rest is stock, the 128 MB of shared buffers and pglz for long values included.
_SERVER_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_wal_size": "'16GB'",
    "checkpoint_timeout": "'1d'",
}


@dataclass(frozen=True)
class DataSet:
    """One hour of traces."""

    name: str
    traces: int
    row_bytes: int  # about how much JSON a trace has, on average
    passage: int  # mean characters of the text of a request; a response has a quarter of that
    giants: int = 0  # traces of 20 to 50 MB among them
    is_of_agents: bool = False  # which resend their context; see agents.py
    runs: int = 5  # of each contender, unless the command line says otherwise

    @property
    def block_rows(self) -> int:
        """How many rows make a block of 64 MB, for those who bound their blocks by rows."""
        return 2**26 // self.row_bytes

    @property
    def is_large(self) -> bool:
        """Whether it is too much to be held in memory."""
        return self.traces * self.row_bytes > 10**9

    @property
    def database(self) -> str:
        """The name of the database that holds it."""
        return f"{self.name}_{self.traces}_v{VERSION}"

    def scaled(self, scale: float) -> "DataSet":
        """Return the same kind of data, but less of it."""
        return replace(self, traces=round(self.traces * scale), giants=round(self.giants * scale))


DATA_SETS = {
    data_set.name: data_set
    for data_set in (
        DataSet("agents", 4_000, 65_000, 0, is_of_agents=True),
        DataSet("wide", 50_000, 7_600, 5_250),
        DataSet("huge", 500_000, 7_600, 5_250, runs=3),
        DataSet("narrow", 500_000, 900, 240),
        # 100 TB a day are a billion of these; see docs/performance.md.
        DataSet("heavy", 4_000, 100_000, 77_500, runs=3),
        DataSet("giant", 10_200, 700_000, 240, giants=200, runs=2),
    )
}


def start_server(folder: Path) -> str:
    """Start the PostgreSQL of the benchmark; return its URL."""
    url = embedded_postgres(folder)
    execute(url, *(f"ALTER SYSTEM SET {key} = {value}" for key, value in _SERVER_SETTINGS.items()))
    execute(url, "SELECT pg_reload_conf()")
    return url


def ensure_database(server_url: str, data_set: DataSet) -> str:
    """Make the data set where it is missing; return the URL of its database."""
    url = server_url.replace("/postgres?", f"/{data_set.database}?", 1)
    with dbapi.connect(server_url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_database WHERE datname = $1", (data_set.database,))
        is_made = cursor.fetchone() is not None
    if not is_made:
        _make(server_url, url, data_set)
    _make_views(url)
    return url


def _make(server_url: str, url: str, data_set: DataSet) -> None:
    # Made under another name, so that an interrupted run leaves no half-made data set behind.
    new, new_url = f"{data_set.database}_new", url.replace("?", "_new?", 1)
    execute(server_url, f"DROP DATABASE IF EXISTS {new}", f"CREATE DATABASE {new}")
    for name, value in (
        # What the pipeline sets in its sessions, so that everyone can run its query.
        ("llm_traces.start", START.isoformat()),
        ('llm_traces."end"', (START + HOUR).isoformat()),
        ("llm_traces.folded", "[]"),
        ("llm_traces.too_wide", "[]"),
        ("timezone", "UTC"),
    ):
        execute(server_url, f"ALTER DATABASE {new} SET {name} = '{value}'")
    execute(new_url, read_sql("demo/schema.sql"))
    with closing(dbapi.connect(new_url)) as connection:
        numbers = agents.ORGANIZATIONS if data_set.is_of_agents else ORGANIZATIONS
        billing = billing_details(START - timedelta(days=2), numbers)
        insert(connection, "organization_billing_details", billing)
        connection.commit()
    step = 100 if data_set.giants else 5_000  # a batch of giants fits into memory
    begins = range(0, data_set.traces, step)
    with ProcessPoolExecutor(_PROCESSES, get_context("spawn")) as pool:
        list(pool.map(partial(_add_traces, new_url, data_set, step), begins))
    execute(new_url, "VACUUM ANALYZE")
    execute(new_url, "CHECKPOINT")
    execute(server_url, f"ALTER DATABASE {new} RENAME TO {data_set.database}")


def _make_views(url: str) -> None:
    """Make the query of the pipeline a relation, whole and by halves, for whoever needs one.

    Its order is left out: nobody else needs that.
    """
    with Source(url).snapshot() as snapshot:
        traces = snapshot.statement("traces").partition("ORDER BY t.")[0]
    middle = f"timestamptz '{START + HOUR / 2}'"
    start, end = (
        f"current_setting('llm_traces.{bound}')::timestamptz" for bound in ("start", "end")
    )
    for name, query in (
        ("traces_of_hour", traces),
        ("traces_of_hour_0", traces.replace(end, middle)),
        ("traces_of_hour_1", traces.replace(start, middle)),
    ):
        execute(url, f"DROP VIEW IF EXISTS {name}", f"CREATE VIEW {name} AS {query}")


def execute(url: str, *statements: str) -> None:
    """Execute statements, each in a transaction of its own."""
    with dbapi.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.adbc_statement.set_sql_query(statement)
            cursor.adbc_statement.execute_update()


def _add_traces(url: str, data_set: DataSet, count: int, begin: int) -> None:
    tables = _traces(data_set, range(begin, min(begin + count, data_set.traces)))
    with closing(dbapi.connect(url)) as connection:
        for name, rows in tables.items():
            insert(connection, name, rows)
        connection.commit()


def _traces(data_set: DataSet, numbers: Sequence[int]) -> dict[str, list[dict[str, object]]]:
    """Return some of the traces, and what else is stored of each, by the name of the table."""
    rng = random.Random(f"{data_set.name} {numbers[0]}")  # noqa: S311 -- the same rows every time
    rows: dict[str, list[dict[str, object]]] = {
        "provider_traces": [],
        "steps": [],
        "step_metrics": [],
    }
    for number in numbers:
        if data_set.is_of_agents:
            call = agents.agent_call(*agents.schedule(data_set.traces)[number])
        else:
            call = _unlike_call(rng, data_set, number)
        trace, step = _trace_and_step(rng, START + number * HOUR / data_set.traces, call)
        rows["provider_traces"].append(trace)
        rows["steps"].append(step)
        metrics = {"llm_request_ns": int(rng.lognormvariate(21.5, 0.7))}
        rows["step_metrics"].append(
            metrics | {key: step[key] for key in ("id", "created_at", "updated_at")}
        )
    return rows


def _unlike_call(rng: random.Random, data_set: DataSet, number: int) -> agents.AgentCall:
    """Return a call whose text is like no other's, but for a short system prompt."""
    organization = rng.choices(ORGANIZATIONS, _WEIGHTS)[0]
    recipe = rng.choices(RECIPES, [recipe.weight for recipe in RECIPES])[0]
    every = data_set.traces // data_set.giants if data_set.giants else 0
    if every and number % every == 0:
        length = rng.randrange(*_GIANT_CHARACTERS)
    else:
        length = int(data_set.passage * rng.uniform(0.5, 1.5))
    system = corpus()[organization * 10_000 :][: min(length // 5, 2_000)]
    answered = int(data_set.passage / 4 * rng.uniform(0.5, 1.5))
    values = draw_call(rng, recipe, system, length - len(system), answered)
    agent = rng.randrange(_AGENTS_PER_ORGANIZATION)
    return agents.AgentCall(organization, agent, recipe, values)


def _trace_and_step(
    rng: random.Random, at: datetime, call: agents.AgentCall
) -> tuple[dict[str, object], dict[str, object]]:
    organization, agent, recipe, values = call
    owner = {"organization_id": organization_id(organization), "created_at": at, "updated_at": at}
    step_id = f"step-{random_uuid(rng)}"
    config = {
        "model": recipe.model,
        "model_endpoint_type": recipe.endpoint_type or recipe.provider,
        "provider_name": recipe.provider,
        "provider_category": "base",
        "context_window": 128000,
    }
    response = rng.choice(ERRORS) if chance(rng, 0.02) else recipe.response
    trace = owner | {
        "id": f"provider_trace-{random_uuid(rng)}",
        "step_id": step_id,
        "agent_id": f"agent-{organization}-{agent}",
        "agent_tags": '["production", "eu"]' if agent % 2 else None,
        "call_type": "agent_step",
        "run_id": f"run-{random_uuid(rng)}",
        "source": "memgpt-server",
        "org_id": organization_id(organization),
        "user_id": f"user-{organization}",
        "is_deleted": False,
        "request_json": fill(recipe.request, values),
        "response_json": fill(response, values),
        "llm_config": json_text(config),
    }
    step = owner | {
        "id": step_id,
        "project_id": f"project-{organization}-{agent % 4}",
        "trace_id": random_uuid(rng).hex,
        "provider_name": recipe.provider,
        "provider_category": "base",
        "model": recipe.model,
    }
    return trace, step | step_counts(values)
