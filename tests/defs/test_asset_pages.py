"""What the page of an asset says: its columns, where they come from, where it lies, its code."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from dagster import AssetKey, DagsterInstance
from dagster._core.definitions.observe import observe

from docs.generate import columns_of_rollup, columns_of_traces
from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.definitions import defs
from llm_trace_pipeline.defs.assets import observe_source
from llm_trace_pipeline.defs.source import newest_of
from llm_trace_pipeline.defs.stores import Stores
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.source.postgres import Source
from tests.harness.jobs import Jobs
from tests.harness.operational import Operational, trace

GRAPH = defs.resolve_asset_graph()
TABLES = ("provider_traces", "billing_history", "trace_batches", "llm_traces", "llm_usage_hourly")


def metadata(asset: str) -> Any:
    return GRAPH.get(AssetKey(asset)).metadata


def columns(asset: str) -> dict[str, Any]:
    return {each.name: each for each in metadata(asset)["dagster/column_schema"].columns}


@pytest.mark.parametrize("asset", ["trace_batches", "llm_traces", "llm_usage_hourly"])
def test_every_column_comes_from_columns_that_exist(asset: str) -> None:
    lineage = metadata(asset)["dagster/column_lineage"].deps_by_column
    assert set(lineage) == set(columns(asset))
    for deps in lineage.values():
        assert deps
        for dep in deps:
            assert dep.column_name in columns(dep.asset_key.to_user_string())
            assert dep.asset_key in GRAPH.get(AssetKey(asset)).parent_keys


def test_every_column_of_the_source_is_one_that_a_batch_is_made_of() -> None:
    lineage = metadata("trace_batches")["dagster/column_lineage"].deps_by_column
    used = {dep.column_name for deps in lineage.values() for dep in deps}
    assert set(columns("provider_traces")) <= used


def test_types_and_descriptions_are_those_of_the_tables(database: Database) -> None:
    def shown(asset: str) -> set[str]:
        return {f"| `{each.name}` |" for each in columns(asset).values()}

    for asset, page in (
        ("llm_traces", columns_of_traces(database)),
        ("llm_usage_hourly", columns_of_rollup(database)),
    ):
        rows = page.splitlines()[2:]
        assert {row[: row.index("|", 1) + 1] for row in rows} == shown(asset)
        for row, each in zip(rows, columns(asset).values(), strict=True):
            assert each.description in row
            assert each.type in row


@pytest.mark.parametrize("asset", [*TABLES, "usage_report"])
def test_an_asset_says_where_it_lies_and_has_its_code(asset: str) -> None:
    node = GRAPH.get(AssetKey(asset))
    assert node.tags["dagster/storage_kind"] in node.kinds
    assert "dagster/table_name" in node.metadata or "dagster/uri" in node.metadata
    [reference] = node.metadata["dagster/code_references"].code_references
    assert reference.file_path.endswith("defs/assets.py")
    if asset != "usage_report":
        assert all(each.description for each in columns(asset).values())


def test_an_observation_says_rows_newest_trace_and_lag(
    operational: Operational,
    source: Source,
    settings: Settings,  # noqa: ARG001 -- environment
) -> None:
    now = datetime.now(UTC)
    assert newest_of(source).at is None
    newest = now - timedelta(minutes=3)
    operational.insert(
        "provider_traces",
        trace(now - timedelta(days=3)),
        trace(newest - timedelta(minutes=1)),
        trace(newest),
        trace(newest, is_deleted=True),
    )
    with DagsterInstance.ephemeral() as instance:
        result = observe([observe_source], resources={"stores": Stores()}, instance=instance)
        assert result.success
        [record] = instance.fetch_observations(AssetKey("provider_traces"), limit=9).records
    assert record.asset_observation
    said = record.asset_observation.metadata
    found: dict[str, Any] = {name: value.value for name, value in said.items()}
    assert found["dagster/row_count"] == 2
    assert found["newest trace"] == newest.timestamp()
    assert 180 <= found["lag (s)"] < 600


def test_a_reconciliation_observes_the_source_and_warns_of_silence(
    operational: Operational, jobs: Jobs
) -> None:
    for passed in (False, True):
        if passed:
            operational.insert("provider_traces", trace(datetime.now(UTC)))
        result = jobs.run("reconcile_hours")
        assert result.success
        found = {each.check_name: each for each in result.get_asset_check_evaluations()}
        assert found["is_written_to"].passed is passed
    assert len(jobs.instance.fetch_observations(AssetKey("provider_traces"), limit=9).records) == 2
