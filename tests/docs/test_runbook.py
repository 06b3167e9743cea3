"""The runbook held against the code: a heading for every message, and none for what is not said."""

import re

import pytest

from llm_trace_pipeline.defs.checks import (
    BATCH_CHECKS,
    RECONCILIATION_CHECKS,
    ROLLUP_CHECKS,
    TABLE_CHECKS,
)
from llm_trace_pipeline.defs.freshness import FRESHNESS_CHECKS
from tests.harness.messages import Message, is_headed_by, messages, printed
from tests.harness.pages import headings, page

# What commands print beside their results.
NOTICES = (
    "No demo traffic was added",
    "Nothing that is loaded is covered: is the id right?",
    "going on: ",
    "hole: ",
    "interrupted: ",
    "not before ",
    "not final: ",
)
CHECKS = [
    spec.name
    for spec in (
        *(*BATCH_CHECKS, *TABLE_CHECKS, *ROLLUP_CHECKS),
        *(*RECONCILIATION_CHECKS, *FRESHNESS_CHECKS),
    )
]
HEADINGS = [title.strip("`") for level, title in headings(page("docs/runbook.md")) if level == 3]


def heading_of(message: str) -> str | None:
    """Return the heading that says the most of a message."""
    return max(
        (heading for heading in HEADINGS if is_headed_by(message, heading)), key=len, default=None
    )


def notices() -> list[Message]:
    return [line for line in printed() if line.text.startswith(NOTICES)]


def test_every_message_has_a_heading() -> None:
    assert messages()
    without = [each for each in (*messages(), *notices()) if not heading_of(each.text)]
    assert without == [], "give these a heading in docs/runbook.md"


def test_every_notice_is_printed() -> None:
    lines = [line.text for line in printed()]
    assert [text for text in NOTICES if not any(line.startswith(text) for line in lines)] == []


def test_every_heading_is_a_message_or_a_check() -> None:
    used = {heading_of(each.text) for each in (*messages(), *notices())}
    assert [heading for heading in HEADINGS if heading not in used | set(CHECKS)] == []


def test_every_check_has_a_heading() -> None:
    assert [check for check in CHECKS if check not in HEADINGS] == []


def test_every_heading_leads_to_what_to_do() -> None:
    text = page("docs/runbook.md")
    assert len(HEADINGS) == len(set(HEADINGS))
    assert re.search(r"^### [^`].*$", text, re.MULTILINE) is None
    # Headings that share an answer stand on lines that follow each other.
    for group in re.findall(r"(?:^### .*\n)+\n(.*)$", text, re.MULTILINE):
        assert group
        assert not group.startswith("#")


@pytest.mark.parametrize(
    ("message", "heading", "is_its"),
    [
        ("hour … has no batch; materialize it", "hour … has no batch", True),
        ("hour … has no batch to enrich; materialize it", "hour … has no batch", False),
        ("ClickHouse: cannot be reached: …", "ClickHouse: …", False),
        ("no hour since … (…) has ended", "no hour since …", True),
        ("no hour", "no hour", True),
    ],
)
def test_a_heading_is_cut_at_punctuation_only(message: str, heading: str, is_its: bool) -> None:
    assert is_headed_by(message, heading) == is_its
