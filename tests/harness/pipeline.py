"""Loads from an operational database, step by step, without Dagster."""

from datetime import datetime

from llm_trace_pipeline.batches.extract import extract_hour
from llm_trace_pipeline.batches.history import capture_billing
from llm_trace_pipeline.batches.manifest import Manifest
from llm_trace_pipeline.batches.rules import Rules
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.clickhouse.cluster import loader_of
from llm_trace_pipeline.clickhouse.loads import Loaded
from llm_trace_pipeline.source.postgres import Source
from tests.harness.rows import T0, TABLE, Row


class Pipeline:
    """Loads hours the way the assets do, one function after the other."""

    def __init__(self, source: Source, store: BatchStore, database: Database) -> None:
        self.source, self.store, self.database = source, store, database

    def extract(
        self, hour: datetime = T0, *, accept_loss: bool = False, only_changed: bool = False
    ) -> Manifest:
        """Make the batch of an hour."""
        return extract(
            self.source, self.store, hour, accept_loss=accept_loss, only_changed=only_changed
        )

    def load(self, hour: datetime = T0, *, accept_loss: bool = False) -> Manifest:
        """Make the batch of an hour and load it."""
        manifest = self.extract(hour, accept_loss=accept_loss)
        self.load_batch(hour)
        return manifest

    def load_batch(self, hour: datetime = T0, *, force: bool = False) -> Loaded:
        """Load the batch that the hour has."""
        [result] = loader_of(self.database, self.store).load([hour], force=force)
        assert result.differences == ()
        return result

    def load_hours(self, *hours: datetime) -> list[Manifest]:
        return [self.load(hour) for hour in hours]

    def rows(self, columns: str = "*") -> list[Row]:
        return self.database.rows(f"SELECT {columns} FROM {TABLE} ORDER BY created_at, id")

    def ids(self) -> list[str]:
        """Return the ids of all rows, sorted."""
        return sorted(row["id"] for row in self.rows("id"))


def extract(source: Source, store: BatchStore, hour: datetime = T0, **options: bool) -> Manifest:
    """Read the billing versions of a source, and make the batch of an hour."""
    history = capture_billing(source, store.files).history
    return extract_hour(source, store, Rules(history), hour, **options)
