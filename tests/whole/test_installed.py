"""The wheel in a fresh environment: the command in an empty folder, without a checkout."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.harness.processes import PATIENCE_SECONDS, free_port, wait_for

pytestmark = pytest.mark.installs
ROOT = Path(__file__).parents[2]
OURS = ("LLM_TRACES_", "CLICKHOUSE_", "TRACE_BATCH_", "OPERATIONAL_", "DAGSTER_")
ENVIRONMENT = {name: text for name, text in os.environ.items() if not name.startswith(OURS)}
LOCATIONS = """{ workspaceOrError { ... on Workspace { locationEntries {
    name locationOrLoadError { __typename } } } } }"""


@pytest.fixture(scope="module")
def program() -> Iterator[Path]:
    """The command of a wheel that is installed with all extras, at the locked versions."""
    # Not tmp_path: its parents are closed to the account that PostgreSQL runs as under root.
    folder = Path(tempfile.mkdtemp(prefix="llm-traces-installed-"))
    folder.chmod(0o755)
    there = folder / "environment"
    build = f"-m hatchling build -t wheel -d {folder}".split()
    subprocess.run([sys.executable, *build], cwd=ROOT, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", there], check=True)
    install = f"pip install --quiet --python {there} --constraints requirements.lock".split()
    uv = Path(sys.executable).parent / "uv"
    subprocess.run([uv, *install, f"{wheel}[all]"], cwd=ROOT, check=True)
    yield there / "bin" / "llm-traces"
    shutil.rmtree(folder)


@pytest.fixture
def empty() -> Iterator[Path]:
    """An empty folder, which is the current one of the command."""
    folder = Path(tempfile.mkdtemp(prefix="llm-traces-empty-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def begin_demo(folder: Path, hours: int) -> None:
    """Let the demo of a folder have begun so many hours ago, to be quick."""
    (folder / ".data").mkdir()
    begun = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=hours)
    (folder / ".data/demo.json").write_text(
        json.dumps({"first_hour": begun.isoformat()}), encoding="utf-8"
    )


def test_help_names_the_subcommands_and_makes_nothing(program: Path, empty: Path) -> None:
    done = subprocess.run(
        [program, "--help"], cwd=empty, env=ENVIRONMENT, check=True, capture_output=True, text=True
    )
    for name in ("run", "dev", "backfill", "restore", "sql", "report", "invoice", "preflight"):
        assert f"\n  {name} " in done.stdout
    assert list(empty.iterdir()) == []


def test_run_loads_the_demo_into_the_current_folder(program: Path, empty: Path) -> None:
    begin_demo(empty, hours=2)
    done = subprocess.run(
        [program, "run"], cwd=empty, env=ENVIRONMENT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "source rows = batch rows = ClickHouse rows, in every hour" in done.stdout
    assert [path.name for path in empty.iterdir()] == [".data"]


def test_dev_serves_the_code_location_and_ends_when_told(program: Path, empty: Path) -> None:
    begin_demo(empty, hours=1)
    port, log = free_port(), empty / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "dev", "--port", str(port)],
            cwd=empty,
            env=ENVIRONMENT,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def locations() -> list[dict[str, object]]:
        assert process.poll() is None, log.read_text()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/graphql",
            json.dumps({"query": LOCATIONS}).encode(),
            {"Content-Type": "application/json"},
        )
        found: list[dict[str, object]] = []
        with suppress(OSError), urllib.request.urlopen(request) as answer:  # noqa: S310 -- of this machine
            found = json.load(answer)["data"]["workspaceOrError"]["locationEntries"]
        return [each for each in found if each["locationOrLoadError"]]

    try:
        found = wait_for(locations, "the code location is loaded")
    finally:
        process.send_signal(signal.SIGINT)
        status = process.wait(PATIENCE_SECONDS)
    assert found == [
        {"name": "llm_traces", "locationOrLoadError": {"__typename": "RepositoryLocation"}}
    ]
    assert status == 0, log.read_text()
