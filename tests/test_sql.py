"""Statements: placeholders are filled, and nothing else is touched."""

import pytest

from llm_trace_pipeline import sql
from llm_trace_pipeline.sql import render, without_comments


@pytest.fixture(autouse=True)
def statement(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "-- Rows of {table}.\nSELECT * FROM {table} WHERE at >= {start:DateTime} -- {table}\n"
    monkeypatch.setattr(sql, "read_sql", {"some.sql": text}.__getitem__)


def test_placeholders_are_filled_and_comments_and_parameters_stay() -> None:
    assert render("some.sql", table="`a`") == (
        "-- Rows of {table}.\nSELECT * FROM `a` WHERE at >= {start:DateTime} -- {table}\n"
    )


def test_a_part_without_placeholder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sql/some\.sql has no placeholder filter"):
        render("some.sql", table="`a`", filter="1")


def test_a_placeholder_without_part_is_refused() -> None:
    with pytest.raises(KeyError, match="table"):
        render("some.sql")


def test_what_a_statement_reads_is_known_without_its_comments() -> None:
    assert without_comments("-- of a\nSELECT b -- of c\nFROM d\n") == "SELECT b\nFROM d"
