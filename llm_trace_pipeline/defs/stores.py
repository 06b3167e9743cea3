"""What the assets work with, built from the settings when a step runs."""

from collections.abc import Iterator
from contextlib import contextmanager

from dagster import ConfigurableResource

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import Database, connect
from llm_trace_pipeline.demo.postgres import embedded_postgres
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.source.postgres import Source
from llm_trace_pipeline.trace.payloads import PayloadPolicy
from llm_trace_pipeline.trace.prices import PriceBook


def source_of(settings: Settings) -> Source:
    """Return the operational database; where none is configured, the demo's, which is started."""
    url = settings.operational_database_url
    return Source(
        url.get_secret_value() if url else embedded_postgres(settings.state_dir),
        settings.extract_connections,
        PayloadPolicy.of(settings),
        PriceBook.of(settings),
    )


class Pipeline(ConfigurableResource):  # type: ignore[type-arg]  # takes no type that could be named
    """The three stores, as the environment configures them."""

    def source(self) -> Source:
        """Return the operational database."""
        return source_of(Settings.from_environment())

    def prices(self) -> PriceBook:
        """Return what calls cost; the price file is kept beside the batches that it prices."""
        prices = PriceBook.of(Settings.from_environment())
        self.store().keep_prices(prices)
        return prices

    def store(self) -> BatchStore:
        """Return the Parquet batches."""
        return BatchStore.of(Settings.from_environment())

    @contextmanager
    def clickhouse(self) -> Iterator[Database]:
        """Hold a connection to ClickHouse."""
        with connect(Settings.from_environment()) as database:
            yield database
