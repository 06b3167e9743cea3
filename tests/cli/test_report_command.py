"""The command that writes the report: the days that it takes, and where the page goes."""

from pathlib import Path

import pytest

from llm_trace_pipeline.cli.report import days_between, write_report
from llm_trace_pipeline.errors import PipelineError, SettingsError
from tests.harness.calls import FIRST, LAST
from tests.harness.report_page import MADE_AT


@pytest.mark.parametrize(
    ("first", "last", "days"),
    [
        ("", "", ("2026-02-27", "2026-03-06")),
        ("2026-03-01", "", ("2026-03-01", "2026-03-06")),
        ("", "2026-03-01", ("2026-02-22", "2026-03-01")),
        ("2026-03-01", "2026-03-01", ("2026-03-01", "2026-03-01")),
    ],
    ids=["the last seven days and today", "until today", "seven days before", "a day"],
)
def test_days_that_a_command_names(first: str, last: str, days: tuple[str, str]) -> None:
    found = days_between(first, last, MADE_AT.date())
    assert (str(found.first), str(found.last)) == days


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        ("2026-03-01-00:00", "", "FROM, TO: must be days such as 2026-03-01"),
        ("2026-03-02", "2026-03-01", "TO: 2026-03-01 lies before FROM: 2026-03-02"),
    ],
    ids=["an hour", "backwards"],
)
def test_wrong_days_are_one_line(first: str, last: str, message: str) -> None:
    with pytest.raises(SettingsError, match=f"^{message}[^\n]*$"):
        days_between(first, last, MADE_AT.date())


def test_the_command_writes_the_page_and_says_where(
    state_of_calls: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLM_TRACES_STATE", str(state_of_calls))
    write_report(str(FIRST), str(LAST), "")
    path = state_of_calls / "reports" / f"{FIRST}_{LAST}.html"
    assert capsys.readouterr().out == f"{path}\n"
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    with pytest.raises(PipelineError, match=r"^OUT: "):
        write_report(str(FIRST), str(LAST), f"{path}/elsewhere")
