"""List prices by how a call was served, and what the package lacks."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from llm_trace_pipeline.trace.list_prices import LIST_VERSION
from tests.harness.prices import NOON, call, costs

MILLION = 10**6
TIERS_START = datetime(2026, 10, 12, tzinfo=UTC)  # of OpenAI's in the package
BATCHES_START = datetime(2026, 10, 14, tzinfo=UTC)
BEFORE = timedelta(microseconds=1)
# 1,000 tokens of input, 200 of them cached and 300 written, and 100 of output.
WITH_CACHE = (1_000, 100, 200, 300, None)


def cost(
    provider: str,
    model: str,
    details: Mapping[str, Any] | None = None,
    tokens: tuple[int | None, ...] = (MILLION, 100_000, None, None, None),
    **columns: Any,
) -> dict[str, Any]:
    """Return what a call with details costs."""
    text = json.dumps(details) if details else ""
    at = columns.pop("at", NOON)
    return costs([call(model, tokens, at, provider, usage_details=text, **columns)])[0]


# --- tiers, speeds, regions -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "model", "context", "at", "expected"),
    [
        # A million tokens of input at 1.25 USD, and 100,000 of output at 10 USD a million.
        ("openai", "gpt-5", {}, NOON, "2.25"),
        ("openai", "gpt-5", {"service_tier": "flex"}, TIERS_START, "1.125"),
        ("openai", "gpt-5", {"service_tier": "flex"}, TIERS_START - BEFORE, None),
        ("openai", "gpt-5", {"service_tier": "priority"}, TIERS_START, "4.5"),
        ("openai", "gpt-5", {"service_tier": "priority"}, TIERS_START - BEFORE, None),
        ("openai", "gpt-5", {"service_tier": "batch"}, BATCHES_START, "1.125"),
        ("openai", "gpt-5", {"service_tier": "batch"}, BATCHES_START - BEFORE, None),
        ("openai", "gpt-5", {"service_tier": "scale"}, NOON, None),
        ("openai", "gpt-5", {"speed": "fast"}, NOON, None),
        ("openai", "gpt-5-nano", {"service_tier": "flex"}, NOON, "0.045"),
        ("openai", "gpt-5-nano", {"service_tier": "priority"}, NOON, None),
        ("openai", "gpt-5", {"service_tier": "priority", "speed": "fast"}, NOON, None),
        ("azure", "gpt-5", {}, NOON, "2.25"),
        ("azure", "gpt-5", {"service_tier": "priority"}, NOON, None),
        ("openrouter", "openai/gpt-5", {"service_tier": "flex"}, NOON, None),
        # 5 USD and 25 USD a million.
        ("anthropic", "claude-opus-5", {}, NOON, "7.5"),
        ("anthropic", "claude-opus-5", {"speed": "fast"}, NOON, "15"),
        ("anthropic", "claude-opus-5", {"speed": "turbo"}, NOON, None),
        ("anthropic", "claude-opus-5", {"service_tier": "batch"}, NOON, "3.75"),
        ("anthropic", "claude-opus-5", {"service_tier": "batch"}, BATCHES_START - BEFORE, None),
        ("anthropic", "claude-opus-5", {"service_tier": "priority"}, NOON, None),
        ("anthropic", "claude-opus-5", {"inference_geo": "us"}, NOON, "8.25"),
        ("anthropic", "claude-opus-5", {"inference_geo": "eu"}, NOON, None),
        ("anthropic", "claude-opus-5", {"speed": "fast", "inference_geo": "us"}, NOON, "16.5"),
        (
            "anthropic",
            "claude-opus-5",
            {"service_tier": "batch", "inference_geo": "us"},
            NOON,
            "4.125",
        ),
        pytest.param(
            "anthropic",
            "claude-opus-5",
            {"service_tier": "batch", "speed": "fast"},
            NOON,
            None,
        ),
        ("anthropic", "claude-sonnet-4-5", {"speed": "fast"}, NOON, None),
        ("google_vertex", "claude-sonnet-4-5", {}, NOON, "8.25"),  # above 200,000 tokens
        ("google_vertex", "claude-sonnet-4-5", {"service_tier": "batch"}, NOON, None),
        ("google_vertex", "claude-sonnet-4-5", {"inference_geo": "us"}, NOON, None),
        # 0.30 USD and 2.50 USD a million.
        ("google_ai", "gemini-2.5-flash", {"service_tier": "batch"}, NOON, "0.275"),
        ("google_ai", "gemini-2.5-flash", {"service_tier": "flex"}, NOON, None),
        ("google_ai", "gemini-2.5-flash", {"service_tier": "provisioned_throughput"}, NOON, None),
        # Groq's flex costs as much as its standard; 0.59 USD and 0.79 USD a million.
        ("groq", "llama-3.3-70b-versatile", {}, NOON, "0.669"),
        ("groq", "llama-3.3-70b-versatile", {"service_tier": "flex"}, NOON, "0.669"),
        ("groq", "llama-3.3-70b-versatile", {"service_tier": "performance"}, NOON, None),
        (
            "bedrock",
            "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
            {"service_tier": "flex"},
            NOON,
            None,
        ),
    ],
)
def test_a_way_of_being_served_has_a_price_of_its_own_or_none(
    provider: str, model: str, context: dict[str, str], at: datetime, expected: str | None
) -> None:
    tier = context.get("service_tier", "")
    details = {name: value for name, value in context.items() if name != "service_tier"}
    row = cost(provider, model, details, service_tier=tier, at=at)
    assert row["cost_usd"] == (None if expected is None else Decimal(expected))
    assert (row["cost_basis"], row["price_version"]) == (
        ("", "") if expected is None else ("list", LIST_VERSION)
    )
    for name, value in context.items():
        assert expected is None or f" {name}={value}" in row["price_entry"]


def test_both_sides_of_a_change_are_priced_in_one_batch() -> None:
    flex = [
        call("gpt-5", (MILLION, 0, None, None, None), at, service_tier="flex")
        for at in (TIERS_START - BEFORE, TIERS_START, TIERS_START + timedelta(minutes=1))
    ]
    found = costs([flex[0], *flex, call("gpt-5", (MILLION, 0, None, None, None), TIERS_START)])
    assert [row["cost_usd"] for row in found] == [
        None,
        None,
        Decimal("0.625"),
        Decimal("0.625"),
        Decimal("1.25"),
    ]


@pytest.mark.parametrize(
    ("context", "factor"),
    [({}, 1), ({"inference_geo": "us"}, Decimal("1.1")), ({"speed": "fast"}, 2)],
)
def test_a_region_or_speed_is_on_top_of_every_token_and_of_no_fee(
    context: dict[str, str], factor: Decimal
) -> None:
    details = {"cache_write_1h_tokens": 100, "web_searches": 2} | context
    row = cost("anthropic", "claude-opus-5", details, WITH_CACHE)
    assert {name: row[name] for name in row if name.endswith("cost_usd")} == {
        "cached_input_cost_usd": factor * Decimal("0.0001"),  # 200 at 0.50 USD a million
        "cache_write_cost_usd": factor * Decimal("0.00225"),  # 200 at 6.25, 100 at 10
        "input_cost_usd": factor * Decimal("0.00485"),  # those, and 500 at 5
        "output_cost_usd": factor * Decimal("0.0025"),  # 100 at 25
        "other_cost_usd": Decimal("0.02"),  # 2 at 10 USD a thousand
        "cost_usd": factor * Decimal("0.00735") + Decimal("0.02"),
    }


def test_a_region_is_on_top_of_a_price_by_the_length_of_the_input() -> None:
    tokens = (200_001, 0, None, None, None)
    row = cost("anthropic", "claude-sonnet-4-5", {"inference_geo": "us"}, tokens)
    plain = cost("anthropic", "claude-sonnet-4-5", None, tokens)
    assert plain["cost_usd"] == 200_001 * Decimal(6) / MILLION  # above 200,000 tokens
    assert row["cost_usd"] == plain["cost_usd"] * Decimal("1.1")


# --- what the package lacks -----------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["openai", "azure"])
@pytest.mark.parametrize(
    ("model", "of_input", "of_output"),
    [
        ("gpt-4o-audio-preview-2024-10-01", 100, 200),
        ("gpt-4o-audio-preview", 40, 80),
        ("gpt-4o-audio-preview-2024-12-17", 40, 80),
        ("gpt-4o-audio-preview-2025-06-03", 40, 80),
        ("gpt-4o-mini-audio-preview", 10, 20),
        ("gpt-4o-mini-audio-preview-2024-12-17", 10, 20),
    ],
)
def test_audio_of_the_older_models_has_its_own_price(
    model: str, of_input: int, of_output: int, provider: str
) -> None:
    audio = {"input_audio_tokens": MILLION, "output_audio_tokens": 100_000}
    row = cost(provider, model, audio)
    assert (row["input_cost_usd"], row["output_cost_usd"]) == (of_input, Decimal(of_output) / 10)


@pytest.mark.parametrize(
    ("provider", "model", "details", "fee"),
    [
        # A fee for every request.
        ("openai", "gpt-4o-search-preview", {}, "0.025"),
        ("openai", "gpt-4o-mini-search-preview", {}, "0.025"),
        ("openai", "gpt-4o-search-preview-2025-03-11", {}, "0.025"),
        ("openai", "gpt-5-search-api", {}, "0.01"),
        ("openai", "gpt-5", {}, "0"),
        *(
            ("perplexity", model, {"search_context_size": size}, f"0.0{fee:02}")
            for models, fees in (
                (("sonar-pro", "sonar-reasoning-pro"), (6, 10, 14)),
                (("sonar", "sonar-reasoning"), (5, 8, 12)),
            )
            for model in models
            for size, fee in zip(("low", "medium", "high"), fees, strict=True)
        ),
        ("perplexity", "sonar", {}, "0.012"),  # the package's
        # A fee for every search.
        ("openai", "gpt-4o", {"web_search_previews": 3}, "0.075"),
        ("openai", "gpt-4.1", {"web_search_previews": 3}, "0.075"),
        ("openai", "gpt-4.1-mini", {"web_search_previews": 3}, "0.075"),
        ("openai", "gpt-5", {"web_search_previews": 3}, "0.03"),
        ("openai", "o4-mini", {"web_search_previews": 3}, "0.03"),
        ("openai", "gpt-4o", {"web_searches": 3}, "0.03"),
        ("openai", "gpt-5", {"web_searches": 3}, "0.03"),
        ("openai", "gpt-5", {"storage_searches": 2}, "0.005"),
        ("anthropic", "claude-sonnet-4-5", {"web_searches": 3}, "0.03"),
        ("perplexity", "sonar-deep-research", {"web_searches": 3}, "0.015"),
        ("x-ai", "grok-4.3", {"web_searches": 1}, "0.005"),
        ("xai", "grok-4.3", {"social_searches": 2}, "0.01"),
        ("xai", "grok-4.3", {"code_executions": 3}, "0.015"),
        ("xai", "grok-4.3", {"storage_searches": 4}, "0.01"),
        ("xai", "grok-4.3", {"search_sources": 5}, "0.125"),
        # Gemini 2 is charged once a request, later models for every search.
        ("google_ai", "gemini-2.5-flash", {"web_searches": 1}, "0.035"),
        ("google_ai", "gemini-2.5-flash", {"web_searches": 3}, "0.035"),
        ("google_vertex", "gemini-2.0-flash", {"web_searches": 3}, "0.035"),
        ("google_ai", "models/gemini-2.5-flash", {"web_searches": 3}, "0.035"),
        ("google_ai", "gemini-3-flash-preview", {"web_searches": 1}, "0.014"),
        ("google_ai", "gemini-3-flash-preview", {"web_searches": 3}, "0.042"),
        # A use without a price is not free.
        ("openai", "gpt-4o-mini", {"web_searches": 1}, None),
        ("openai", "gpt-4.1-mini", {"web_searches": 1}, None),
        ("openai", "gpt-5", {"image_generations": 1}, None),
        ("openai", "gpt-5", {"social_searches": 1}, None),
        ("google_ai", "gemini-2.5-flash", {"map_searches": 1}, None),
        ("xai", "grok-4.3", {"document_searches": 1}, None),
        ("azure", "gpt-4o", {"web_searches": 1}, None),
        ("azure", "gpt-4o", {"storage_searches": 1}, None),
        ("azure", "gpt-4o", {"web_search_previews": 1}, None),
        ("anthropic", "claude-sonnet-4-5", {"storage_searches": 1}, None),
        ("google_vertex", "claude-sonnet-4-5", {"web_searches": 1}, None),
        ("google_ai", "gemini-1.5-flash", {"web_searches": 1}, None),
        ("perplexity", "sonar", {"web_searches": 1}, None),
        ("openrouter", "openai/gpt-5", {"web_searches": 1}, None),
        ("perplexity", "sonar", {"search_context_size": "vast"}, None),
        ("mistral", "mistral-large-latest", {"audio_seconds": 60, "input_audio_seconds": 60}, None),
        ("openai", "gpt-5", {"code_executions": 1}, None),
    ],
)
def test_a_fee_is_charged_by_its_own_price_or_makes_the_cost_unknown(
    provider: str, model: str, details: dict[str, Any], fee: str | None
) -> None:
    row = cost(provider, model, details)
    plain = cost(provider, model)
    if fee is None:
        assert set(row.values()) == {None, ""}
        return
    assert row["other_cost_usd"] == Decimal(fee)
    for part in ("input_cost_usd", "output_cost_usd"):
        assert row[part] == plain[part]
    assert row["cost_usd"] == row["input_cost_usd"] + row["output_cost_usd"] + Decimal(fee)


def test_calls_with_and_without_fees_share_a_batch() -> None:
    searched = '{"web_searches":3}'
    found = costs(
        [
            call("gpt-5"),
            call("gemini-2.5-flash", provider="google_ai", usage_details=searched),
            call("gpt-4o-mini", usage_details=searched),
            call("gpt-5", usage_details=searched),
            call("gpt-5-search-api"),
            call("gpt-4o-mini"),
        ]
    )
    assert [row["other_cost_usd"] for row in found] == [
        0,
        Decimal("0.035"),
        None,
        Decimal("0.03"),
        Decimal("0.01"),
        0,
    ]


@pytest.mark.parametrize(
    ("total", "least", "expected"),
    [
        (250_000, 200_001, "1.5"),  # all above 200,000: at 6 USD a million
        (250_000, 200_000, None),
        (250_000, 50_000, None),
        (150_000, 50_000, "0.45"),  # all below: at 3
    ],
)
def test_requests_of_one_answer_have_a_price_where_they_are_all_of_one_length(
    total: int, least: int, expected: str | None
) -> None:
    tokens = (total, 0, None, None, None)
    row = cost("anthropic", "claude-sonnet-4-5", {"least_input_tokens": least}, tokens)
    assert row["cost_usd"] == (None if expected is None else Decimal(expected))
    [plain, other] = costs(
        [
            call("claude-sonnet-4-5", tokens, provider="anthropic"),
            call(
                "claude-sonnet-4-5",
                tokens,
                provider="anthropic",
                usage_details=f'{{"least_input_tokens":{least}}}',
            ),
        ]
    )
    assert plain["cost_usd"] == total * Decimal(6 if total > 200_000 else 3) / MILLION
    assert other["cost_usd"] == row["cost_usd"]


# --- details of the tokens ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "model", "tokens", "details", "of_input"),
    [
        # 0.30 USD a million, audio 1, cached 0.03, cached audio 0.10.
        ("google", "gemini-2.5-flash", (MILLION, 0), {"input_audio_tokens": 400_000}, "0.58"),
        (
            "google",
            "gemini-2.5-flash",
            (MILLION, 0, 500_000),
            {"input_audio_tokens": 400_000, "cache_audio_read_tokens": 300_000},
            "0.256",
        ),
        (
            "google",
            "gemini-2.5-flash",
            (MILLION, 0, 500_000),
            {"input_audio_tokens": 400_000, "cache_audio_read_tokens": 0},
            "0.445",
        ),
        ("google", "gemini-2.5-flash", (MILLION, 0, 500_000), {"input_audio_tokens": 4}, None),
        ("google", "gemini-2.5-flash", (MILLION, 0), {"input_audio_tokens": MILLION + 1}, None),
        # 3 USD a million, written 3.75, written for an hour 6.
        (
            "anthropic",
            "claude-sonnet-4-5",
            (1_000, 0, 0, 500),
            {"cache_write_1h_tokens": 200},
            "0.003825",
        ),
        (
            "anthropic",
            "claude-sonnet-4-5",
            (1_000, 0, 0, 500),
            {"cache_write_1h_tokens": 501},
            None,
        ),
        # 0.10 USD a million, and 0.24 USD an hour of audio.
        (
            "mistral",
            "voxtral-small-24b-2507",
            (1_000, 0),
            {"audio_seconds": 7_200, "input_audio_seconds": 7_200},
            "0.4801",
        ),
    ],
)
def test_parts_of_the_input_are_charged_once(
    provider: str,
    model: str,
    tokens: tuple[int, ...],
    details: dict[str, int],
    of_input: str | None,
) -> None:
    row = cost(provider, model, details, (*tokens, *[None] * (5 - len(tokens))))
    expected = None if of_input is None else Decimal(of_input)
    assert (row["input_cost_usd"], row["cost_usd"]) == (expected, expected)


def test_names_are_told_apart_whatever_they_contain() -> None:
    calls = [call("acme\x1fgpt-4o"), call("acme", served_model="gpt-4o")]
    calls += [call("gpt-4o\x1f"), call("gpt-4o", served_model="gpt-4o\x1f")]
    assert [row["price_entry"] for row in costs(calls)] == [
        costs([each])[0]["price_entry"] for each in calls
    ]
    assert [row["price_entry"] for row in costs(calls)][:2] == ["", "openai/gpt-4o"]
