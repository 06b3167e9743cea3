"""Where the tests' ClickHouse is: the embedded engine, or the server that the environment names.

On a server every folder of a test has a database of its own, which is dropped in the end.
"""

import os
from hashlib import sha256
from pathlib import Path

from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.settings import Settings

# Read once: tests clear the environment.
ENDPOINT = os.environ.get("CLICKHOUSE_TEST_ENDPOINT")
_USERNAME = os.environ.get("CLICKHOUSE_TEST_USERNAME", "")
_PASSWORD = os.environ.get("CLICKHOUSE_TEST_PASSWORD", "")


def environment_of(folder: Path) -> dict[str, str]:
    """Return the variables of a deployment that keeps its state in this folder."""
    state = {"LLM_TRACES_STATE": str(folder)}
    if not ENDPOINT:
        return state
    return state | {
        "CLICKHOUSE_ENDPOINT": ENDPOINT,
        "CLICKHOUSE_USERNAME": _USERNAME,
        "CLICKHOUSE_PASSWORD": _PASSWORD,
        "CLICKHOUSE_DATABASE": f"llm_traces_test_{sha256(str(folder).encode()).hexdigest()[:16]}",
    }


def make_database(settings: Settings) -> None:
    """Make the database, as an administrator would have."""
    with connect(settings) as database:
        database.execute(f"CREATE DATABASE IF NOT EXISTS `{settings.clickhouse_database}`")


def drop_database(settings: Settings) -> None:
    """Drop what a test has left on a server."""
    if settings.clickhouse_database.startswith("llm_traces_test_"):
        with connect(settings) as database:
            database.execute(f"DROP DATABASE IF EXISTS `{settings.clickhouse_database}` SYNC")
