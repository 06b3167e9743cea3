"""The command ``erase``: what it refuses before anything is recorded."""

import re
from pathlib import Path

import pytest

from llm_trace_pipeline.batches.erasures import read_erasures
from llm_trace_pipeline.batches.files import LocalFiles
from llm_trace_pipeline.cli.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--organization'. Usage: .*"),
        (["--organization", ""], "--organization: is empty"),
        (["--organization", "o", "--agent", ""], "--agent: is empty"),
        (["--organization", "o", "--before", ""], "--before: must be a day .*"),
        (["--organization", "o", "--before", "2026-02-30"], "--before: must be .*'2026-02-30'"),
        (["--organization", "o", "--before", "2999-01-01"], "--before: 2999-01-01 lies ahead; .*"),
    ],
)
def test_a_wrong_argument_is_one_line(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["llm-traces", "erase", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert re.fullmatch(f"{message}\n", capsys.readouterr().err)


def test_a_place_where_nothing_was_loaded_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLM_TRACES_STATE", str(tmp_path / "elsewhere"))
    monkeypatch.setattr("sys.argv", ["llm-traces", "erase", "--organization", "o"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    batches = tmp_path / "elsewhere" / "batches"
    assert capsys.readouterr().err.startswith(f"nothing was ever loaded into {batches} or ")
    assert not read_erasures(LocalFiles(batches))
