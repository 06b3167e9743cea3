"""Fixtures of real parts: one PostgreSQL per worker, a fresh database and a fresh store each.

A fixture imports its part by itself: all parts together take seconds, and many tests need none.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import START

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

    from llm_trace_pipeline.batches.store import BatchStore
    from llm_trace_pipeline.clickhouse.client import Database
    from llm_trace_pipeline.reports.spend import Days
    from llm_trace_pipeline.settings import Settings
    from llm_trace_pipeline.source.postgres import Source
    from tests.harness.bucket import Bucket, S3Server
    from tests.harness.cluster import ClusterWarehouse
    from tests.harness.http_server import Running
    from tests.harness.jobs import Jobs
    from tests.harness.operational import Operational
    from tests.harness.pipeline import Pipeline
    from tests.harness.warehouse import Warehouse


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server of this test process."""
    from llm_trace_pipeline.demo import postgres as demo
    from tests.harness.operational import execute

    folder = Path(tempfile.mkdtemp(prefix="llm-traces-tests-"))
    folder.chmod(0o755)
    try:
        url = demo.embedded_postgres(folder)
        # Its databases live for one test: nothing of them needs to survive a power cut.
        for statement in ("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()"):
            execute(url, statement)
        yield url
    finally:
        demo.leave_postgres(folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def operational(postgres_url: str) -> Iterator[Operational]:
    """A fresh operational database."""
    from tests.harness.operational import Operational, fresh_database

    with fresh_database(postgres_url) as url:
        yield Operational(url)


@pytest.fixture
def source(operational: Operational) -> Source:
    """The operational database, read by two connections."""
    from llm_trace_pipeline.source.postgres import Source

    return Source(operational.url, connections=2)


@pytest.fixture
def settings(
    tmp_path: Path, operational: Operational, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Settings]:
    """Settings of a deployment of its own; the environment says the same."""
    from llm_trace_pipeline.settings import Settings
    from tests.harness.warehouse import drop_database, environment_of

    environment = {
        **environment_of(tmp_path),
        "OPERATIONAL_DATABASE_URL": operational.url,
        "LLM_TRACES_START": START,
    }
    ours = (
        *("LLM_TRACES_", "CLICKHOUSE_", "TRACE_BATCH_", "OPERATIONAL_", "AWS_", "ALERT_"),
        "DAGSTER_UI_",
    )
    for name in list(os.environ):
        if name.startswith(ours):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = Settings.from_environment(environment)
    yield settings
    drop_database(settings)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3 server of this test process."""
    from tests.harness.bucket import running_s3

    with running_s3() as server:
        yield server


@pytest.fixture
def bucket(s3_server: S3Server) -> Bucket:
    """A fresh bucket."""
    from tests.harness.bucket import Bucket

    return Bucket(s3_server)


@pytest.fixture
def s3_settings(settings: Settings, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings with the batches in the bucket; the environment says the same."""
    environment = {
        "TRACE_BATCH_URI": bucket.uri,
        "AWS_ENDPOINT_URL": bucket.server.endpoint,
        "AWS_ACCESS_KEY_ID": bucket.server.key_id,
        "AWS_SECRET_ACCESS_KEY": bucket.server.secret,
        "AWS_REGION": "us-east-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return settings.model_copy(
        update={"trace_batch_uri": bucket.uri, "aws_endpoint_url": bucket.server.endpoint}
    )


@pytest.fixture
def store(settings: Settings) -> BatchStore:
    """An empty batch store."""
    from llm_trace_pipeline.batches.store import BatchStore

    return BatchStore.of(settings)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """A fresh ClickHouse."""
    from llm_trace_pipeline.clickhouse.client import connect
    from tests.harness.warehouse import make_database

    make_database(settings)
    with connect(settings) as database:
        yield database


@pytest.fixture
def pipeline(source: Source, store: BatchStore, database: Database) -> Pipeline:
    """What loads hours from the operational database into that ClickHouse."""
    from tests.harness.pipeline import Pipeline

    return Pipeline(source, store, database)


@pytest.fixture
def jobs(settings: Settings) -> Iterator[Jobs]:
    """The jobs of the code location, for the stores of the settings."""
    from dagster import DagsterInstance

    from tests.harness.jobs import Jobs

    with DagsterInstance.ephemeral() as instance:
        yield Jobs(settings, instance)


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Warehouse]:
    """A fresh ClickHouse that is loaded without a source."""
    from tests.harness.warehouse import fresh_warehouse

    with fresh_warehouse(tmp_path) as warehouse:
        yield warehouse


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What a load would have waited before it tried again, in seconds."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Running]]:
    """The nodes of a cluster, one per shard."""
    from tests.harness.cluster import running_nodes

    with running_nodes(tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes


@pytest.fixture
def cluster(tmp_path: Path, nodes: list[Running]) -> Iterator[ClusterWarehouse]:
    """A fresh database of a cluster."""
    from tests.harness.cluster import ClusterWarehouse

    with closing(ClusterWarehouse(tmp_path, nodes)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def state_of_calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a deployment whose ClickHouse holds calls that a report is made of."""
    from llm_trace_pipeline.clickhouse.client import connect
    from llm_trace_pipeline.clickhouse.tables import define_table
    from llm_trace_pipeline.settings import Settings
    from tests.harness.calls import CALLS, insert

    folder = tmp_path_factory.mktemp("calls")
    with connect(Settings.from_environment({"LLM_TRACES_STATE": str(folder)})) as database:
        define_table(database, "llm_traces")
        insert(database, CALLS)
    return folder


@pytest.fixture(scope="module")
def pages(state_of_calls: Path) -> dict[Days, Path]:
    """The report of each range of days, as a file."""
    from tests.harness.report_page import write_pages

    return write_pages(state_of_calls)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless browser."""
    from tests.harness.browser import running_browser

    with running_browser() as browser:
        yield browser


@pytest.fixture
def noise() -> list[str]:
    """What a page logged, asked or requested beside itself."""
    return []


@pytest.fixture
def page(browser: Browser, noise: list[str]) -> Iterator[Page]:
    """A window that notes whatever a quiet page does not do."""
    page = browser.new_page(viewport={"width": 1180, "height": 1600})
    page.on("console", lambda message: noise.append(message.text))
    page.on("pageerror", lambda error: noise.append(str(error)))
    page.on("dialog", lambda dialog: noise.append(dialog.message))
    page.on("request", lambda request: noise.append(request.url))
    yield page
    page.close()
