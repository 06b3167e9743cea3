"""Uses that are charged one by one, and charges that a response states."""

from decimal import Decimal
from typing import Any

import pytest

from llm_trace_pipeline.trace.details import Details
from tests.harness.responses import (
    ANTHROPIC,
    CHAT,
    GEMINI,
    GEMINI_REST,
    RESPONSES,
    details_in,
    details_of,
    read,
)
from tests.harness.source_rows import load

MESSAGE = {"type": "message", "content": [{"type": "output_text", "text": "ok"}]}
SEARCH = {"type": "web_search_call", "action": {"type": "search", "query": "q"}}
OPENED = {"type": "web_search_call", "action": {"type": "open_page", "url": "u"}}


def answer(*items: Any, **keys: Any) -> Any:
    """Return an answer of OpenAI's Responses with these output items."""
    return {"object": "response", "usage": RESPONSES, "output": [*items, MESSAGE], **keys}


# --- uses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        pytest.param(
            ANTHROPIC | {"server_tool_use": {"web_search_requests": 3, "web_fetch_requests": 2}},
            {"web_searches": 3},
            id="anthropic",
        ),
        pytest.param(
            ANTHROPIC | {"server_tool_use": {"web_search_requests": 0, "web_fetch_requests": 2}},
            {},
            id="anthropic fetches, which are free",
        ),
        pytest.param(
            CHAT | {"num_search_queries": 4, "citation_tokens": 50, "reasoning_tokens": 9},
            {"web_searches": 4, "output_citation_tokens": 50},
            id="perplexity",
        ),
        pytest.param(CHAT | {"num_sources_used": 5}, {"search_sources": 5}, id="xai's live search"),
        pytest.param(
            RESPONSES
            | {
                "num_server_side_tools_used": 15,
                "server_side_tool_usage_details": {
                    "web_search_calls": 1,
                    "x_search_calls": 2,
                    "code_interpreter_calls": 3,
                    "file_search_calls": 4,
                    "document_search_calls": 5,
                    "mcp_calls": 6,
                    "image_generation_calls": 7,
                },
            },
            {
                "web_searches": 1,
                "social_searches": 2,
                "code_executions": 3,
                "storage_searches": 4,
                "document_searches": 5,
                "image_generations": 7,
            },
            id="xai's tools",
        ),
    ],
)
def test_uses_are_counted(usage: Any, expected: Details) -> None:
    assert details_in(usage) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        pytest.param(answer(SEARCH, SEARCH), {"web_searches": 2}, id="searches"),
        pytest.param(answer(SEARCH, OPENED), {"web_searches": 1}, id="pages are opened for free"),
        pytest.param(
            answer(*({"type": "web_search_call", "action": {"type": f}} for f in ("find", ""))),
            {"web_searches": 1},
            id="a text in a page is found for free",
        ),
        pytest.param(
            answer({"type": "web_search_call", "action": {"type": "find_in_page"}}),
            {},
            id="the same by its newer name",
        ),
        pytest.param(
            answer({"type": "web_search_call", "status": "completed"}),
            {"web_searches": 1},
            id="a search without its action",
        ),
        pytest.param(
            answer(tools=[{"type": "web_search"}, {"type": "web_search_preview"}]),
            {},
            id="tools that are only declared",
        ),
        pytest.param(
            answer(SEARCH, tools=[{"type": "web_search"}]), {"web_searches": 1}, id="declared"
        ),
        pytest.param(
            answer(SEARCH, OPENED, tools=[{"type": "web_search_preview_2025_03_11"}]),
            {"web_search_previews": 1},
            id="the older search",
        ),
        pytest.param(
            answer(SEARCH, OPENED, tool_usage={"web_search": {"num_requests": 4}}),
            {"web_searches": 4},
            id="the answer states the searches",
        ),
        pytest.param(
            answer(
                SEARCH,
                tools=[{"type": "web_search_preview"}],
                tool_usage={"web_search": {"num_requests": 4}},
            ),
            {"web_search_previews": 4},
            id="the answer states the older searches",
        ),
        pytest.param(
            answer(tool_usage={"web_search": {"num_requests": 0}}), {}, id="it states none"
        ),
        pytest.param(
            answer(tool_usage={"web_search": {"num_requests": 2}}),
            {"web_searches": 2},
            id="searches that are no items",
        ),
        pytest.param(
            answer(SEARCH, tool_usage={"web_search": {"num_requests": 0}}),
            {},
            id="the answer states that no search is charged",
        ),
        pytest.param(
            answer({"type": "file_search_call"}, {"type": "file_search_call"}),
            {"storage_searches": 2},
            id="file searches",
        ),
        pytest.param(
            answer({"type": "image_generation_call", "result": "…"}),
            {"image_generations": 1},
            id="an image made by a tool",
        ),
        pytest.param(
            answer({"type": "code_interpreter_call"}), {"code_executions": 1}, id="code that is run"
        ),
        pytest.param(
            answer(
                *(item | {"status": "failed"} for item in (SEARCH, {"type": "file_search_call"})),
                SEARCH | {"status": "completed"},
            ),
            {"web_searches": 1},
            id="failed calls are free",
        ),
        pytest.param(
            answer(
                *({"type": f"{name}_call"} for name in ("function", "custom_tool", "mcp")),
                {"type": "reasoning"},
                {"type": ["web_search_call"]},
            ),
            {},
            id="calls that are not charged one by one",
        ),
        pytest.param(
            {"type": "response.completed", "response": answer(SEARCH)},
            {"web_searches": 1},
            id="an event of a stream",
        ),
        pytest.param(
            {
                "usage": RESPONSES
                | {"server_side_tool_usage_details": {"web_search_calls": 2, "x_search_calls": 0}},
                "output": [SEARCH, SEARCH, MESSAGE],
            },
            {"web_searches": 2},
            id="xai states its searches twice",
        ),
    ],
)
def test_tool_calls_of_an_answer_are_counted(response: Any, expected: Details) -> None:
    assert details_of(response) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        pytest.param(
            {
                "usage_metadata": GEMINI,
                "candidates": [
                    {"grounding_metadata": {"web_search_queries": ["a", "b", "a", "", None]}},
                    {"grounding_metadata": {"web_search_queries": ["c"]}},
                ],
            },
            {"web_searches": 3},
            id="different queries of an answer",
        ),
        pytest.param(
            {
                "usageMetadata": GEMINI_REST,
                "candidates": [{"groundingMetadata": {"webSearchQueries": ["a", "b"]}}],
            },
            {"web_searches": 2},
            id="over REST",
        ),
        pytest.param(
            {"usage_metadata": GEMINI, "candidates": [{"grounding_metadata": {}}]},
            {},
            id="not grounded",
        ),
        pytest.param(
            {"usage_metadata": GEMINI, "candidates": [{"grounding_metadata": None}]},
            {},
            id="not grounded by the library",
        ),
        pytest.param(
            {
                "usage_metadata": GEMINI,
                "candidates": [
                    {
                        "grounding_metadata": {
                            "web_search_queries": ["a"],
                            "grounding_chunks": [{"web": {}}, {"maps": {"uri": "u"}}, {"maps": 1}],
                        }
                    },
                    {"grounding_metadata": {"grounding_chunks": [{"maps": None}]}},
                ],
            },
            {"web_searches": 1, "map_searches": 1},
            id="maps",
        ),
        pytest.param(
            {
                "usageMetadata": GEMINI_REST,
                "candidates": [
                    {"groundingMetadata": {"groundingChunks": [{"maps": {"uri": "u"}}]}}
                ],
            },
            {"map_searches": 1},
            id="maps over REST",
        ),
    ],
)
def test_grounding_is_counted_by_its_queries(response: Any, expected: Details) -> None:
    assert details_of(response) == expected


# --- what was charged -----------------------------------------------------------------------------


NO_AMOUNTS: tuple[Any, ...] = (
    *(None, True, False, -1, 10**6, 1e30, float("nan"), float("inf"), [1], {}),
    *("free", "", "NaN", "sNaN", "inf", "-1", "1_000", " 1", "٣", "0x1", "9" * 5_000),
)


def reported(total: str, *parts: str) -> dict[str, Decimal]:
    names = ("reported_cost_usd", "reported_input_cost_usd", "reported_output_cost_usd")
    return {name: Decimal(part) for name, part in zip(names, (total, *parts), strict=False)}


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        pytest.param({"cost": 0.00065, "is_byok": False}, reported("0.00065"), id="openrouter"),
        pytest.param({"cost": 1e-07}, reported("0.0000001"), id="a small number"),
        pytest.param({"cost": "0.25"}, reported("0.25"), id="a number in digits"),
        pytest.param({"cost": 0}, reported("0"), id="a free model"),
        pytest.param(
            {
                "cost": 0.003,
                "is_byok": False,
                "cost_details": {
                    "upstream_inference_cost": None,
                    "upstream_inference_prompt_cost": 0.001,
                    "upstream_inference_completions_cost": 0.0015,
                },
            },
            reported("0.003", "0.001", "0.0015"),
            id="openrouter with parts",
        ),
        pytest.param(
            {
                "cost": 0.002,
                "cost_details": {
                    "upstream_inference_prompt_cost": 0.001,
                    "upstream_inference_completions_cost": 0.0015,
                },
            },
            reported("0.002"),
            id="parts that are more than the whole",
        ),
        pytest.param(
            {
                "cost": 0.00005,
                "is_byok": True,
                "cost_details": {"upstream_inference_cost": 0.001},
            },
            reported("0.00105"),
            id="openrouter with an own key: the upstream charges too",
        ),
        pytest.param(
            {
                "cost": 0.001,
                "is_byok": False,
                "cost_details": {"upstream_inference_cost": 0.001},
            },
            reported("0.001"),
            id="openrouter without one: the upstream is inside",
        ),
        pytest.param(
            {"cost": 0, "is_byok": True, "market_cost": 0.007},
            reported("0.007"),
            id="vercel with an own key",
        ),
        pytest.param(
            {"cost": 0.007, "is_byok": False, "market_cost": 0.007},
            reported("0.007"),
            id="vercel without one",
        ),
        pytest.param(
            {"cost": None, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.5}},
            reported("0.5"),
            id="openrouter states the upstream's cost alone",
        ),
        pytest.param(
            {"cost": 0, "is_byok": True, "cost_details": {"upstream_inference_cost": None}},
            {},
            id="an own key whose upstream's cost is not stated",
        ),
        pytest.param(
            {
                "cost": {
                    "input_tokens_cost": 0.00002,
                    "output_tokens_cost": 0.00013,
                    "request_cost": 0.005,
                    "total_cost": 0.00515,
                }
            },
            reported("0.00515", "0.00002", "0.00013"),
            id="perplexity",
        ),
        pytest.param({"cost": {"total_cost": 0.005}}, reported("0.005"), id="without its parts"),
        pytest.param({"cost": {"input_tokens_cost": 0.005}}, {}, id="without its total"),
        pytest.param({"estimated_cost": 0.000042}, reported("0.000042"), id="deepinfra"),
        pytest.param({"cost_in_usd_ticks": 158_500_000}, reported("0.01585"), id="xai"),
        pytest.param({"cost_in_usd_ticks": 1}, reported("0.0000000001"), id="xai's smallest"),
        *(pytest.param({"cost": each}, {}, id=f"no amount: {each!r:.20}") for each in NO_AMOUNTS),
    ],
)
def test_what_was_charged_is_read(usage: Any, expected: dict[str, Decimal]) -> None:
    found = {name: Decimal(amount) for name, amount in details_in(CHAT | usage).items()}
    assert found == expected


def test_a_charge_is_a_cost_to_the_18th_decimal() -> None:
    charged: dict[str, Any] = {
        "total_cost": "0." + "3" * 30,
        "input_tokens_cost": 0.1,
        "output_tokens_cost": "0.2000000000000000006",
    }
    [row], _ = load([{"response_json": {"usage": CHAT | {"cost": charged}}}])
    assert {name: row[name] for name in row if name.endswith("cost_usd")} == {
        "cost_usd": Decimal("0." + "3" * 18),
        "input_cost_usd": Decimal("0.1"),
        "cached_input_cost_usd": None,
        "cache_write_cost_usd": None,
        "output_cost_usd": Decimal("0.200000000000000001"),
        "other_cost_usd": Decimal("0.033333333333333332"),
    }
    assert (row["cost_basis"], row["price_version"], row["price_entry"]) == ("reported", "", "")


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        pytest.param({"cost": 999_999.5}, Decimal("999999.5"), id="the largest"),
        pytest.param({"cost": "1e-30"}, 0, id="less than can be kept"),
        pytest.param(
            {
                "cost": 600_000,
                "is_byok": True,
                "cost_details": {"upstream_inference_cost": 600_000},
            },
            1_200_000,
            id="a sum above the largest amount",
        ),
    ],
)
def test_an_odd_charge_does_not_stop_a_load(usage: Any, cost: Decimal | None) -> None:
    plain = {"response_json": {"usage": CHAT | {"cost": 1}}}
    rows, _ = load([plain, {"response_json": {"usage": CHAT | usage}}])
    assert [row["cost_usd"] for row in rows] == [1, cost]


def test_a_charge_is_no_long_text() -> None:
    for cost in ("1e-999", "1e-99999", "0." + "1" * 300, "0." + "1" * 90_000):
        assert len(read({"usage": CHAT | {"cost": cost}}).usage_details) < 100


def test_a_response_that_states_its_charge_and_no_tokens_has_a_cost() -> None:
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "cost": 0.5}
    for stated in (usage, {"cost": 0.5}):
        [row], _ = load([{"response_json": {"usage": stated}}])
        assert (row["usage_source"], row["cost_basis"]) == ("none", "reported")
        assert row["cost_usd"] == Decimal("0.5")
