"""An instance that serves the code of others too: their runs and backfills are none of ours."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from llm_trace_pipeline.definitions import defs
from llm_trace_pipeline.defs.runs import hours_being_loaded, hours_of_backfills
from llm_trace_pipeline.hours import HOUR, key_of
from tests.harness.backfills import backfill_of_assets, backfill_of_job
from tests.harness.rows import T0

GRAPH = defs.resolve_asset_graph()
THEIR_PARTITIONS = dg.StaticPartitionsDefinition(["customer-europe-1", "customer-europe-9"])
OUR_HOUR = key_of(T0)


@dg.asset(partitions_def=THEIR_PARTITIONS)
def theirs() -> None:
    """Somebody else's asset."""


@dg.asset(partitions_def=dg.HourlyPartitionsDefinition(T0 - HOUR, timezone="UTC"))
def their_hours() -> None:
    """Somebody else's asset, whose partitions have keys like ours."""


THEIR_DEFS = dg.Definitions(
    assets=[theirs, their_hours],
    jobs=[dg.define_asset_job("their_job", ["theirs"]), dg.define_asset_job("a", ["their_hours"])],
)


@pytest.mark.parametrize(
    ("job", "tags"),
    [
        ("their_job", {"dagster/partition": "customer-europe-1"}),
        ("a", {"dagster/partition": OUR_HOUR}),
        (
            "a",
            {
                "dagster/asset_partition_range_start": OUR_HOUR,
                "dagster/asset_partition_range_end": OUR_HOUR,
            },
        ),
        (
            "their_job",
            {
                "dagster/asset_partition_range_start": "customer-europe-1",
                "dagster/asset_partition_range_end": "customer-europe-9",
            },
        ),
    ],
)
def test_runs_of_others_load_no_hour(job: str, tags: dict[str, str]) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        instance.create_run_for_job(
            THEIR_DEFS.resolve_job_def(job), tags=tags, status=dg.DagsterRunStatus.STARTED
        )
        assert hours_being_loaded(instance) == set()


@pytest.mark.parametrize("job", ["hourly_llm_traces", "repair_hours", "restore_hours"])
def test_a_run_and_a_backfill_of_one_of_our_jobs_load_their_hours(job: str) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        instance.create_run_for_job(defs.resolve_job_def(job), tags={"dagster/partition": OUR_HOUR})
        instance.add_backfill(backfill_of_job(job, [key_of(T0 + HOUR)]))
        assert hours_being_loaded(instance) == {T0}
        assert hours_of_backfills(instance, GRAPH) == {T0 + HOUR}


@pytest.mark.parametrize("asset", ["trace_batches", "llm_traces", "llm_usage_hourly"])
def test_a_run_of_one_of_our_assets_loads_its_hour_whatever_its_job(asset: str) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        instance.create_run_for_job(
            defs.resolve_implicit_global_asset_job_def(),
            tags={"dagster/partition": OUR_HOUR},
            status=dg.DagsterRunStatus.NOT_STARTED,
            asset_selection=frozenset({dg.AssetKey(asset)}),
        )
        assert hours_being_loaded(instance) == {T0}


def test_backfills_of_others_load_no_hour() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_backfill(backfill_of_job("their_job", ["customer-europe-1", OUR_HOUR]))
        instance.add_backfill(
            backfill_of_assets(instance, THEIR_DEFS, ["customer-europe-1"], "theirs")
        )
        instance.add_backfill(backfill_of_assets(instance, THEIR_DEFS, [OUR_HOUR], "their_hours"))
        assert hours_of_backfills(instance, GRAPH) == set()
        instance.add_backfill(backfill_of_assets(instance, defs, [OUR_HOUR], "llm_traces"))
        assert hours_of_backfills(instance, GRAPH) == {T0}


def test_a_backfill_that_starts_no_run_any_more_lets_go_of_its_hours() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        stuck = backfill_of_job(
            "hourly_llm_traces", [OUR_HOUR], datetime.now(UTC) - timedelta(hours=7)
        )
        instance.add_backfill(stuck)
        assert hours_of_backfills(instance, GRAPH) == set()
        instance.create_run_for_job(
            defs.resolve_job_def("hourly_llm_traces"), tags={"dagster/backfill": stuck.backfill_id}
        )
        assert hours_of_backfills(instance, GRAPH) == {T0}
