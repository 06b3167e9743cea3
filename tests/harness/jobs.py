"""The jobs of the code location, run in the tests' own process."""

from datetime import datetime
from typing import Any

from dagster import AssetKey, DagsterInstance, ExecuteInProcessResult

from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.definitions import defs
from llm_trace_pipeline.defs.runs import tags_of
from llm_trace_pipeline.hours import Window
from llm_trace_pipeline.settings import Settings
from tests.harness.rows import TABLE, Row


class Jobs:
    """The jobs of a deployment, as the daemon runs them, on an instance of their own."""

    def __init__(self, settings: Settings, instance: DagsterInstance) -> None:
        self.settings, self.instance = settings, instance

    def load(self, first: datetime, last: datetime, **arguments: Any) -> ExecuteInProcessResult:
        """Run the hourly job for a range of hours; ``last`` is included."""
        tags = tags_of(Window.of([first, last])) | arguments.pop("tags", {})
        return self.run("hourly_llm_traces", tags=tags, **arguments)

    def run(self, job: str, **arguments: Any) -> ExecuteInProcessResult:
        """Run a job to its end, which may be a failure."""
        return defs.resolve_job_def(job).execute_in_process(
            instance=self.instance, raise_on_error=False, **arguments
        )

    def materializations(self, asset: str) -> list[tuple[str | None, Any]]:
        """Return hour and metadata of every materialization, oldest first."""
        records = self.instance.fetch_materializations(AssetKey(asset), limit=1000).records
        return [
            (record.partition_key, dict(record.asset_materialization.metadata))
            for record in reversed(records)
            if record.asset_materialization
        ]

    def rows(self, columns: str = "id") -> list[Row]:
        """Return what ClickHouse holds."""
        with connect(self.settings) as database:
            return database.rows(f"SELECT {columns} FROM {TABLE} ORDER BY created_at, id")
