"""The wheel in an environment of its own: everything works without the checkout."""

import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import pytest

from llm_trace_pipeline.hours import HOUR, key_of
from tests.harness.demo import begin_demo, passable_folder
from tests.harness.processes import PATIENCE_SECONDS, free_port, processes_of, wait_for
from tests.harness.webserver import query

ROOT = Path(__file__).parents[2]
HOURS = 2  # of the demo here, to be quick
LOCATIONS = """{ workspaceOrError { ... on Workspace { locationEntries {
    name locationOrLoadError { __typename } } } } }"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with passable_folder("wheel") as folder:
        yield folder


@pytest.fixture(scope="module")
def wheel(folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def command(folder: Path, wheel: Path) -> Path:
    """The command, in a fresh environment that has what the wheel asks for, as locked."""
    uv, environment = Path(sys.executable).with_name("uv"), folder / "environment"
    python = ("--python", environment)
    for step in (
        ("venv", "--python", sys.executable, environment),
        ("pip", "install", *python, "--constraints", ROOT / "requirements.lock", f"{wheel}[all]"),
    ):
        done = subprocess.run(
            [uv, *step],
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    return environment / "bin" / "llm-traces"


@pytest.fixture
def empty(folder: Path, tmp_path: Path) -> Path:
    """An empty folder, in which a command is called."""
    here = folder / tmp_path.name
    here.mkdir()
    return here


def environment() -> dict[str, str]:
    """Return the environment of somebody who has set nothing."""
    ours = ("LLM_TRACES_", "CLICKHOUSE_", "TRACE_BATCH_", "OPERATIONAL_", "DAGSTER_", "PYTHON")
    return {name: text for name, text in os.environ.items() if not name.startswith(ours)}


def call(command: Path, here: Path, *arguments: str) -> str:
    """Return what a command prints that must succeed."""
    done = subprocess.run(
        [command, *arguments],
        cwd=here,
        env=environment(),
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


def test_it_holds_the_package_and_what_the_package_reads(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = {
        f"{path.relative_to(ROOT)}"
        for path in (ROOT / "llm_trace_pipeline").rglob("*")
        if path.suffix in {".py", ".html"}
    }
    statements = {
        f"llm_trace_pipeline/{path.relative_to(ROOT)}" for path in ROOT.glob("sql/**/*.sql")
    }
    instance = {f"llm_trace_pipeline/instance/{name}.yaml" for name in ("dagster", "workspace")}
    assert "llm_trace_pipeline/sql/operational/traces.sql" in statements
    assert held == package | statements | instance


@pytest.mark.installs
def test_its_commands_load_and_ask_in_an_empty_folder(command: Path, empty: Path) -> None:
    assert "Usage: llm-traces " in call(command, empty, "--help")
    assert list(empty.iterdir()) == []
    first = begin_demo(empty / ".data", HOURS)
    said = call(command, empty, "run").splitlines()
    assert "source rows = batch rows = ClickHouse rows, in every hour" in said
    assert "  llm-traces backfill " in "\n".join(said)
    hours = [key_of(first), key_of(first + HOUR)]
    again = call(command, empty, "backfill", *hours).splitlines()
    assert again[-1] == f"{HOURS} hours loaded"
    assert "9007199254740993" in call(command, empty, "sql", "SELECT 9007199254740993")
    page = Path(call(command, empty, "report").strip())
    assert page.parent == empty / ".data" / "reports"
    assert page.exists()
    # All that it makes lies in the state folder: nothing is written beside the package either.
    assert [path.name for path in empty.iterdir()] == [".data"]
    [instance] = command.parents[1].glob("lib/*/site-packages/llm_trace_pipeline/instance")
    assert {path.name for path in instance.iterdir()} == {"dagster.yaml", "workspace.yaml"}


@pytest.mark.installs
def test_its_ui_comes_up_in_an_empty_folder_and_ends_by_ctrl_c(command: Path, empty: Path) -> None:
    begin_demo(empty / ".data", HOURS)
    port, log = free_port(), empty.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [command, "dev", "--port", str(port)],
            cwd=empty,
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(lambda: has_loaded(port, process), "the code location is loaded")
    finally:
        process.send_signal(signal.SIGINT)
        status = process.wait(PATIENCE_SECONDS)
    assert (status, processes_of(empty / ".data")) == (0, []), log.read_text(encoding="utf-8")
    assert [path.name for path in empty.iterdir()] == [".data"]


def has_loaded(port: int, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None
    with suppress(OSError, HTTPException):
        entries = query(port, LOCATIONS)["workspaceOrError"]["locationEntries"]
        loaded = {"name": "llm_traces", "locationOrLoadError": {"__typename": "RepositoryLocation"}}
        return bool(entries == [loaded])
    return False
