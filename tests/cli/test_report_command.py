"""The command that writes the report: the days that it takes, and where the page goes."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from llm_trace_pipeline.cli.__main__ import main
from llm_trace_pipeline.cli.report import days_between, write_report
from llm_trace_pipeline.errors import SettingsError
from tests.harness.calls import FIRST, LAST
from tests.harness.report_page import MADE_AT

FIRST_HOUR = datetime(2026, 2, 24, 7, tzinfo=UTC)
BEFORE = r"lies before the first hour, 2026-02-24-07:00 \(LLM_TRACES_START\)$"


@pytest.mark.parametrize(
    ("first", "last", "days"),
    [
        ("", "", ("2026-02-27", "2026-03-06")),
        ("2026-03-01", "", ("2026-03-01", "2026-03-06")),
        ("", "2026-03-01", ("2026-02-22", "2026-03-01")),
        ("2026-02-24", "2026-02-24", ("2026-02-24", "2026-02-24")),
        ("2026-03-01", "2026-03-01", ("2026-03-01", "2026-03-01")),
    ],
    ids=["the last seven days and today", "until today", "seven before", "the first", "a day"],
)
def test_days_that_a_command_names(first: str, last: str, days: tuple[str, str]) -> None:
    found = days_between(first, last, FIRST_HOUR, MADE_AT.date())
    assert (str(found.first), str(found.last)) == days


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        ("2026-03-01-00:00", "", "FROM, TO: must be days such as 2026-03-01"),
        ("2026-03-02", "2026-03-01", "TO: 2026-03-01 lies before FROM: 2026-03-02"),
        ("2026-03-01", "2026-03-07", "TO: the day 2026-03-07 has not begun yet"),
        ("2026-02-23", "2026-03-01", f"FROM: 2026-02-23 {BEFORE}"),
        ("", "2026-02-23", f"TO: 2026-02-23 {BEFORE}"),
    ],
    ids=["an hour", "backwards", "ahead", "from before the first hour", "before the first hour"],
)
def test_wrong_days_are_one_line(first: str, last: str, message: str) -> None:
    with pytest.raises(SettingsError, match=f"^{message}[^\n]*$"):
        days_between(first, last, FIRST_HOUR, MADE_AT.date())


def test_the_command_writes_the_page_and_says_where(
    state_of_calls: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLM_TRACES_STATE", str(state_of_calls))
    monkeypatch.setenv("LLM_TRACES_START", f"{FIRST}-00:00")
    write_report(str(FIRST), str(LAST), "")
    path = state_of_calls / "reports" / f"{FIRST}_{LAST}.html"
    assert capsys.readouterr().out == f"{path}\n"
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("{file}/x", "{file}(/x)?: (Not a directory|File exists)"),
        ("/proc/x/y", "/proc/x(/y)?: No such file or directory"),
        ("", "{state}/(reports|invoices): File exists"),
        ("/dev/full", "(/dev/full: File exists|No space left on device)"),
    ],
    ids=["below a file", "where nobody can write", "by default", "a full disk"],
)
@pytest.mark.parametrize("command", [["report", str(FIRST), str(LAST)], ["invoice", "2026-03"]])
def test_a_place_that_cannot_be_written_is_one_line(
    command: list[str],
    out: str,
    reason: str,
    state_of_calls: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, state = tmp_path / "file", tmp_path / "state"
    state.mkdir()
    for path in (file, state / "reports", state / "invoices"):
        path.touch()
    monkeypatch.setenv("LLM_TRACES_STATE", str(state))
    monkeypatch.setenv("CLICKHOUSE_ENDPOINT", f"chdb://{state_of_calls}/clickhouse")
    monkeypatch.setenv("LLM_TRACES_START", f"{FIRST}-00:00")
    monkeypatch.setattr(
        "sys.argv", ["llm-traces", command[0], "--out", out.format(file=file), *command[1:]]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    expected = reason.format(file=file, state=state)
    assert re.fullmatch(f"{expected}; name another place, by [^\\n]*\\n", said.err), said.err
