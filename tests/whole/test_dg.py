"""Dagster's own commands in a checkout, where no variable is set."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.hours import key_of
from llm_trace_pipeline.settings import Settings
from tests.harness.operational import Operational, trace
from tests.harness.rows import T0

ROOT = Path(__file__).parents[2]
COPIED = ("pyproject.toml", "dagster.yaml", "workspace.yaml")
LINKED = ("llm_trace_pipeline", "sql")
OURS = ("LLM_TRACES_", "CLICKHOUSE_", "TRACE_BATCH_", "OPERATIONAL_", "DAGSTER_")
HOUR_KEY = key_of(T0)


@pytest.fixture
def checkout() -> Iterator[Path]:
    """A folder with what Dagster reads of a checkout, and nothing that was made in one."""
    with tempfile.TemporaryDirectory(prefix="llm-traces-dg-") as name:
        folder = Path(name)
        for each in COPIED:
            shutil.copy(ROOT / each, folder)
        for each in LINKED:
            (folder / each).symlink_to(ROOT / each)
        yield folder


def output_of(checkout: Path, command: str, **variables: str) -> str:
    """Run a command of the environment in a checkout; return what it printed."""
    program, *arguments = command.split()
    environment = {name: text for name, text in os.environ.items() if not name.startswith(OURS)}
    done = subprocess.run(
        [Path(sys.executable).parent / program, *arguments],
        cwd=checkout,
        env={**environment, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_dg_lists_the_definitions(checkout: Path) -> None:
    listed = output_of(checkout, "dg list defs --json")
    for name in ("trace_batches", "llm_traces", "hourly_llm_traces_schedule", "reconcile_hours"):
        assert f'"{name}"' in listed


@pytest.mark.parametrize("command", ["dg check defs", "dagster definitions validate"])
def test_the_definitions_are_valid(checkout: Path, command: str) -> None:
    said = output_of(checkout, command)
    assert "loaded successfully" in said or "passed validation" in said
    # The state is the demo's first hour alone, and Dagster's own home is gone.
    assert {path.name for path in checkout.iterdir()} == {*COPIED, *LINKED, ".data"}


def test_dg_launches_an_hour(checkout: Path, operational: Operational) -> None:
    operational.insert("provider_traces", *(trace(id=f"{n}") for n in range(3)))
    variables = {"OPERATIONAL_DATABASE_URL": operational.url, "LLM_TRACES_START": HOUR_KEY}
    output_of(checkout, f"dg launch --job hourly_llm_traces --partition {HOUR_KEY}", **variables)
    endpoint = f"chdb://{checkout}/.data/clickhouse"
    with connect(Settings.model_validate({"CLICKHOUSE_ENDPOINT": endpoint})) as database:
        assert database.rows("SELECT count() AS rows FROM llm_traces") == [{"rows": 3}]
