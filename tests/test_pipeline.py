"""The whole path on real engines: PostgreSQL, Parquet, ClickHouse."""

from typing import Any

from llm_trace_pipeline.clickhouse import Database
from llm_trace_pipeline.extract import Source, capture_billing, extract_hour
from llm_trace_pipeline.parquet import BatchStore
from llm_trace_pipeline.upsert import HourLoader
from tests.conftest import T0, Operational, trace


def load(source: Source, store: BatchStore, database: Database) -> list[dict[str, Any]]:
    """Load the hour T0 and return its rows in ClickHouse, by id."""
    history, _ = capture_billing(source, store)
    manifest = extract_hour(source, store, history, T0, allow_empty=True)
    result = HourLoader(database, store).load(manifest)
    assert result.differences == ()
    return database.rows("SELECT * FROM llm_traces ORDER BY id")


def test_an_hour_arrives(
    operational: Operational, source: Source, store: BatchStore, database: Database
) -> None:
    operational.insert("provider_traces", trace(id="provider_trace-a"), trace(id="b"))
    rows = load(source, store, database)
    assert [row["id"] for row in rows] == ["a", "b"]
    assert {row["total_tokens"] for row in rows} == {15}
