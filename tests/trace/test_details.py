"""Tokens with a price of their own: of media, and written to the cache for an hour."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_trace_pipeline.trace.details import Details, details_of_text, text_of_details
from llm_trace_pipeline.trace.responses import read_any_response
from tests.harness.responses import (
    ANTHROPIC,
    CHAT,
    CONVERSE,
    GEMINI,
    GEMINI_REST,
    RESPONSES,
    details_in,
    details_of,
)
from tests.harness.source_rows import load


def modalities(**counts: int) -> list[dict[str, Any]]:
    return [{"modality": name.upper(), "token_count": n} for name, n in counts.items()]


def modalities_rest(**counts: int) -> list[dict[str, Any]]:
    return [{"modality": name.upper(), "tokenCount": n} for name, n in counts.items()]


# --- media ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        pytest.param(
            {
                "usage_metadata": GEMINI
                | {
                    "cached_content_token_count": 40,
                    "prompt_tokens_details": modalities(
                        text=1, audio=20, image=30, document=4, video=50
                    ),
                    "tool_use_prompt_tokens_details": modalities(text=3, image=5),
                    "candidates_tokens_details": modalities(text=9, audio=6, image=7, video=8),
                    "cache_tokens_details": modalities(audio=10, image=11, document=2, video=12),
                }
            },
            {
                "input_audio_tokens": 20,
                "input_image_tokens": 39,  # a document's pages are images
                "input_video_tokens": 50,
                "output_audio_tokens": 6,
                "output_image_tokens": 7,
                "output_video_tokens": 8,
                "cache_audio_read_tokens": 10,
                "cache_image_read_tokens": 13,
                "cache_video_read_tokens": 12,
            },
            id="gemini of the library",
        ),
        pytest.param(
            {
                "usageMetadata": GEMINI_REST
                | {
                    "cachedContentTokenCount": 40,
                    "promptTokensDetails": modalities_rest(text=1, audio=20, image=30),
                    "toolUsePromptTokensDetails": modalities_rest(video=5),
                    "candidatesTokensDetails": modalities_rest(audio=6),
                    "cacheTokensDetails": modalities_rest(audio=10),
                }
            },
            {
                "input_audio_tokens": 20,
                "input_image_tokens": 30,
                "input_video_tokens": 5,
                "output_audio_tokens": 6,
                "cache_audio_read_tokens": 10,
                "cache_image_read_tokens": 0,
                "cache_video_read_tokens": 0,
            },
            id="gemini over REST",
        ),
        pytest.param(
            {"usage": GEMINI | {"prompt_tokens_details": modalities(audio=20, unknown=3)}},
            {"input_audio_tokens": 20},
            id="gemini streamed by the agent server",
        ),
        pytest.param(
            {"usage": GEMINI | {"prompt_tokens_details": modalities(text=1_000)}},
            {},
            id="gemini with text alone",
        ),
        pytest.param(
            {
                "usage": CHAT
                | {
                    "prompt_tokens_details": {"audio_tokens": 20, "cached_tokens": 0},
                    "completion_tokens_details": {"audio_tokens": 6, "reasoning_tokens": 1},
                }
            },
            {"input_audio_tokens": 20, "output_audio_tokens": 6},
            id="openai chat",
        ),
        pytest.param(
            {
                "usage": RESPONSES
                | {
                    "input_tokens_details": {"image_tokens": 30, "text_tokens": 1},
                    "output_tokens_details": {"image_tokens": 7, "text_tokens": 1},
                }
            },
            {"input_image_tokens": 30, "output_image_tokens": 7},
            id="openai images",
        ),
        pytest.param(
            {
                "type": "response.done",
                "response": {
                    "usage": RESPONSES
                    | {
                        "input_token_details": {
                            "audio_tokens": 200,
                            "image_tokens": 30,
                            "cached_tokens": 150,
                            "cached_tokens_details": {"text_tokens": 50, "audio_tokens": 100},
                        },
                        "output_token_details": {"text_tokens": 20, "audio_tokens": 80},
                    }
                },
            },
            {
                "input_audio_tokens": 200,
                "input_image_tokens": 30,
                "cache_audio_read_tokens": 100,
                "output_audio_tokens": 80,
            },
            id="openai realtime",
        ),
        pytest.param(
            {"usage": CHAT | {"prompt_audio_seconds": 7}},
            {"audio_seconds": 7, "input_audio_seconds": 7},
            id="mistral voxtral",
        ),
        pytest.param(
            {
                "usage": CHAT
                | {"input_tokens": 1_000, "output_tokens": 100}
                | {"prompt_tokens_details": {"audio_tokens": 20}}
                | {"input_tokens_details": {"audio_tokens": 20}}
            },
            {"input_audio_tokens": 20},
            id="a gateway that states both vocabularies",
        ),
    ],
)
def test_media_are_counted(response: Any, expected: Details) -> None:
    assert details_of(response) == expected


@pytest.mark.parametrize(
    ("cached", "cache_details", "expected"),
    [
        pytest.param(5, modalities(text=5), {"cache_audio_read_tokens": 0}, id="told to be none"),
        pytest.param(5, modalities(audio=3), {"cache_audio_read_tokens": 3}, id="told"),
        pytest.param(5, None, {}, id="not told"),
        pytest.param(0, modalities(text=5), {}, id="nothing was cached"),
        pytest.param(None, [], {}, id="no cache"),
    ],
)
def test_that_no_audio_was_cached_is_a_statement_beside_other_audio(
    cached: int | None, cache_details: Any, expected: Details
) -> None:
    usage = GEMINI | {
        "cached_content_token_count": cached,
        "prompt_tokens_details": modalities(audio=20),
        "cache_tokens_details": cache_details,
    }
    assert details_in(usage) == {"input_audio_tokens": 20} | expected


# --- cache writes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        pytest.param(
            ANTHROPIC
            | {
                "cache_creation": {
                    "ephemeral_5m_input_tokens": 500,
                    "ephemeral_1h_input_tokens": 400,
                }
            },
            {"cache_write_1h_tokens": 400},
            id="anthropic",
        ),
        pytest.param(
            ANTHROPIC | {"cache_creation": {"ephemeral_5m_input_tokens": 900}},
            {},
            id="anthropic for five minutes",
        ),
        pytest.param(ANTHROPIC | {"cache_creation": None}, {}, id="anthropic without a split"),
        pytest.param(
            ANTHROPIC
            | {
                "cache_creation": {"ephemeral_1h_input_tokens": 400},
                "iterations": [
                    {"type": "message", "cache_creation": {"ephemeral_1h_input_tokens": 400}},
                    {
                        "type": "compaction",
                        "input_tokens": 5,
                        "cache_creation_input_tokens": 30,
                        "cache_creation": {"ephemeral_1h_input_tokens": 30},
                    },
                    {
                        "type": "compaction",
                        "cache_read_input_tokens": 20,
                        "cache_creation": {"ephemeral_5m_input_tokens": 7},
                    },
                ],
            },
            {"cache_write_1h_tokens": 430, "least_input_tokens": 20},
            id="anthropic with compactions",
        ),
        pytest.param(
            CHAT
            | {
                "prompt_tokens_details": {
                    "cached_tokens": 0,
                    "cache_creation_token_details": {
                        "ephemeral_5m_input_tokens": 1,
                        "ephemeral_1h_input_tokens": 400,
                    },
                }
            },
            {"cache_write_1h_tokens": 400},
            id="litellm",
        ),
        pytest.param(
            CONVERSE
            | {
                "cacheDetails": [
                    {"ttl": "5m", "inputTokens": 500},
                    {"ttl": "1h", "inputTokens": 300},
                    {"ttl": "1h", "inputTokens": 100},
                ]
            },
            {"cache_write_1h_tokens": 400},
            id="bedrock converse",
        ),
    ],
)
def test_tokens_that_were_written_for_an_hour_are_counted(usage: Any, expected: Details) -> None:
    assert details_in(usage) == expected


# --- hostile shapes -------------------------------------------------------------------------------

ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.floats()
    | st.sampled_from(
        ["1h", "AUDIO", "flex", "TEXT", "", "1", "-1e9", "NaN", "\ud83d", "open_page"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("type", "action", "modality", "token_count", "tokenCount", "ttl", "cost"),
                    *("inputTokens", "audio_tokens", "image_tokens", "cached_tokens_details"),
                    *("total_cost", "input_tokens_cost", "output_tokens_cost", "search_queries"),
                    *("ephemeral_1h_input_tokens", "cache_creation_token_details"),
                    *("web_search_requests", "web_search_calls", "webSearchQueries"),
                    *("upstream_inference_cost", "upstream_inference_prompt_cost", "web_search"),
                    *("num_requests", "grounding_metadata", "cache_creation", "web_search_queries"),
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
USAGE_KEYS = (
    *("prompt_tokens_details", "promptTokensDetails", "input_tokens_details", "cacheDetails"),
    *("input_token_details", "output_token_details", "completion_tokens_details", "iterations"),
    *("candidates_tokens_details", "cache_tokens_details", "cacheTokensDetails", "speed"),
    *("cache_creation", "server_tool_use", "num_search_queries", "num_sources_used"),
    *("server_side_tool_usage_details", "citation_tokens", "prompt_audio_seconds", "cost"),
    *("cost_details", "is_byok", "market_cost", "estimated_cost", "cost_in_usd_ticks"),
    *("inference_geo", "search_context_size", "service_tier", "serviceTier", "traffic_type"),
)
BODY_KEYS = ("output", "tools", "tool_usage", "candidates", "service_tier", "serviceTier", "result")


@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from([CHAT, RESPONSES, ANTHROPIC, CONVERSE, GEMINI, GEMINI_REST]),
    st.dictionaries(st.sampled_from(USAGE_KEYS), ANY_JSON, max_size=6),
    st.dictionaries(st.sampled_from(BODY_KEYS), ANY_JSON, max_size=3),
)
def test_no_shape_makes_a_reader_raise_and_what_is_read_is_a_detail(
    usage: dict[str, int], details: dict[str, Any], body: dict[str, Any]
) -> None:
    reading = read_any_response(json.dumps({"usage": usage | details} | body).encode())
    found = details_of_text(reading.usage_details)
    assert text_of_details(found) == reading.usage_details
    assert all(
        type(value) is str if name in TEXTS else type(value) is int and value >= 0
        for name, value in found.items()
    )
    assert reading.service_tier == reading.service_tier.lower()


MODELS = [
    ("openai", "gpt-4o"),
    ("anthropic", "claude-opus-5"),
    ("google_ai", "gemini-2.5-flash"),
    ("openrouter", "openai/gpt-5"),
    ("xai", "grok-4.3"),
    ("mistral", "voxtral-small-24b-2507"),
]
PARTS = ("input_cost_usd", "output_cost_usd", "other_cost_usd")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(MODELS),
            st.sampled_from([CHAT, RESPONSES, ANTHROPIC, CONVERSE, GEMINI, GEMINI_REST]),
            st.dictionaries(st.sampled_from(USAGE_KEYS), ANY_JSON, max_size=8),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_no_shape_stops_a_load_and_the_parts_of_a_cost_add_up(
    drawn: list[tuple[tuple[str, str], dict[str, int], dict[str, Any]]],
) -> None:
    calls = [
        {
            "llm_config": {"model_endpoint_type": provider, "model": model},
            "response_json": {"usage": usage | details},
        }
        for (provider, model), usage, details in drawn
    ]
    for row in load(calls)[0]:
        parts = [row[name] or 0 for name in PARTS]
        assert row["cost_usd"] is None or row["cost_usd"] == sum(parts)
        assert all(part >= 0 for part in parts)
        assert (row["cost_usd"] is None) == (row["cost_basis"] == "")


TEXTS = {
    *("speed", "inference_geo", "search_context_size", "reported_cost_usd"),
    *("reported_input_cost_usd", "reported_output_cost_usd"),
}


def test_details_are_a_text_that_sorts_their_names() -> None:
    assert text_of_details({}) == ""
    assert details_of_text("") == {}
    assert text_of_details({"b": 1, "a": "x"}) == text_of_details({"a": "x", "b": 1})
    assert text_of_details({"b": 1, "a": "x"}) == '{"a":"x","b":1}'
