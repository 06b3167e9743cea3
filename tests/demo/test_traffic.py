"""The demo's traffic: the same however it is added, with every kind of trace in it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from adbc_driver_postgresql import dbapi

from llm_trace_pipeline.demo.responses import RECIPES
from llm_trace_pipeline.demo.rows import CHANGES_PLAN, WITHOUT_BILLING, organization_id
from llm_trace_pipeline.demo.traffic import add_traffic, first_hour
from llm_trace_pipeline.sql import read_sql
from tests.harness.operational import execute, fresh_database

START = datetime(2026, 3, 1, 13, tzinfo=UTC)
END = START + timedelta(hours=3)
TABLES = (
    "provider_traces",
    "provider_trace_metadata",
    "steps",
    "step_metrics",
    "organization_billing_details",
)


@pytest.fixture(scope="module")
def whole(postgres_url: str) -> Iterator[str]:
    """A database whose hours were added at once."""
    with fresh_database(postgres_url) as url:
        assert add_traffic(url, START, END) > 2000
        yield url


@pytest.fixture
def empty(postgres_url: str) -> Iterator[str]:
    """A database without any hour."""
    with fresh_database(postgres_url) as url:
        yield url


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    with dbapi.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows


def contents(url: str) -> dict[str, list[tuple[Any, ...]]]:
    return {
        table: query(
            url,
            "SELECT count(*), md5(string_agg(row, '' ORDER BY row))"
            f" FROM (SELECT md5(t::text) AS row FROM {table} AS t) AS rows",
        )
        for table in TABLES
    }


def test_hours_added_in_parts_equal_hours_added_at_once(empty: str, whole: str) -> None:
    cut = START + timedelta(hours=1, minutes=25, seconds=17)
    lines: list[str] = []
    first = add_traffic(empty, START, cut, lines.append)
    second = add_traffic(empty, START, END, lines.append)
    assert lines == ["hour 1 of 2", "hour 2 of 2", "hour 1 of 2", "hour 2 of 2"]
    assert contents(empty) == contents(whole)
    ((traces,),) = query(
        empty,
        "SELECT (SELECT count(*) FROM provider_traces)"
        " + (SELECT count(*) FROM provider_trace_metadata)",
    )
    assert first + second == traces


def test_adding_again_adds_nothing(whole: str) -> None:
    before = contents(whole)
    assert add_traffic(whole, START, END) == 0
    assert contents(whole) == before


def test_two_who_add_at_once_add_everything_once(empty: str, whole: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        added = list(pool.map(lambda _: add_traffic(empty, START, END), range(2)))
    assert min(added) == 0
    assert contents(empty) == contents(whole)


def test_a_database_of_an_earlier_version_gets_what_it_has_columns_for(
    empty: str, whole: str
) -> None:
    execute(empty, read_sql("demo/schema.sql"))
    execute(empty, "ALTER TABLE steps DROP status, DROP stop_reason, DROP model_handle")
    add_traffic(empty, START, END)
    tables = {name: rows for name, rows in contents(whole).items() if name != "steps"}
    assert contents(empty) | tables == contents(empty)
    counts = "SELECT count(*), sum(total_tokens) FROM steps"
    assert query(empty, counts) == query(whole, counts)


def test_every_trace_lies_strictly_inside_its_hour(whole: str) -> None:
    ((first, last, on_the_hour),) = query(
        whole,
        "SELECT min(created_at), max(created_at),"
        " count(*) FILTER (WHERE created_at = date_trunc('hour', created_at)) FROM provider_traces",
    )
    assert START < first < last < END
    assert on_the_hour == 0


def test_every_model_is_called(whole: str) -> None:
    called = query(
        whole,
        "SELECT DISTINCT s.provider_name, t.llm_config ->> 'model_endpoint_type', s.model"
        " FROM steps AS s JOIN provider_traces AS t ON t.step_id = s.id"
        " WHERE t.llm_config IS NOT NULL",
    )
    assert set(called) == {(r.provider, r.endpoint_type or r.provider, r.model) for r in RECIPES}


def test_one_organization_changes_its_plan_on_the_second_day(whole: str) -> None:
    versions = query(
        whole,
        "SELECT plan_type, updated_at FROM organization_billing_details"
        f" WHERE organization_id = '{organization_id(CHANGES_PLAN)}'"
        " ORDER BY updated_at NULLS FIRST",
    )
    assert versions == [("pro", None), ("enterprise", datetime(2026, 3, 2, 13, 37, tzinfo=UTC))]


def test_organizations_without_billing_call_too(whole: str) -> None:
    unknown = query(
        whole,
        "SELECT DISTINCT organization_id FROM provider_traces"
        " WHERE organization_id NOT IN (SELECT organization_id FROM organization_billing_details)",
    )
    assert {row[0] for row in unknown} == set(map(organization_id, WITHOUT_BILLING))


@pytest.mark.parametrize(
    "condition",
    [
        pytest.param("llm_config IS NULL", id="no_llm_config"),
        pytest.param("llm_config ->> 'provider_category' = 'byok'", id="byok_in_llm_config"),
        pytest.param("billing_context IS NOT NULL", id="billing_of_the_request"),
        pytest.param("is_deleted", id="deleted"),
        pytest.param("call_type IS NULL", id="no_call_type"),
        pytest.param("agent_tags IS NULL", id="no_tags"),
        pytest.param("org_id IS NULL", id="no_org_id"),
        pytest.param("response_json ->> 'error_type' = 'TimeoutError'", id="error_without_text"),
        pytest.param('response_json::text = \'{"error":null,"error_type":null}\'', id="cancelled"),
        pytest.param("response_json -> 'content' -> 'tool_call' IS NOT NULL", id="streamed"),
        pytest.param("call_type = 'summarization'", id="summary"),
        pytest.param("response_json -> 'usage' -> 'cost' IS NOT NULL", id="reported_cost"),
        pytest.param("octet_length(request_json::text) > 300000", id="huge_request"),
        pytest.param("step_id NOT IN (SELECT id FROM steps)", id="step_is_missing"),
        pytest.param("step_id NOT IN (SELECT id FROM step_metrics)", id="latency_is_missing"),
    ],
)
def test_unusual_traces_are_there(whole: str, condition: str) -> None:
    ((count,),) = query(whole, f"SELECT count(*) FROM provider_traces WHERE {condition}")
    assert count > 0


def test_some_steps_were_tried_twice(whole: str) -> None:
    ((count,),) = query(
        whole,
        "SELECT count(*) FROM (SELECT step_id FROM provider_traces WHERE step_id IS NOT NULL"
        " GROUP BY step_id HAVING count(*) = 2) AS twice",
    )
    assert count > 0


def test_a_step_says_how_it_ended(whole: str) -> None:
    found = query(
        whole,
        "SELECT DISTINCT s.status::text, s.stop_reason, s.total_tokens > 0,"
        " s.model_handle = s.provider_name || '/' || s.model FROM steps AS s",
    )
    assert set(found) == {
        ("SUCCESS", "end_turn", True, True),
        ("FAILED", "llm_api_error", False, True),
        ("CANCELLED", "cancelled", False, True),
    }


def test_the_first_hour_is_kept(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    hour = first_hour(tmp_path)
    assert before - timedelta(hours=49) < hour <= datetime.now(UTC) - timedelta(hours=48)
    assert hour.minute == hour.second == hour.microsecond == 0
    (tmp_path / "demo.json").write_text('{"first_hour": "2026-03-01T13:00:00+00:00"}')
    assert first_hour(tmp_path) == START
