"""What a run says: numbers that the UI plots, a summary, and which command started it."""

import pytest
from dagster import AssetKey, DagsterInstance, RunsFilter

from llm_trace_pipeline.defs.metadata import summary_of, table_of
from llm_trace_pipeline.defs.runs import Call, execute_here
from llm_trace_pipeline.hours import HOUR, Window, key_of
from tests.harness.jobs import Jobs
from tests.harness.operational import Operational, trace
from tests.harness.rows import T0

TOKENS = {
    "prompt tokens": 10,
    "completion tokens": 5,
    "total tokens": 15,
    "cached input tokens": 0,
    "cache write tokens": 0,
    "reasoning tokens": 0,
}


def test_an_hour_is_numbers_and_a_run_of_several_has_a_summary(
    operational: Operational, jobs: Jobs
) -> None:
    operational.insert("provider_traces", trace(T0, id="a"))
    assert jobs.load(T0, T0).success
    for asset in ("trace_batches", "llm_traces", "llm_usage_hourly"):
        [(_, found)] = jobs.materializations(asset)
        said = {name: value.value for name, value in found.items()}
        assert {name: said[name] for name in TOKENS} == TOKENS
        assert said["dagster/row_count"] == said["rows"] == 1
        assert 0 < said["cost in USD"] == float(said["cost in USD, exactly"])
        assert said["seconds"] > 0
        assert jobs.instance.fetch_observations(AssetKey(asset), limit=1).records == []

    assert jobs.load(T0, T0 + HOUR).success
    for asset in ("trace_batches", "llm_traces", "llm_usage_hourly"):
        [record] = jobs.instance.fetch_observations(AssetKey(asset), limit=9).records
        assert record.asset_observation
        lines = str(record.asset_observation.metadata["summary of the run"].value).splitlines()
        assert [line.split(" | ")[0] for line in lines[2:]] == [
            f"| {key_of(T0)}",
            f"| {key_of(T0 + HOUR)}",
            "| **2 of 2 hours**",
        ]
        assert lines[2].split(" | ")[2] == "1"
    together = dict(jobs.materializations("llm_traces"))[key_of(T0 + HOUR)]
    assert together["hours together"].value == 2
    assert "seconds" not in together


def test_a_summary_shows_failures_and_takes_no_format_from_data() -> None:
    done = {"h1": {"outcome": "new batch", "rows": 1200, "cost in USD": 0.5, "seconds": 1.5}}
    text = summary_of(done, {"h2": "hour h2: <b>x</b> | [y](z)\nmore"}).value or ""
    assert "| h1 | new batch | 1,200 | 0.5000 | 1.5 |" in text
    assert "| h2 | **failed**: hour h2: \\<b\\>x\\</b\\> \\| \\[y\\](z) more | | | |" in text
    assert text.endswith("| **1 of 2 hours** | | 1,200 | 0.5000 | |")
    assert table_of([]) == "none"


@pytest.mark.usefixtures("settings")
def test_the_run_of_a_command_is_one_of_the_job_in_the_ui(
    operational: Operational, tmp_path_factory: pytest.TempPathFactory
) -> None:
    operational.insert("provider_traces", trace(T0, id="a"))
    home = str(tmp_path_factory.mktemp("dagster"))
    retries = {"run_retries": {"enabled": True, "max_retries": 2}}
    with DagsterInstance.local_temp(home, overrides=retries) as instance:
        hour, call = Window.of([T0]), Call.of(instance, "backfill a b")
        assert execute_here(instance, hour, (), call).success
        missing = Window.of([T0 + HOUR])
        assert not execute_here(instance, missing, ["llm_traces"], call).success
        label = {".dagster/repository": "__repository__@llm_traces"}
        runs = instance.get_runs(RunsFilter(job_name="hourly_llm_traces", tags=label))
        assert [run.status.value for run in runs] == ["FAILURE", "SUCCESS"]
        for run in runs:
            assert run.tags["llm_traces/command"] == "backfill a b"
            assert run.remote_job_origin
            assert run.remote_job_origin.location_name == "llm_traces"
            assert run.job_snapshot_id
            assert run.execution_plan_snapshot_id
        assert runs[0].tags["dagster/will_retry"] == "false"
        # A call that was interrupted goes on; one that ended is another one.
        assert Call.of(instance, "backfill a b") != call
        call.interrupt(instance)
        assert Call.of(instance, "backfill a b") == call
        assert Call.of(instance, "backfill a c") != call
        assert call.hours_done(instance, "llm_usage_hourly") == {T0}
        assert runs[0].asset_selection == {AssetKey("llm_traces")}
