"""The command line: what it imports, what it takes, and how it ends."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llm_trace_pipeline.cli.__main__ import llm_traces, main

ROOT = Path(__file__).parents[2]
HEAVY = ("dagster", "chdb", "pyarrow", "pydantic", "clickhouse_connect", "adbc_driver_postgresql")
HELP = """
import sys
sys.argv = ["llm-traces", *sys.argv[1:]]
from llm_trace_pipeline.cli.__main__ import main
main()
print("imported:", *sorted({each.partition(".")[0] for each in sys.modules}))
"""


@pytest.mark.parametrize("arguments", [[], ["--help"], ["run", "--help"], ["erase", "-h"]])
def test_help_is_answered_without_the_engines(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP, *arguments], check=True, capture_output=True, text=True
    )
    text, _, imported = done.stdout.partition("imported: ")
    assert text.startswith("Usage: llm-traces ")
    assert set(imported.split()).isdisjoint(HEAVY)


def test_every_command_has_a_make_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    called = re.findall(r"^(\w+):.*\n\t@\$\(LLM_TRACES\) (\w+)", makefile, re.MULTILINE)
    assert dict(called) == {name: name for name in llm_traces.commands if name != "erase"}


def test_ctrl_c_ends_a_command_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: str, **__: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llm_trace_pipeline.cli.sql.print_result", interrupted)
    monkeypatch.setattr("sys.argv", ["llm-traces", "sql", "SELECT 1"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr() == ("", "\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["dev"],
        ["backfill", "2026-03-01-00:00", "2026-03-01-01:00"],
        ["sql", "SELECT 1"],
        ["preflight"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_wrong_setting_is_one_line_and_nothing_is_made(
    arguments: list[str], tmp_path: Path
) -> None:
    settings = {"LLM_TRACES_STATE": str(tmp_path), "CLICKHOUSE_ENDPOINT": "tcp://localhost"}
    done = subprocess.run(
        [sys.executable, "-m", "llm_trace_pipeline.cli", *arguments],
        env=os.environ | settings,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "CLICKHOUSE_ENDPOINT: must be http(s)://host:port, or chdb:///path for the embedded "
        "engine\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["lod"], "No such command 'lod'. Usage: llm-traces [OPTIONS] [COMMAND] [ARGS]..."),
        (["dev", "--prot", "1"], "No such option '--prot'. .* Usage: llm-traces dev [OPTIONS]"),
        (["backfill"], "Missing argument 'FROM'. Usage: llm-traces backfill [OPTIONS] FROM TO"),
        (["sql", "a", "b"], "Got unexpected extra argument .* Usage: llm-traces sql .*"),
        (["dev", "--port", "x"], "PORT: must be a port such as 3000, not 'x'"),
        (["sql", " "], "Q: a statement is needed; usage: make sql .*"),
        (["invoice", ""], "MONTH: a month is needed; usage: make invoice .*"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_status_2(
    arguments: list[str],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["llm-traces", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    pattern = re.escape(line).replace(r"\.\*", ".*")
    assert re.fullmatch(f"{pattern}\n", said.err), said.err


@pytest.mark.parametrize("arguments", [["run"], ["sql", "SELECT 1"]], ids=lambda words: words[0])
def test_a_state_folder_that_cannot_be_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    environment = {name: os.environ[name] for name in os.environ if "CLICKHOUSE" not in name}
    done = subprocess.run(
        [sys.executable, "-m", "llm_trace_pipeline.cli", *arguments],
        env=environment | {"LLM_TRACES_STATE": str(file / "state")},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert re.fullmatch(
        f"{file}.*: Not a directory; name another place, by LLM_TRACES_STATE, TRACE_BATCH_URI or "
        "the command's OUT\\n",
        done.stderr,
    )
