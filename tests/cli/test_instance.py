"""The Dagster instance of the commands: whose it is, and where its records lie."""

import os
from pathlib import Path

import pytest
from dagster import DagsterInstance

from llm_trace_pipeline.cli.instance import use_instance
from llm_trace_pipeline.settings import Settings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in an environment without an instance."""
    monkeypatch.chdir(tmp_path)
    # Set first, so that what the command sets is gone after the test.
    for name in ("DAGSTER_HOME", "LLM_TRACES_STATE", "DAGSTER_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return tmp_path


def test_records_lie_in_the_state_of_the_current_folder(folder: Path) -> None:
    use_instance(Settings.from_environment())
    assert os.environ["DAGSTER_HOME"] == str(folder / ".data")
    with DagsterInstance.get() as instance:
        assert instance.get_runs_count() == 0
        assert instance.storage_directory() == f"{folder}/.data/storage"
    # Where the records of every checkout lie, also of one from before the command.
    assert (folder / ".data" / "history" / "runs.db").exists()
    assert os.environ["DAGSTER_DISABLE_TELEMETRY"] == "1"


def test_an_instance_of_the_user_stays_and_relative_paths_become_absolute(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "mine")
    monkeypatch.setenv("LLM_TRACES_STATE", "state")
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "0")
    use_instance(Settings.from_environment())
    assert os.environ["DAGSTER_HOME"] == str(folder / "mine")
    assert (folder / "mine" / "dagster.yaml").exists()  # a new home is one of ours
    assert os.environ["LLM_TRACES_STATE"] == str(folder / "state")
    assert os.environ["DAGSTER_DISABLE_TELEMETRY"] == "0"


def test_a_home_of_the_user_that_holds_anything_is_left_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "notes").touch()
    monkeypatch.setenv("DAGSTER_HOME", "mine")
    use_instance(Settings.from_environment())
    assert [path.name for path in (folder / "mine").iterdir()] == ["notes"]
