"""The queries of sql/examples, on hours that were loaded twice, against plain Python."""

from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from operator import itemgetter
from typing import Any

import pytest

from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.sql import ROOT, read_sql
from llm_trace_pipeline.trace.columns import COLUMNS
from tests.harness.rows import MIDNIGHT, Row, make_rows
from tests.harness.warehouse import Warehouse

H1 = MIDNIGHT + HOUR
END = H1 + HOUR
SOON = H1 + HOUR / 20  # when some rows were made
READ = [column.name for column in COLUMNS[:31]]  # what readers of the table select
ORG, AGENT = "org-1'\\\"", "agent-1"


def rows_of(hour: datetime, version: int) -> list[Row]:
    """Return rows of one organization and of others; some share a step, a moment and a size."""
    rows = make_rows(hour, 40, version)
    for number, row in enumerate(rows):
        row["organization_id"] = ORG if number % 3 else "org-other"
        row["agent_id"] = f"agent-{number // 2 % 2}"
        row["step_id"] = f"step-{number // 4}"
        row["call_type"] = ("agent_step", "summarization")[number % 7 == 0]
        row["created_at"] = hour + HOUR * (number // 2) / 20
        row["request_size_bytes"] += number * version
    return rows


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Database, list[Row]]]:
    """A table whose hours were loaded twice, with changed, late and removed rows; what it holds."""
    folder = tmp_path_factory.mktemp("examples")
    settings = Settings.from_environment({"LLM_TRACES_STATE": str(folder)})
    now = [*rows_of(MIDNIGHT, 2)[:-1], *rows_of(H1, 1)]
    with closing(Warehouse(settings)) as warehouse:
        for hour in (MIDNIGHT, H1):
            warehouse.load(hour, rows_of(hour, 1)[2:])
        warehouse.publish(MIDNIGHT, now[:39])
        warehouse.publish(H1, now[39:])
        for _ in range(2):
            warehouse.load_hours(MIDNIGHT, H1, force=True)
        yield warehouse.database, now


def read(row: Row) -> dict[str, Any]:
    return {name: row[name] for name in READ}


def latest(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row["created_at"], row["id"]), reverse=True)


def ask(
    loaded: tuple[Database, list[Row]], name: str, **parameters: Any
) -> tuple[list[dict[str, Any]], list[Row]]:
    """Return the answer of an example, and the rows of its organization."""
    database, rows = loaded
    parameters = {"organization_id": ORG, **parameters}
    found = database.rows(read_sql(f"examples/{name}.sql"), parameters)
    return found, [row for row in rows if row["organization_id"] == parameters["organization_id"]]


TESTED = {
    "call_by_step",
    "provider_trace_by_step",
    "call_by_id",
    "cost_of_call",
    "calls_of_agent",
    "usage",
    "large_requests",
}


def test_every_example_is_run_and_needs_no_final() -> None:
    texts = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "examples").iterdir()}
    assert set(texts) == TESTED
    for text in texts.values():
        assert text.startswith("-- ")
        assert "FINAL" not in text


@pytest.mark.parametrize("step", ["step-0", "step-3", "step-9", "step-none"])
def test_a_call_by_its_step(loaded: tuple[Database, list[Row]], step: str) -> None:
    found, rows = ask(loaded, "call_by_step", step_id=step)
    of_step = [row for row in rows if row["step_id"] == step]
    newest = max((row["created_at"] for row in of_step), default=None)
    latest_calls = [read(row) for row in of_step if row["created_at"] == newest]
    assert len(found) == min(len(of_step), 1)
    assert all(row in latest_calls for row in found)
    for name in ("call_by_step", "provider_trace_by_step"):
        assert ask(loaded, name, step_id=step, organization_id="another")[0] == []
    short, _ = ask(loaded, "provider_trace_by_step", step_id=step)
    names = ["created_at", "id", "step_id", "request_json", "response_json"]
    assert [list(row) for row in short] == [names for _ in found]
    assert [row["created_at"] for row in short] == [row["created_at"] for row in found]
    by_id = {row["id"]: row for row in rows}
    assert short == [{name: by_id[row["id"]][name] for name in names} for row in short]


def test_a_call_by_its_id(loaded: tuple[Database, list[Row]]) -> None:
    _, rows = loaded
    for row in rows[::7]:
        found, _ = ask(loaded, "call_by_id", id=row["id"], organization_id=row["organization_id"])
        assert found == [read(row)]
        assert [list(each) for each in found] == [READ]
        assert ask(loaded, "call_by_id", id=row["id"], organization_id="another")[0] == []
    gone = rows_of(MIDNIGHT, 1)[-1]
    of_gone = {"id": gone["id"], "organization_id": gone["organization_id"]}
    assert ask(loaded, "call_by_id", **of_gone)[0] == []


NO_FILTER = {
    "agent_id": AGENT,
    "start": MIDNIGHT,
    "end": END,
    "model": "",
    "provider": "",
    "call_type": "",
    "errors_only": 0,
    "tags": [],
    "limit": 1000,
    "offset": 0,
}


@pytest.mark.parametrize(
    ("filters", "is_wanted"),
    [
        ({}, lambda _: True),
        ({"model": "model-2"}, lambda row: row["model"] == "model-2"),
        ({"provider": "openai"}, lambda row: row["provider"] == "openai"),
        ({"call_type": "summarization"}, lambda row: row["call_type"] == "summarization"),
        ({"errors_only": 1}, lambda row: row["is_error"]),
        ({"tags": ["ß", "a"]}, lambda row: {"ß", "a"} <= set(row["agent_tags"])),
        ({"tags": ["b\x1e"]}, lambda row: "b\x1e" in row["agent_tags"]),
        ({"start": SOON, "end": SOON}, lambda row: row["created_at"] == SOON),
        (
            {"model": "model-1", "errors_only": 1, "end": H1 + HOUR / 2},
            lambda row: (
                row["model"] == "model-1" and row["is_error"] and row["created_at"] <= H1 + HOUR / 2
            ),
        ),
    ],
)
def test_calls_of_an_agent(
    loaded: tuple[Database, list[Row]], filters: dict[str, Any], is_wanted: Any
) -> None:
    found, rows = ask(loaded, "calls_of_agent", **{**NO_FILTER, **filters})
    wanted = [read(row) for row in latest(rows) if row["agent_id"] == AGENT and is_wanted(row)]
    assert found == wanted
    assert wanted or filters.get("tags") == ["b\x1e"]


def test_pages_hold_every_call_once(loaded: tuple[Database, list[Row]]) -> None:
    whole, _ = ask(loaded, "calls_of_agent", **NO_FILTER)
    pages = [
        ask(loaded, "calls_of_agent", **{**NO_FILTER, "limit": 7, "offset": offset})[0]
        for offset in range(0, len(whole) + 7, 7)
    ]
    assert [len(page) for page in pages[:-1]] == [7] * (len(whole) // 7) + [len(whole) % 7] * bool(
        len(whole) % 7
    )
    assert [row for page in pages for row in page] == whole


@pytest.mark.parametrize("group_by", ["model", "agent_id", "call_type", "provider"])
def test_usage_of_an_organization(loaded: tuple[Database, list[Row]], group_by: str) -> None:
    start, end = MIDNIGHT + HOUR / 4, H1 + HOUR / 2
    found, rows = ask(loaded, "usage", group_by=group_by, start=start, end=end)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if start <= row["created_at"] <= end:
            groups.setdefault(row[group_by], []).append(row)
    expected = [
        {
            group_by: name,
            "request_count": len(group),
            "total_tokens": sum(row["total_tokens"] for row in group),
            "prompt_tokens": sum(row["prompt_tokens"] for row in group),
            "completion_tokens": sum(row["completion_tokens"] for row in group),
            "avg_latency_ms": sum(row["latency_ms"] for row in group) / len(group),
            "total_request_bytes": sum(row["request_size_bytes"] for row in group),
            "total_response_bytes": sum(row["response_size_bytes"] for row in group),
            "error_count": sum(row["is_error"] for row in group),
        }
        for name, group in groups.items()
    ]
    assert found == sorted(expected, key=lambda row: row["total_tokens"], reverse=True)
    assert len(found) == 2


def test_large_requests(loaded: tuple[Database, list[Row]]) -> None:
    _, rows = ask(loaded, "large_requests", min_size_bytes=0, limit=1)
    sizes = sorted(row["request_size_bytes"] for row in rows)
    smallest = sizes[len(sizes) // 2]
    found, _ = ask(loaded, "large_requests", min_size_bytes=smallest, limit=1000)
    wanted = [read(row) for row in rows if row["request_size_bytes"] >= smallest]
    by_id = itemgetter("id")
    assert sorted(found, key=by_id) == sorted(wanted, key=by_id)
    found_sizes = [row["request_size_bytes"] for row in found]
    assert found_sizes == sorted(found_sizes, reverse=True)
    few, _ = ask(loaded, "large_requests", min_size_bytes=smallest, limit=3)
    assert [row["request_size_bytes"] for row in few] == found_sizes[:3]


def test_the_cost_of_a_call_is_explained(loaded: tuple[Database, list[Row]]) -> None:
    whose = {
        ("reported", "response"): "the response says what was charged",
        ("file", "response"): "your price file",
        ("list", "step"): "the list price on its day",
        ("list", "none"): "a failed call without usage costs nothing",
        ("", "none"): "not known: nobody reported the usage",
        ("", "response"): "not known: no price, or counts that contradict each other",
    }
    explained = set()
    for row in loaded[1]:
        [found], _ = ask(loaded, "cost_of_call", id=row["id"])
        kind = row["cost_basis"], row["usage_source"]
        explained.add(kind)
        assert found["whose"] == whose.get(kind, found["whose"])
        same = ("cost_usd", "price_entry", "served_model", "usage_details", "other_cost_usd")
        assert {name: found[name] for name in same} == {name: row[name] for name in same}
        parts = (found[f"{part}_cost_usd"] for part in ("cached_input", "cache_write", "uncached"))
        if row["cost_usd"] is not None:
            assert sum(parts) == row["input_cost_usd"]
        known = (row[f"{name}_tokens"] or 0 for name in ("cached_input", "cache_write"))
        assert found["uncached_tokens"] == row["prompt_tokens"] - sum(known)
    assert {("list", "step"), ("list", "none"), ("", "none")} <= explained
