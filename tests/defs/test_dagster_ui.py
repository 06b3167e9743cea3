"""What ``make dev`` starts: the real UI in a browser, the schedule, and a run that is killed."""

import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from adbc_driver_postgresql import dbapi
from playwright.sync_api import Browser, Page, ViewportSize, expect

from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.demo import postgres as demo
from llm_trace_pipeline.demo.traffic import first_hour
from llm_trace_pipeline.hours import HOUR, floor, key_of
from llm_trace_pipeline.settings import Settings
from tests.harness.processes import PATIENCE_SECONDS, free_port, processes_of, wait_for
from tests.harness.webserver import launch_run, query

ROOT = Path(__file__).parents[2]
ASSETS = (
    *("provider_traces", "billing_history", "trace_batches", "llm_traces"),
    *("llm_usage_hourly", "usage_report"),
)
RUN = """query ($run: ID!) { runOrError(runId: $run) { ... on Run { status
    eventConnection { events { ... on EngineEvent { metadataEntries {
        label ... on TextMetadataEntry { text } } } } } } } }"""
RETRIES = """query ($run: String!) { runsOrError(filter: {
    tags: [{key: "dagster/parent_run_id", value: $run}]}) { ... on Runs { results { runId } } } }"""
SLOTS = "{ instance { concurrencyLimits { concurrencyKey claimedSlots { runId } } } }"
LOCATION = "{ repositoriesOrError { ... on RepositoryConnection { nodes { location { name } } } } }"


@dataclass(frozen=True)
class Dagster:
    """A running ``make dev`` with its own state."""

    state: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def query(self, text: str, **variables: Any) -> Any:
        """Return what the instance's GraphQL answers."""
        return query(self.port, text, **variables)

    @property
    def location(self) -> str:
        """The code location's name; empty while it is not loaded."""
        nodes = self.query(LOCATION)["repositoriesOrError"]["nodes"]
        return nodes[0]["location"]["name"] if nodes else ""

    def launch(self, first: datetime, last: datetime) -> str:
        """Launch a run of the job over a range of hours, and return its id."""
        return launch_run(self.port, self.location, first, last)

    def status(self, run: str) -> str:
        return str(self.query(RUN, run=run)["runOrError"]["status"])

    def worker(self, run: str) -> int:
        """Return the id of the process that executes a run."""
        events = self.query(RUN, run=run)["runOrError"]["eventConnection"]["events"]
        entries = [entry for event in events for entry in event.get("metadataEntries", ())]
        return next(int(entry["text"]) for entry in entries if entry["label"] == "pid")

    def retries(self, run: str) -> list[str]:
        found = self.query(RETRIES, run=run)["runsOrError"]["results"]
        return [retry["runId"] for retry in found]

    def holders(self, pool: str) -> list[str]:
        """Return the runs that hold a pool."""
        pools = self.query(SLOTS)["instance"]["concurrencyLimits"]
        slots = [
            slot
            for each in pools
            if each["concurrencyKey"] == pool
            for slot in each["claimedSlots"]
        ]
        return [slot["runId"] for slot in slots]

    def source_rows(self, first: datetime, last: datetime) -> int:
        """Return how many calls the operational database has in a range of hours."""
        window = f"created_at >= '{first.isoformat()}' AND created_at < '{last + HOUR}'"
        calls = " UNION ".join(
            f"SELECT id FROM {table} WHERE {window} AND is_deleted IS NOT TRUE"
            for table in ("provider_traces", "provider_trace_metadata")
        )
        url = demo.embedded_postgres(self.state)
        with dbapi.connect(url) as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT count(*) FROM ({calls})")
            row = cursor.fetchone()
            assert row is not None
            return int(row[0])

    def loaded_rows(self, first: datetime, last: datetime) -> tuple[int, int]:
        """Return the rows and the distinct ids that ClickHouse has in a range of hours."""
        with connect(Settings.from_environment({"LLM_TRACES_STATE": str(self.state)})) as database:
            found = database.rows(
                "SELECT count() AS rows, uniqExact(id) AS ids FROM llm_traces WHERE "
                "created_at >= {first:DateTime} AND created_at < {end:DateTime}",
                {"first": first, "end": last + HOUR},
            )
        return found[0]["rows"], found[0]["ids"]


def hours_ago(hours: int) -> datetime:
    return floor(datetime.now(UTC)) - hours * HOUR


def is_up(dagster: Dagster, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    with suppress(OSError, http.client.HTTPException):
        return bool(dagster.location)
    return False


@pytest.fixture(scope="module")
def dagster() -> Iterator[Dagster]:
    """A running ``make dev``; when it is told to end, nothing is left of it."""
    # Not tmp_path: its parents are closed to the account that PostgreSQL runs as under root.
    folder = Path(tempfile.mkdtemp(prefix="llm-traces-ui-"))
    folder.chmod(0o755)
    state, log = folder / "state", folder / "log"
    dagster = Dagster(state, free_port())
    ours = ("LLM_TRACES_", "CLICKHOUSE_", "TRACE_BATCH_", "OPERATIONAL_", "DAGSTER_")
    environment = {name: text for name, text in os.environ.items() if not name.startswith(ours)}
    environment |= {"LLM_TRACES_STATE": str(state)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "llm_trace_pipeline.cli", "dev", "--port", str(dagster.port)],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(lambda: is_up(dagster, process, log), "Dagster answers")
        yield dagster
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(PATIENCE_SECONDS)
        demo.leave_postgres(state)
        left, postgres = processes_of(state), (state / "postgres" / "postmaster.pid").exists()
        written = log.read_text()
        shutil.rmtree(folder, ignore_errors=True)
    assert (status, left, postgres) == (0, [], False), written


@pytest.fixture
def page(dagster: Dagster, browser: Browser) -> Iterator[Page]:
    """A window that remembers nothing of another test's."""
    window = ViewportSize(width=1400, height=800)
    page = browser.new_page(viewport=window, base_url=dagster.url)
    page.set_default_timeout(PATIENCE_SECONDS * 1000)
    expect.set_options(timeout=PATIENCE_SECONDS * 1000)
    yield page
    page.close()


def show_lineage(page: Page) -> None:
    """Open the lineage with every asset in sight."""
    page.goto("/asset-groups")
    expect(page.get_by_role("button", name="Materialize all")).to_be_enabled()
    graph = page.locator("svg foreignObject")
    expect(graph.first).to_be_visible()
    page.keyboard.press("Alt+e")  # "Expand all groups"
    for name in ASSETS:
        expect(graph.get_by_text(name, exact=True).last).to_be_visible()


def test_an_hour_is_materialized_by_hand(dagster: Dagster, page: Page) -> None:
    hour = hours_ago(2)
    key = key_of(hour)
    page.goto(f"/locations/{dagster.location}/jobs/hourly_llm_traces")
    page.get_by_role("button", name="Materialize all").click()
    dialog = page.get_by_role("dialog")
    choice = dialog.get_by_role("textbox").first
    choice.fill(key)
    choice.press("Enter")
    dialog.get_by_role("button", name="Launch 1 run").click()
    page.get_by_text(re.compile("^View$")).click()
    page.wait_for_url("**/runs/*")
    expect(page.get_by_text("Success", exact=True)).to_be_visible()

    page.goto("/assets/llm_traces")
    expect(page.get_by_text(key, exact=True).first).to_be_visible()
    rows = dagster.source_rows(hour, hour)
    assert rows > 0
    assert dagster.loaded_rows(hour, hour) == (rows, rows)


def test_the_schedule_runs(dagster: Dagster, page: Page) -> None:
    page.goto(f"/locations/{dagster.location}/schedules/hourly_llm_traces_schedule")
    expect(page.get_by_text("At 10 minutes past the hour").first).to_be_visible()
    expect(page.get_by_role("checkbox").first).to_be_checked()


def test_a_killed_run_gives_its_pool_back(dagster: Dagster) -> None:
    first, last = hours_ago(28), hours_ago(5)
    run = dagster.launch(first, last)
    wait_for(lambda: run in dagster.holders("clickhouse"), "the run holds the pool")
    os.kill(dagster.worker(run), signal.SIGKILL)
    wait_for(lambda: dagster.status(run) == "FAILURE", "the killed run is marked as failed")
    assert run in dagster.holders("clickhouse")

    following = dagster.launch(hours_ago(4), hours_ago(4))
    wait_for(lambda: dagster.status(following) == "SUCCESS", "the next hour loads")
    retry = wait_for(lambda: dagster.retries(run), "the killed run is retried")
    wait_for(lambda: dagster.status(retry[0]) == "SUCCESS", "its retry loads its hours")
    rows = dagster.source_rows(first, hours_ago(4))
    assert dagster.loaded_rows(first, hours_ago(4)) == (rows, rows)


@pytest.mark.skipif("UI_SCREENSHOT" not in os.environ, reason="make screenshot takes it")
def test_screenshot(dagster: Dagster, page: Page) -> None:
    run = dagster.launch(first_hour(dagster.state), hours_ago(1))
    wait_for(lambda: dagster.status(run) == "SUCCESS", "all hours are loaded")
    page.goto("/asset-groups")
    page.get_by_role("button", name="Hide navigation").click()
    show_lineage(page)
    expect(page.get_by_text("100% filled")).to_have_count(3)
    page.screenshot(path=os.environ["UI_SCREENSHOT"])
