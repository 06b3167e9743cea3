"""The services of ``deploy/`` as far as they run without Docker: two runs at once, and kills."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetKey,
    DagsterEventType,
    DagsterInstance,
    DagsterRunStatus,
    RunRecord,
    RunsFilter,
)

from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.hours import HOUR, key_of
from llm_trace_pipeline.settings import Settings
from tests.harness.bucket import S3Server
from tests.harness.deploy import ASSETS, DEPLOY, SERVICES, Services, scheme_in_compose
from tests.harness.operational import Operational, execute, trace
from tests.harness.processes import free_port, wait_for
from tests.harness.rows import T0

FIRST = T0.replace(hour=0)


HOURS = [FIRST + HOUR * n for n in range(48)]


NEXT_DAYS = [FIRST + HOUR * n for n in range(48, 73)]


ROWS_PER_HOUR = 3


@pytest.fixture(scope="module")
def operational(postgres_url: str) -> Iterator[Operational]:
    """Three days of calls, and an hour."""
    execute(postgres_url, "CREATE DATABASE test_deploy_source")
    operational = Operational(postgres_url.replace("/postgres?", "/test_deploy_source?", 1))
    operational.insert(
        "provider_traces",
        *(trace(hour + HOUR / 7 * n) for hour in HOURS + NEXT_DAYS for n in range(ROWS_PER_HOUR)),
    )
    yield operational
    execute(postgres_url, "DROP DATABASE test_deploy_source WITH (FORCE)")


@pytest.fixture(scope="module")
def deployment(
    postgres_url: str, operational: Operational, s3_server: S3Server
) -> Iterator[Services]:
    """The services, running; the embedded engine is in the place of the ClickHouse server."""
    folder = Path(tempfile.mkdtemp(prefix="llm-traces-deploy-"))
    execute(postgres_url, "CREATE DATABASE test_deploy_dagster")
    values = {
        "DAGSTER_POSTGRES_URL": postgres_url.replace(
            "postgresql://", f"{scheme_in_compose()}://", 1
        ).replace("/postgres?", "/test_deploy_dagster?", 1),
        "DAGSTER_LOG_BUCKET": "llm-traces",
        "AWS_ENDPOINT_URL": s3_server.endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": s3_server.key_id,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret,
        "OPERATIONAL_DATABASE_URL": operational.url,
        "LLM_TRACES_START": key_of(FIRST),
        "TRACE_BATCH_URI": "s3://llm-traces/batches",
        "CLICKHOUSE_ENDPOINT": f"chdb://{folder}/clickhouse",
    }
    ports = {"3000": free_port(), "4000": free_port()}
    deployment = Services(folder, values, ports)
    (folder / "home").mkdir()
    for name in ("dagster.yaml", "workspace.yaml"):
        text = (DEPLOY / name).read_text(encoding="utf-8")
        (folder / "home" / name).write_text(deployment.here(text), encoding="utf-8")
    s3_server.client("s3").create_bucket(Bucket="llm-traces")
    try:
        for service in SERVICES:
            deployment.start(service)
        yield deployment
    finally:
        for service in list(deployment.running):
            deployment.kill(service)
        shutil.rmtree(folder, ignore_errors=True)
    execute(postgres_url, "DROP DATABASE test_deploy_dagster WITH (FORCE)")


@pytest.fixture
def instance(deployment: Services, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    """The instance of the deployment, from its own file."""
    for name, value in deployment.environment("dagster-daemon").items():
        monkeypatch.setenv(name, value)
    with DagsterInstance.from_config(str(deployment.folder / "home")) as instance:
        yield instance


def ended_runs(instance: DagsterInstance, backfill: str, count: int) -> list[RunRecord]:
    """Return the runs of a backfill once there are so many and all have ended."""
    records = instance.get_run_records(RunsFilter(tags={"dagster/backfill": backfill}))
    ended = [record for record in records if record.dagster_run.is_finished]
    return ended if len(ended) == count else []


def steps_in(instance: DagsterInstance, runs: Sequence[RunRecord], asset: str) -> list[Any]:
    """Return when the steps of an asset began and ended, in their order."""
    stats = [
        each
        for run in runs
        for each in instance.get_run_step_stats(run.dagster_run.run_id)
        if each.step_key == asset
    ]
    return sorted((each.start_time, each.end_time) for each in stats)


def rows_by_hour(deployment: Services) -> dict[datetime, tuple[int, int]]:
    """Return the rows and the distinct ids that ClickHouse has of every hour."""
    with connect(Settings.from_environment(deployment.values)) as database:
        found = database.rows(
            "SELECT toStartOfHour(created_at) AS hour, count() AS rows, uniqExact(id) AS ids "
            "FROM llm_traces GROUP BY hour"
        )
    return {row["hour"].astimezone(FIRST.tzinfo): (row["rows"], row["ids"]) for row in found}


def test_two_runs_at_once_load_every_hour_once(
    deployment: Services, instance: DagsterInstance, s3_server: S3Server
) -> None:
    backfill = deployment.launch_backfill(HOURS)
    # Not for the backfill itself: Dagster looks after it every 30 s.
    runs = wait_for(lambda: ended_runs(instance, backfill, 2), "two runs end")
    assert [run.dagster_run.status for run in runs] == [DagsterRunStatus.SUCCESS] * 2
    spans = [(run.start_time or 0.0, run.end_time or 0.0) for run in runs]
    assert max(began for began, _ in spans) < min(ended for _, ended in spans)  # both went on
    for asset in ASSETS:
        for (_, ended), (began, _) in pairwise(steps_in(instance, runs, asset)):
            assert ended <= began, asset  # but one step at a time was in each pool

    assert rows_by_hour(deployment) == dict.fromkeys(HOURS, (ROWS_PER_HOUR, ROWS_PER_HOUR))
    keys = [key_of(hour) for hour in HOURS]
    for asset in ASSETS:
        loaded = instance.fetch_materializations(AssetKey(asset), limit=1_000).records
        assert Counter(each.partition_key for each in loaded) == Counter(keys)

    # What runs print is in the bucket.
    found = s3_server.client("s3").list_objects_v2(Bucket="llm-traces", Prefix="compute-logs/")
    folders = {each["Key"].rpartition("/compute_logs/")[0] for each in found["Contents"]}
    assert {f"compute-logs/storage/{run.dagster_run.run_id}" for run in runs} <= folders


def test_runs_outlive_their_code_server(deployment: Services, instance: DagsterInstance) -> None:
    day, last = NEXT_DAYS[:24], NEXT_DAYS[24]
    run = deployment.launch_run(day[0], day[-1])
    wait_for(lambda: run in holders(instance, "operational_database"), "the run holds a pool")
    deployment.kill("dagster-daemon")
    queued = deployment.launch_run(last, last)
    deployment.kill("code-server")
    assert status_of(instance, run) is DagsterRunStatus.STARTED
    deployment.start("dagster-daemon")
    wait_for(lambda: was_put_back(instance, queued), "no code server answers for the queued run")

    deployment.start("code-server")
    retry = wait_for(lambda: retries_of(instance, run), "the run that died is retried")[0]
    assert status_of(instance, run) is DagsterRunStatus.FAILURE
    succeeded = {DagsterRunStatus.SUCCESS}
    wait_for(
        lambda: {status_of(instance, each) for each in (retry, queued)} == succeeded,
        "what was left is loaded",
    )
    found = rows_by_hour(deployment)
    loaded = {hour: found.get(hour) for hour in NEXT_DAYS}
    assert loaded == dict.fromkeys(NEXT_DAYS, (ROWS_PER_HOUR, ROWS_PER_HOUR))


def test_no_secret_is_shown_or_logged(deployment: Services) -> None:
    shown = deployment.query("{ instance { info } }")["instance"]["info"]
    assert "run_retries" in shown
    for name in ("DAGSTER_POSTGRES_URL", "OPERATIONAL_DATABASE_URL", "AWS_SECRET_ACCESS_KEY"):
        assert deployment.values[name] not in shown + deployment.logs()


def holders(instance: DagsterInstance, pool: str) -> set[str]:
    """Return the runs that hold a pool."""
    info = instance.event_log_storage.get_concurrency_info(pool)
    return {slot.run_id for slot in info.claimed_slots}


def status_of(instance: DagsterInstance, run: str) -> DagsterRunStatus:
    found = instance.get_run_by_id(run)
    assert found is not None
    return found.status


def was_put_back(instance: DagsterInstance, run: str) -> bool:
    """Whether a run was taken from the queue more than once."""
    return len(instance.all_logs(run, of_type=DagsterEventType.RUN_ENQUEUED)) > 1


def retries_of(instance: DagsterInstance, run: str) -> list[str]:
    return [
        retry.run_id for retry in instance.get_runs(RunsFilter(tags={"dagster/parent_run_id": run}))
    ]
