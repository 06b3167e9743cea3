"""The command ``sql``: it reads, one statement at a time, and sends a terminal text alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llm_trace_pipeline.cli.__main__ import main
from llm_trace_pipeline.cli.terminal import printable
from tests.harness.http_server import USERS, running, settings_of_server

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Call the command; its exit status, and what it printed and said."""
    monkeypatch.setenv("LLM_TRACES_STATE", str(tmp_path))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["llm-traces", "sql", *arguments])
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = int(str(ended.code))
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


CHANGES = (
    "CREATE TABLE t (x UInt8) ENGINE = MergeTree ORDER BY x",
    "INSERT INTO t SELECT 7",
    "ALTER TABLE t DELETE WHERE 1",
    "DROP TABLE t",
)


def test_only_a_call_that_says_so_changes_anything(call: Call) -> None:
    refusal = (
        "Q: the statement changes something, and this command only reads; make sql WRITE=1, or "
        "llm-traces sql --write, lets it\n"
    )
    assert call("--write", CHANGES[0])[0] == 0
    assert call("--write", CHANGES[1])[0] == 0
    for statement in CHANGES:
        assert call(statement) == (2, "", refusal)
    status, printed, _ = call("SELECT x * 6 AS answer FROM t SETTINGS max_threads = 1;")
    assert (status, "42" in printed) == (0, True)
    assert call("SELECT x FROM t SETTINGS readonly = 0")[0] == 2


@pytest.mark.parametrize("user", ["loader", "reader"])
def test_a_server_is_asked_alike_also_by_a_user_who_may_only_read(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    with running(tmp_path / "server", *USERS) as server:
        settings = settings_of_server(tmp_path, server.port)
        monkeypatch.setenv("CLICKHOUSE_ENDPOINT", settings.clickhouse_endpoint)
        monkeypatch.setenv("CLICKHOUSE_USERNAME", user)
        password = settings.clickhouse_password.get_secret_value()
        monkeypatch.setenv("CLICKHOUSE_PASSWORD", password)
        status, printed, said = call("SELECT 6 * 7 AS answer")
        assert (status, "42" in printed, said) == (0, True, "")
        assert call(CHANGES[0])[2].startswith("Q: the statement changes something")


@pytest.mark.parametrize(
    ("statement", "is_one"),
    [
        ("SELECT 1;", True),
        ("SELECT 1 ; \n", True),
        ("SELECT ';', \"a;b\" FROM (SELECT 'it''s;' AS `a;b`) -- and; this", True),
        ("SELECT /* a; b */ '\\';' AS x", True),
        ("SELECT 1; SELECT 2", False),
        ("SELECT ';'; DROP TABLE t", False),
        ("SELECT 1 -- a\n; SELECT 2", False),
    ],
)
def test_a_call_has_one_statement(call: Call, statement: str, is_one: bool) -> None:
    status, _, said = call(statement)
    assert (status == 0) == is_one, said
    assert said.startswith("Q: one statement at a time") != is_one


def test_what_rows_hold_does_not_steer_the_terminal(call: Call) -> None:
    _, printed, said = call(r"SELECT '\x1b[31mred\x1b]0;title\x07', 'bell\x07 \x9b ü🦉'")
    assert not said
    assert r"\x1b[31mred\x1b]0;title\x07" in printed
    assert "🦉" in printed
    assert printed.isprintable() or set(filter(lambda c: not c.isprintable(), printed)) == {"\n"}
    _, _, said = call(r"SELECT throwIf(1, 'bell \x07\x1b[2J')")
    assert "\x1b" not in said
    assert "\x07" not in said


def test_lines_and_tabs_stay() -> None:
    assert printable("a\tb\nc\r\x1b\x7f\x9b") == "a\tb\nc\\x0d\\x1b\\x7f\\x9b"
