"""Plain answers are read fast, and exactly as the rules for all responses read them."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_trace_pipeline.trace.fast_responses import PlainUsage, read_plain, read_response
from llm_trace_pipeline.trace.responses import read_any_response
from tests.harness import responses
from tests.harness.any_json import ANY_TEXT, RESPONSES, mutated_responses


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


VALUES: dict[type[msgspec.inspect.Type], st.SearchStrategy[Any]] = {
    msgspec.inspect.NoneType: st.none(),
    msgspec.inspect.BoolType: st.booleans(),
    msgspec.inspect.FloatType: st.sampled_from([0, 0.0, 0.25, 1, 0.0039018, 1e-9, 999_999.5]),
    msgspec.inspect.StrType: st.sampled_from(["standard", "Default", "on_demand", "FLEX", ""]),
}


def fitting(kind: msgspec.inspect.Type) -> st.SearchStrategy[Any]:
    """Draw values that a plain answer may hold where its struct has this type."""
    if type(kind) in VALUES:
        return VALUES[type(kind)]
    match kind:
        case msgspec.inspect.UnionType(types=types):
            return st.one_of(*map(fitting, types))
        case msgspec.inspect.IntType(le=most):
            return st.integers(0, min(9, most or 0))
        case msgspec.inspect.LiteralType(values=values):
            return st.sampled_from(values)
        case msgspec.inspect.ListType(item_type=item):
            return st.lists(fitting(item), max_size=2)
        case msgspec.inspect.StructType(fields=fields):
            return st.fixed_dictionaries(
                {field.encode_name: fitting(field.type) for field in fields if field.required},
                optional={
                    field.encode_name: fitting(field.type) for field in fields if not field.required
                },
            )
    raise NotImplementedError(kind)


# What is out of the ordinary where it stands in the place of a value that fits.
ODD = st.sampled_from(
    [
        *(
            1,
            -1,
            10**12,
            10**12 + 1,
            2**63,
            0.25,
            "3",
            "flex",
            "TEXT",
            "ON_DEMAND_FLEX",
            "us",
            True,
            [],
            {},
        ),
        *({"total_cost": 0.25}, {"audio_tokens": 3, "image_tokens": 4}, {"cached_tokens": "5"}),
        *({"ephemeral_1h_input_tokens": 3}, {"web_search_requests": 2, "web_search_calls": 3}),
        [{"modality": "AUDIO", "token_count": 3}, {"modality": "TEXT", "token_count": 3}],
        [{"type": "compaction", "input_tokens": 5, "prompt_tokens": 5}],
    ]
)


@st.composite
def usages(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a usage object that fits in all values, or in all but one."""
    usage: dict[str, Any] = draw(fitting(msgspec.inspect.type_info(PlainUsage)))
    if draw(st.booleans()):
        usage[draw(st.sampled_from(FIELDS))] = draw(ODD)
    return usage


PLAIN = [responses.CHAT, responses.RESPONSES, responses.ANTHROPIC, responses.GEMINI]
FIELDS = [field.encode_name for field in msgspec.structs.fields(PlainUsage)]
ITEMS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(
            ["message", "reasoning", "function_call", "custom_tool_call", "web_search_call", None]
        ),
        "action": st.sampled_from([{"type": "search"}, {"type": "open_page"}, None]),
    },
)
CANDIDATES = st.fixed_dictionaries(
    {},
    optional={
        "content": st.just({"parts": [{"text": "ok"}]}),
        "grounding_metadata": st.sampled_from(
            [None, {}, {"web_search_queries": ["a", "b"]}, {"web_search_queries": None}]
        ),
    },
)
BODIES: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["m", "", None, 4]),
    "type": st.sampled_from(["message", "error", None]),
    "service_tier": st.sampled_from(["default", "auto", "flex", "priority", None, 3]),
    "output": st.none() | st.lists(ITEMS, max_size=3) | st.just({"message": {"role": "assistant"}}),
    "candidates": st.none() | st.lists(CANDIDATES, max_size=2),
    "choices": st.sampled_from([None, [], [{}], [{"usage": None}], [{"error": {"code": 1}}]]),
    "tools": st.sampled_from([None, [{"type": "web_search"}], [{"type": "web_search_preview"}]]),
}


@settings(max_examples=800, deadline=None)
@given(
    mutated_responses()
    | st.fixed_dictionaries({"usage": usages()}, optional=BODIES)
    | st.fixed_dictionaries({"usage": usages(), "usage_metadata": usages()})
    | st.fixed_dictionaries({"usage_metadata": usages(), "model_version": ANY_TEXT, **BODIES})
    | st.fixed_dictionaries({"usage": st.sampled_from(PLAIN)}, optional=BODIES)
)
def test_a_plain_answer_is_read_as_by_the_rules_for_all(response: Any) -> None:
    text = as_json(response)
    assert read_response(text) == read_any_response(text)


def test_most_answers_are_plain() -> None:
    plain = [response for response in RESPONSES if read_plain(as_json(response))]
    assert len(plain) > len(RESPONSES) / 3  # of cases that are chosen for being odd


OK = {"type": "text", "text": "ok"}


@pytest.mark.parametrize(
    "response",
    [
        pytest.param(
            {
                "object": "chat.completion",
                "model": "gpt-5-mini-2025-08-07",
                "choices": [{"message": {"content": "ok"}, "finish_reason": "stop"}],
                "service_tier": "default",
                "usage": {
                    "prompt_tokens": 10,
                    "completion_tokens": 5,
                    "total_tokens": 15,
                    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
                    "completion_tokens_details": {
                        "reasoning_tokens": 2,
                        "audio_tokens": 0,
                        "accepted_prediction_tokens": 0,
                        "rejected_prediction_tokens": 0,
                    },
                },
            },
            id="openai chat",
        ),
        pytest.param(
            {
                "object": "response",
                "status": "completed",
                "error": None,
                "model": "gpt-5-2025-08-07",
                "service_tier": "default",
                "tools": [{"type": "function"}, {"type": "web_search"}],
                "output": [
                    {"type": "reasoning", "summary": []},
                    {"type": "function_call", "name": "f", "arguments": "{}"},
                    {"type": "custom_tool_call"},
                    {"type": "message", "content": [OK]},
                ],
                "usage": {
                    "input_tokens": 10,
                    "input_tokens_details": {"cached_tokens": 4},
                    "output_tokens": 5,
                    "output_tokens_details": {"reasoning_tokens": 2},
                    "total_tokens": 15,
                },
            },
            id="openai responses",
        ),
        pytest.param(
            {
                "type": "message",
                "model": "claude-opus-5",
                "content": [OK],
                "usage": {
                    "input_tokens": 10,
                    "output_tokens": 5,
                    "cache_read_input_tokens": 4,
                    "cache_creation_input_tokens": 3,
                    "cache_creation": {
                        "ephemeral_5m_input_tokens": 3,
                        "ephemeral_1h_input_tokens": 0,
                    },
                    "server_tool_use": {"web_search_requests": 0, "web_fetch_requests": 0},
                    "service_tier": "standard",
                    "inference_geo": "global",
                    "speed": "standard",
                    "iterations": None,
                },
            },
            id="anthropic",
        ),
        pytest.param(
            {
                "model_version": "gemini-2.5-flash",
                "candidates": [{"content": {"parts": [OK]}, "grounding_metadata": None}],
                "usage_metadata": {
                    "prompt_token_count": 10,
                    "candidates_token_count": 5,
                    "thoughts_token_count": 2,
                    "total_token_count": 17,
                    "cached_content_token_count": 4,
                    "traffic_type": "ON_DEMAND",
                    "prompt_tokens_details": [{"modality": "TEXT", "token_count": 10}],
                    "candidates_tokens_details": [{"modality": "TEXT", "token_count": 5}],
                    "cache_tokens_details": [{"modality": "TEXT", "token_count": 4}],
                    "tool_use_prompt_tokens_details": None,
                },
            },
            id="gemini",
        ),
    ],
)
def test_todays_plain_answers_are_plain(response: Any) -> None:
    reading = read_plain(as_json(response))
    assert reading
    assert reading == read_any_response(as_json(response))
    assert (reading.cached_input_tokens, reading.usage_source) == (4, "response")
    assert (reading.service_tier, reading.usage_details) == ("standard", "")


@pytest.mark.parametrize(
    ("response", "details"),
    [
        pytest.param(
            {
                "output": {"message": {"role": "assistant", "content": [OK]}},
                "stopReason": "end_turn",
                "usage": {
                    "inputTokens": 10,
                    "outputTokens": 5,
                    "totalTokens": 19,
                    "cacheReadInputTokens": 4,
                },
            },
            "",
            id="bedrock converse",
        ),
        pytest.param(
            {
                "model": "z-ai/glm-5",
                "service_tier": "flex",
                "usage": {
                    "prompt_tokens": 10,
                    "completion_tokens": 5,
                    "total_tokens": 15,
                    "prompt_tokens_details": {"cached_tokens": 4},
                    "cost": 0.0039018,
                    "is_byok": False,
                    "cost_details": {
                        "upstream_inference_cost": None,
                        "upstream_inference_prompt_cost": 0.003,
                        "upstream_inference_completions_cost": 0.0009018,
                    },
                },
            },
            '{"reported_cost_usd":"0.0039018","reported_input_cost_usd":"0.003",'
            '"reported_output_cost_usd":"0.0009018"}',
            id="openrouter",
        ),
    ],
)
def test_charges_and_tiers_are_plain(response: Any, details: str) -> None:
    reading = read_plain(as_json(response))
    assert reading
    assert reading == read_any_response(as_json(response))
    assert (reading.cached_input_tokens, reading.usage_details) == (4, details)
