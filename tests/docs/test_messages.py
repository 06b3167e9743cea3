"""The runbook held against the code: its messages are those that the code can print."""

import ast

from docs.generate import ROOT
from tests.docs.pages import bare, page, rows_of_tables

PACKAGE = ROOT / "llm_trace_pipeline"


def test_every_message_is_one_of_the_code() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")]
    texts = [
        node.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    messages = [bare(row[0]) for row in rows_of_tables(page("docs/runbook.md"), "message")]
    assert messages
    for message in messages:
        for piece in filter(str.strip, message.split("…")):
            assert any(piece in text for text in texts), f"{message!r}: {piece!r}"
