"""The Grafana dashboard: its structure, and the SQL of every panel and variable, on an engine."""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from llm_trace_pipeline.clickhouse.client import Database, connect
from llm_trace_pipeline.clickhouse.tables import define_table
from llm_trace_pipeline.settings import Settings
from tests.harness.calls import CALLS, LONG, UNMETERED, UNPRICED, summed

BOARD: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "deploy/grafana/llm_traces.json").read_text(encoding="utf-8")
)
PANELS = {panel["title"]: panel for panel in BOARD["panels"]}
VARIABLES = {each["name"]: each for each in BOARD["templating"]["list"] if each["type"] == "query"}
SOURCE = {"type": "grafana-clickhouse-datasource", "uid": "${datasource}"}


def substituted(sql: str, **chosen: list[str]) -> str:
    """Return a statement as the data source sends it; what is not chosen is All."""
    start, end = (int(at.timestamp()) for at in (LONG.window.start, LONG.window.end))

    def condition(match: re.Match[str]) -> str:
        return match[1] if match[2] in chosen else "1=1"

    def text(match: re.Match[str]) -> str:
        return ",".join("'" + value.replace("'", "''") + "'" for value in chosen[match[1]])

    sql = re.sub(r"\$__conditionalAll\((.*), \$(\w+)\)", condition, sql)
    sql = re.sub(r"\$\{(\w+):sqlstring\}", text, sql)
    sql = re.sub(
        r"\$__timeFilter\((\w+)\)", rf"\1 >= toDateTime({start}) AND \1 <= toDateTime({end})", sql
    )
    sql = re.sub(
        r"\$__timeInterval\((\w+)\)",
        r"toStartOfInterval(toDateTime(\1), INTERVAL 3600 second)",
        sql,
    )
    assert "$" not in sql, sql
    return sql


@pytest.fixture(scope="module")
def loaded(state_of_calls: Path) -> Iterator[Database]:
    """A ClickHouse that holds the calls."""
    with connect(Settings.from_environment({"LLM_TRACES_STATE": str(state_of_calls)})) as database:
        yield database


def rows_of(database: Database, title: str, **chosen: list[str]) -> list[dict[str, Any]]:
    [target] = PANELS[title]["targets"]
    return database.rows(substituted(target["rawSql"], **chosen))


def test_the_panels_have_their_own_ids_and_places() -> None:
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(PANELS) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    for place in places:
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
    for one, other in combinations(places, 2):
        assert (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        ), (one, other)


def test_the_data_source_is_a_variable() -> None:
    [source] = [each for each in BOARD["templating"]["list"] if each["type"] == "datasource"]
    assert (source["name"], source["query"]) == ("datasource", SOURCE["type"])
    assert BOARD["id"] is None
    for part in (*VARIABLES.values(), *BOARD["panels"]):
        assert part["datasource"] == SOURCE
    for panel in BOARD["panels"]:
        [target] = panel["targets"]
        is_series = panel["type"] == "timeseries"
        assert (target["datasource"], target["format"]) == (SOURCE, int(not is_series))
        assert ("AS time," in target["rawSql"]) == is_series


@pytest.mark.parametrize("title", PANELS)
def test_a_panel_shows_what_was_chosen_alone(loaded: Database, title: str) -> None:
    everything = rows_of(loaded, title)
    assert everything
    assert rows_of(loaded, title, organization=["org-1"]) != everything
    is_total = PANELS[title]["type"] == "stat"
    for name in VARIABLES:
        nothing = rows_of(loaded, title, **{name: ["none", "it's none"]})
        assert [list(row.values()) for row in nothing] == ([[0]] if is_total else [])


def test_spend_is_without_own_keys_which_stand_apart(loaded: Database) -> None:
    expected = summed(CALLS)
    for title, key in {"Spend": "spend_usd", "By own keys": "byok_usd"}.items():
        [stat] = rows_of(loaded, title)
        assert list(stat.values()) == [pytest.approx(float(expected[key]))]
    for title in ("Spend by model", "Spend by plan"):
        spend = sum(row["spend"] for row in rows_of(loaded, title))
        assert spend == pytest.approx(float(expected["spend_usd"]))


def test_calls_without_usage_stand_apart_from_models_without_a_price(loaded: Database) -> None:
    for title, model in (("Models without a price", UNPRICED), ("Calls without usage", UNMETERED)):
        [row] = rows_of(loaded, title)
        assert (row["model"], row["calls"]) == (model, sum(call.model == model for call in CALLS))


def test_a_sum_beyond_64_bits_does_not_wrap(state_of_calls: Path) -> None:
    environment = {"LLM_TRACES_STATE": str(state_of_calls), "CLICKHOUSE_DATABASE": "large"}
    counts = {"prompt_tokens": 2**63, "completion_tokens": 2**62, "total_tokens": 2**63 + 2**62}
    call = {"created_at": f"{LONG.window.start:%Y-%m-%d %H:%M:%S}", "organization_id": "org"}
    lines = "\n".join([json.dumps({**call, **counts, "cached_input_tokens": 2**62})] * 8)
    with connect(Settings.from_environment(environment)) as database:
        define_table(database, "llm_traces")
        database.execute(f"INSERT INTO llm_traces FORMAT JSONEachRow\n{lines}")
        [stat] = rows_of(database, "Tokens")
        [over_time] = rows_of(database, "Tokens over time")
        [organization] = rows_of(database, "Largest organizations")
        [unpriced] = rows_of(database, "Models without a price")
    assert stat["tokens"] == organization["tokens"] == 8 * float(2**63 + 2**62)
    assert [over_time[name] for name in ("input", "cached", "output")] == [8 * 2.0**62] * 3
    assert [unpriced[name] for name in ("input_tokens", "output_tokens")] == [8 * 2.0**63, 2.0**65]


def test_a_variable_offers_what_was_called(loaded: Database) -> None:
    offered = {
        name: {
            value
            for row in loaded.rows(substituted(each["query"]["rawSql"]))
            for value in row.values()
        }
        for name, each in VARIABLES.items()
    }
    assert offered == {
        "organization": {call.organization_id for call in CALLS},
        "model": {call.model for call in CALLS},
        "plan": {call.billing_plan_type for call in CALLS},
    }
