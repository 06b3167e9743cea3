"""The costs of calls: the package's own amounts, and calls without a price."""

import random
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import genai_prices
import pytest
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import StartDateConstraint, TimeOfDateConstraint

from llm_trace_pipeline.trace.details import text_of_details
from llm_trace_pipeline.trace.list_prices import LIST_VERSION
from llm_trace_pipeline.trace.own_prices import with_additions
from tests.harness.prices import Call, call, costs

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
TO_18 = Decimal("1e-18")
# The counts that a response may state beside the columns.
DETAILS = (
    *("cache_write_1h_tokens", "input_audio_tokens", "cache_audio_read_tokens"),
    *("input_image_tokens", "cache_image_read_tokens", "input_video_tokens"),
    *("output_audio_tokens", "output_image_tokens", "output_video_tokens"),
    *("output_citation_tokens", "web_searches", "storage_searches"),
)
CONTEXTS: list[dict[str, str]] = [
    {},
    {},
    {},
    {"service_tier": "flex"},
    {"service_tier": "priority"},
    {"service_tier": "batch"},
    {"speed": "fast"},
]


def by_the_package(
    row: Call, details: dict[str, int], context: dict[str, str]
) -> tuple[Decimal, Decimal, Decimal] | None:
    """Return total, input and output cost as the package computes them; None: it refuses."""
    tokens = {
        "input_tokens": row["prompt_tokens"],
        "output_tokens": row["completion_tokens"],
        "cache_read_tokens": row["cached_input_tokens"],
        "cache_write_tokens": row["cache_write_tokens"],
        "output_reasoning_tokens": row["reasoning_tokens"],
    }
    if context.get("service_tier") == "batch":
        context = {"processing": "batch"}
    if row["model"].startswith(("gemini-1", "gemini-2")) and details.get("web_searches"):
        details = details | {"web_searches": 1}  # charged once a request
    try:
        price = genai_prices.calc_price(
            genai_prices.Usage(**tokens | details),
            row["model"],
            provider_id=row["provider"],
            genai_request_timestamp=row["created_at"],
            price_context=context,
        )
    except (LookupError, ValueError):
        return None
    if not is_honoured(price, context, row["created_at"]):
        return None
    is_free = price.model.id.endswith(":free") or price.model.id.startswith(
        ("gemma-", "moderation")
    )
    if not is_free and not any(
        key.endswith("_mtok") for key, value in vars(price.model_price).items() if value is not None
    ):
        return None  # charged by the hour, or by a price that is missing
    if any(
        details.get(use) and getattr(price.model_price, f"{use}_kcount") is None
        for use in ("web_searches", "storage_searches")
    ):
        return None  # a use without a price is not free
    total, of_input, of_output = (
        each.quantize(TO_18) for each in (price.total_price, price.input_price, price.output_price)
    )
    return total, of_input, of_output


def is_honoured(price: Any, context: dict[str, str], at: datetime) -> bool:
    """Whether the package has a price for calls that were served so."""
    if price.provider.id == "groq":
        context = {key: value for key, value in context.items() if value != "flex"}
    return not context or any(
        variant.when == context and (not variant.constraint or variant.constraint.active(at))
        for variant in price.model.price_variants or []
        if any(price.model is own for own in price.provider.models)
    )


def moments(prices: object) -> list[datetime]:
    """Return times on both sides of every change of a price."""
    found = [NOON]
    for each in prices if isinstance(prices, list) else []:
        if isinstance(each.constraint, StartDateConstraint):
            midnight = datetime.combine(each.constraint.start_date, datetime.min.time(), UTC)
            found += [midnight, midnight - timedelta(microseconds=1)]
        elif isinstance(each.constraint, TimeOfDateConstraint):
            for end in (each.constraint.start_time, each.constraint.end_time):
                at = datetime.combine(date(2026, 3, 1), end, UTC)
                found += [at, at - timedelta(microseconds=1)]
    return found


def some_details(rng: random.Random, tokens: list[int | None]) -> dict[str, int]:
    """Draw some counts of parts of the tokens; one in ten contradicts them."""
    prompt, completion, cached, written, _ = (count or 0 for count in tokens)
    wholes = {"cache_write": written, "input": prompt, "output": completion, "cache": cached}
    details = {}
    for name in rng.sample(DETAILS, rng.choice([0, 0, 1, 2, 5])):
        whole = next((whole for head, whole in wholes.items() if name.startswith(head)), 3)
        details[name] = rng.randrange(whole // (1 if rng.random() < 0.1 else 4) + 1)
    return details


def some_tokens(rng: random.Random) -> list[int | None]:
    """Draw counts on both sides of every tier; one in ten contradicts itself."""
    prompt = rng.choice([0, 1, rng.randrange(3_000), 128_000, 200_001, rng.randrange(1_500_000)])
    completion = rng.randrange(20_000)
    limit = max(1, prompt * (3 if rng.random() < 0.1 else 1))
    cached = rng.choice([None, 0, rng.randrange(limit)])
    written = rng.choice([None, 0, rng.randrange(max(1, limit - (cached or 0)))])
    reasoning = rng.choice([None, 0, rng.randrange(max(1, completion))])
    return [prompt, completion, cached, written, reasoning]


def test_every_model_of_the_package_costs_what_the_package_computes() -> None:
    rng = random.Random(7)  # noqa: S311 -- test data
    drawn = []
    for provider in get_snapshot().providers:
        for model in provider.models:
            own = with_additions(provider.id, model.id.lower(), {}, {})
            if own.keys() - {"web_search_previews_kcount"} or provider.id == "azure":
                continue  # has prices that the package lacks
            for at in moments(model.prices):
                for _ in range(3):
                    tokens = some_tokens(rng)
                    details, context = some_details(rng, tokens), rng.choice(CONTEXTS)
                    drawn.append((call(model.id, tokens, at, provider.id), details, context))
    drawn.sort(key=lambda each: each[0]["created_at"])  # both sides of a change share a batch
    assert len(drawn) > 8_000
    calls = [
        row
        | {"service_tier": context.get("service_tier", "")}
        | {"usage_details": text_of_details(details | without_tier(context))}
        for row, details, context in drawn
    ]
    expected = [by_the_package(*each) for each in drawn]
    found = [row for n in range(0, len(calls), 500) for row in costs(calls[n : n + 500])]
    assert sum(prices is not None for prices in expected) > 3_000
    for row, prices, of in zip(found, expected, calls, strict=True):
        assert (row["cost_usd"] is None) == (prices is None), (of, row)
        if prices is None:
            assert set(row.values()) == {None, ""}
            continue
        total, of_input, of_output = prices
        assert (row["input_cost_usd"], row["output_cost_usd"]) == (of_input, of_output), of
        # The expected total is rounded once. The cost here is the sum of parts, all rounded; a few
        # packaged prices have 18 decimals.
        assert abs(row["cost_usd"] - total) <= TO_18, of
        assert row["cost_usd"] == of_input + of_output + row["other_cost_usd"]
        cached, written = (row[f"{name}_cost_usd"] for name in ("cached_input", "cache_write"))
        assert 0 <= cached + written <= row["input_cost_usd"] + 2 * TO_18, of
        assert (row["price_version"], row["cost_basis"]) == (LIST_VERSION, "list")


def without_tier(context: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in context.items() if name != "service_tier"}


def test_the_parts_add_up_and_count_no_token_twice() -> None:
    [row] = costs(
        [call("claude-sonnet-4-5", (10_000, 1_000, 6_000, 3_000, 400), NOON, "anthropic")]
    )
    assert row == {
        "cached_input_cost_usd": Decimal("0.0018"),  # 6,000 at 0.30 USD a million
        "cache_write_cost_usd": Decimal("0.01125"),  # 3,000 at 3.75
        "input_cost_usd": Decimal("0.01605"),  # those, and 1,000 at 3
        "output_cost_usd": Decimal("0.015"),  # 1,000 at 15, the reasoning among them
        "other_cost_usd": 0,
        "cost_usd": Decimal("0.03105"),
        "price_version": LIST_VERSION,
        "cost_basis": "list",
        "price_entry": "anthropic/claude-sonnet-4-5",
    }


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(call("no-such-model"), id="an unknown model"),
        pytest.param(call(""), id="no model"),
        pytest.param(call("gpt-4o", provider="ollama"), id="an unknown provider"),
        pytest.param(call("gpt-4o", (10, 1, 11, None, None)), id="more cached than there is"),
    ],
)
def test_what_has_no_price_is_null_and_not_0(row: Call) -> None:
    known = call("gpt-4o")
    assert [each["cost_usd"] for each in costs([known, row, known])] == [
        Decimal("0.0035"),
        None,
        Decimal("0.0035"),
    ]


def test_no_call_costs_nothing() -> None:
    assert costs([]) == []


def test_the_largest_believable_call_is_exact() -> None:
    with_tiers = call("claude-sonnet-4-5", provider="anthropic")
    row, _ = costs([call("gpt-4o", (10**12, 10**12, 1, None, None)), with_tiers])
    assert row["input_cost_usd"] == ((10**12 - 1) * Decimal("2.5") + Decimal("1.25")) / 10**6
    assert row["output_cost_usd"] == 10**12 * Decimal(10) / 10**6
