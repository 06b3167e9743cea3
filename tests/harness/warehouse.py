"""The ClickHouse of the tests, and batches that are loaded into it without a source.

The ClickHouse is the embedded engine, or the server that the environment names. On a server every
folder of a test has a database of its own, which is dropped in the end.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import pyarrow as pa

from llm_trace_pipeline.batches.manifest import Manifest
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import Database, connect
from llm_trace_pipeline.clickhouse.cluster import loader_of
from llm_trace_pipeline.clickhouse.loads import Loaded
from llm_trace_pipeline.clickhouse.tables import parts_of
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.trace.columns import ARROW_SCHEMA
from tests.harness.rows import TABLE, Row, make_rows, publish

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


def change(settings: Settings, *statements: str) -> None:
    """Execute statements past the pipeline, as somebody else does."""
    with connect(settings) as database:
        for statement in statements:
            database.execute(statement)


class Warehouse:
    """A ClickHouse and a batch store of their own, and the rows that the table has to hold."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = BatchStore.of(settings)
        self.expected: dict[datetime, list[Row]] = {}
        self._opened = ExitStack()
        self.database = self._opened.enter_context(connect(settings))

    def close(self) -> None:
        self._opened.close()

    def reopen(self) -> None:
        """Start the engine or connect again, as the next process would."""
        self.close()
        self.database = self._opened.enter_context(connect(self.settings))

    def publish(self, hour: datetime, rows: int | Sequence[Row], version: int = 1) -> Manifest:
        """Make the rows, or so many made ones, the batch of the hour; the table is to hold them."""
        self.expected[hour] = (
            make_rows(hour, rows, version) if isinstance(rows, int) else list(rows)
        )
        return publish(self.store, hour, self.expected[hour])

    def load(self, hour: datetime, rows: int | Sequence[Row], version: int = 1) -> Loaded:
        """Make a batch of the hour and load it."""
        return self.load_batch(self.publish(hour, rows, version))

    def load_batch(self, manifest: Manifest, *, force: bool = False) -> Loaded:
        [result] = self.load_hours(manifest.hour, force=force)
        return result

    def load_hours(self, *hours: datetime, force: bool = False) -> list[Loaded]:
        """Load the batches that the hours have, together."""
        results = loader_of(self.database, self.store).load(hours, force=force)
        assert [result.differences for result in results] == [()] * len(hours)
        return results

    def insert(self, rows: Sequence[Row]) -> None:
        """Insert rows past the upsert, as another writer does."""
        self.insert_table(pa.Table.from_pylist(list(rows), ARROW_SCHEMA))

    def insert_table(self, rows: pa.Table) -> None:
        self.database._client.insert_arrow(TABLE, rows, database=self.database.name)  # noqa: SLF001 -- no part of the path under test

    def rows(self) -> list[Row]:
        return self.database.rows(f"SELECT * FROM {TABLE} ORDER BY created_at, id")

    def merge(self, day: datetime) -> None:
        """Make the parts of a day one, so that a swap takes an hour out of it by DELETE."""
        while len(parts_of(self.database, TABLE, f"{day:%Y%m%d}")) > 1:
            self.database.execute(f"OPTIMIZE TABLE {TABLE} FINAL")

    def check(self) -> None:
        """Compare all rows of the table, and look for what an upsert should have dropped."""
        found = self.rows()
        expected = [row for hour in sorted(self.expected) for row in self.expected[hour]]
        assert _by_hour(found) == _by_hour(expected)  # fails with a short text
        assert found == expected
        assert left_over_tables(self.database) == []


@contextmanager
def fresh_warehouse(folder: Path) -> Iterator[Warehouse]:
    """Open a warehouse with nothing in it."""
    settings = Settings.from_environment(environment_of(folder))
    make_database(settings)
    warehouse = Warehouse(settings)
    yield warehouse
    warehouse.close()
    drop_database(settings)


def left_over_tables(database: Database) -> list[str]:
    """Return the tables of an upsert that are still there."""
    tables = database.rows(
        "SELECT name FROM system.tables WHERE database = {database:String} "
        "AND name LIKE {name:String}",
        {"database": database.name, "name": f"{TABLE}\\_\\_%"},
    )
    return [table["name"] for table in tables]


def _by_hour(rows: list[Row]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in rows:
        hour = f"{row['created_at']:%Y-%m-%d %H}"
        counts[hour] = counts.get(hour, 0) + 1
    return counts
