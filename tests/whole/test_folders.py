"""Folders whose names mean something to a shell, to a URL or to ClickHouse."""

import shutil
from pathlib import Path

import pytest
from dagster import DagsterInstance

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.cli.instance import use_instance
from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.demo import postgres as demo
from llm_trace_pipeline.settings import Settings
from tests.harness.demo import passable_folder
from tests.harness.rows import T0
from tests.harness.warehouse import Warehouse

# The last four are patterns to ClickHouse, three of which match one of the other folders.
NAMES = ("a b", "a'b", 'a"b', "a#b", "a%41b", "a$b", "a\\b", "a[b]", "a{x,y}", "a{1,2}", "a*", "a?")
OTHERS = ("ab", "a1", "axb")


@pytest.mark.parametrize("name", NAMES)
def test_batches_in_any_folder_are_loaded_and_no_others(name: str, tmp_path: Path) -> None:
    settings = Settings.from_environment(
        {"LLM_TRACES_STATE": str(tmp_path / "state"), "TRACE_BATCH_URI": str(tmp_path / name)}
    )
    warehouse = Warehouse(settings)
    try:
        manifest = warehouse.publish(T0, 5)
        for other in OTHERS:
            shutil.copytree(tmp_path / name, tmp_path / other)
        warehouse.load_batch(manifest)
        warehouse.check()
        assert warehouse.store.hours() == [T0]
    finally:
        warehouse.close()


@pytest.mark.parametrize("name", [name for name in NAMES if not set(name) & set('?%"$`')])
def test_everything_embedded_lies_in_the_state_folder_whatever_its_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Set first, so that what the command sets is gone after the test.
    for variable in ("DAGSTER_HOME", "LLM_TRACES_STATE", "DAGSTER_DISABLE_TELEMETRY"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    with passable_folder("names") as folder:
        state = folder / name
        state.mkdir()
        settings = Settings.from_environment({"LLM_TRACES_STATE": str(state)})
        with connect(settings) as database:
            database.execute("CREATE TABLE kept (x UInt8) ENGINE = MergeTree ORDER BY x")
        demo.embedded_postgres(settings.state_dir)
        demo.leave_postgres(settings.state_dir)
        use_instance(settings)
        with DagsterInstance.get() as instance:
            assert instance.get_runs_count() == 0
        assert BatchStore.of(settings).hours() == []
        assert [path.name for path in folder.iterdir()] == [name]
        made = {path.name for path in state.iterdir()}
        assert {"clickhouse", "postgres", "history", "dagster.yaml"} <= made
