"""The stores that assets, checks and the sensor work with, as the environment configures them."""

import os
from contextlib import AbstractContextManager

import dagster as dg
from pydantic import PrivateAttr

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import Database, connect
from llm_trace_pipeline.defs.process import PROCESS_TAG, identity_of
from llm_trace_pipeline.demo.postgres import embedded_postgres
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.source.postgres import Source


def source_of(settings: Settings) -> Source:
    """Return the operational database; where none is configured, the demo's, which is started."""
    url = settings.operational_database_url
    return Source(
        url.get_secret_value() if url else embedded_postgres(settings.state_dir),
        settings.extract_connections,
    )


class Stores(dg.ConfigurableResource):  # type: ignore[type-arg]  # takes no type that could be named
    """The three stores. The environment is read once, when a step or a tick begins."""

    _settings: Settings = PrivateAttr()

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Read the settings; let the run tell which process executes it."""
        self._settings = Settings.from_environment()
        if context.instance and context.run:
            run_id = context.run.run_id
            tags = {PROCESS_TAG: f"{run_id} {identity_of(os.getpid())}"}
            context.instance.add_run_tags(run_id, tags)

    @property
    def settings(self) -> Settings:
        """The settings that the stores were made of."""
        return self._settings

    def source(self) -> Source:
        """Return the operational database."""
        return source_of(self.settings)

    def batches(self) -> BatchStore:
        """Return the Parquet batches."""
        return BatchStore.of(self.settings)

    def clickhouse(self) -> AbstractContextManager[Database]:
        """Hold a connection to ClickHouse."""
        return connect(self.settings)
