"""The costs of calls: the package's own amounts, the user's price file, calls without a price."""

import random
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import genai_prices
import pyarrow as pa
import pytest
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import StartDateConstraint, TimeOfDateConstraint

from llm_trace_pipeline.errors import SettingsError
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.trace.columns import ARROW_SCHEMA, COST_COLUMNS
from llm_trace_pipeline.trace.prices import PACKAGE_VERSION, PACKAGED, PRICED_BY, PriceBook

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
TO_18 = Decimal("1e-18")
FILE = """
[[prices]]
provider = "openai"
model = "gpt-4o"
from = 2026-03-02
input = 1.25
cached_input = 0.1
output = 5

[[prices]]
provider = "openai"
model = "gpt-4o"
from = 2026-04-01
input = 1
output = 4

[[prices]]
provider = "vllm"
model = "our-own"
input = 0.000001
cache_write = 0.000002
output = 0
"""

Call = dict[str, Any]


def call(
    model: str,
    tokens: Sequence[int | None] = (1000, 100, None, None, None),
    at: datetime = NOON,
    provider: str = "openai",
) -> Call:
    prompt, completion, cached, written, reasoning = tokens
    return {
        "provider": provider,
        "model": model,
        "created_at": at,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "cached_input_tokens": cached,
        "cache_write_tokens": written,
        "reasoning_tokens": reasoning,
    }


def costs(calls: Iterable[Call], prices: PriceBook = PACKAGED) -> list[dict[str, Any]]:
    schema = pa.schema([ARROW_SCHEMA.field(name) for name in PRICED_BY])
    rows = pa.RecordBatch.from_pylist(list(calls), schema)
    columns = prices.costs(rows)
    assert list(columns) == [*COST_COLUMNS, "price_version"]
    for name, column in columns.items():
        assert column.type == ARROW_SCHEMA.field(name).type
    found: list[dict[str, Any]] = pa.record_batch(columns).to_pylist()
    return found


def by_the_package(row: Call) -> tuple[Decimal, Decimal, Decimal] | None:
    """Return total, input and output cost as the package computes them; None: it refuses."""
    tokens = {
        "input_tokens": row["prompt_tokens"],
        "output_tokens": row["completion_tokens"],
        "cache_read_tokens": row["cached_input_tokens"],
        "cache_write_tokens": row["cache_write_tokens"],
        "output_reasoning_tokens": row["reasoning_tokens"],
    }
    try:
        price = genai_prices.calc_price(
            genai_prices.Usage(**tokens),
            row["model"],
            provider_id=row["provider"],
            genai_request_timestamp=row["created_at"],
        )
    except (LookupError, ValueError):
        return None
    total, of_input, of_output = (
        each.quantize(TO_18) for each in (price.total_price, price.input_price, price.output_price)
    )
    return total, of_input, of_output


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
    calls = [
        call(model.id, some_tokens(rng), at, provider.id)
        for provider in get_snapshot().providers
        for model in provider.models
        for at in moments(model.prices)
        for _ in range(2)
    ]
    calls.sort(key=lambda row: row["created_at"])  # so that both sides of a change share a batch
    assert len(calls) > 5_000
    expected = [by_the_package(row) for row in calls]
    found = [row for n in range(0, len(calls), 500) for row in costs(calls[n : n + 500])]
    assert [None if row["cost_usd"] is None else "priced" for row in found] == [
        None if prices is None else "priced" for prices in expected
    ]
    for row, prices, of in zip(found, expected, calls, strict=True):
        if prices is None:
            assert row == dict.fromkeys(COST_COLUMNS) | {"price_version": ""}
            continue
        total, of_input, of_output = prices
        assert (row["input_cost_usd"], row["output_cost_usd"]) == (of_input, of_output), of
        # The expected total is rounded once. The cost here is the sum of input and output, both
        # rounded; a few packaged prices have 18 decimals.
        assert abs(row["cost_usd"] - total) <= TO_18, of
        cached, written = (row[f"{name}_cost_usd"] for name in ("cached_input", "cache_write"))
        assert 0 <= cached + written <= row["input_cost_usd"] + 2 * TO_18, of
        assert row["price_version"] == PACKAGE_VERSION


def test_the_parts_add_up_and_count_no_token_twice() -> None:
    [row] = costs(
        [call("claude-sonnet-4-5", (10_000, 1_000, 6_000, 3_000, 400), NOON, "anthropic")]
    )
    assert row == {
        "cached_input_cost_usd": Decimal("0.0018"),  # 6,000 at 0.30 USD a million
        "cache_write_cost_usd": Decimal("0.01125"),  # 3,000 at 3.75
        "input_cost_usd": Decimal("0.01605"),  # those, and 1,000 at 3
        "output_cost_usd": Decimal("0.015"),  # 1,000 at 15, the reasoning among them
        "cost_usd": Decimal("0.03105"),
        "price_version": PACKAGE_VERSION,
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


def test_a_call_with_more_tokens_than_63_bits_can_price_is_exact() -> None:
    with_tiers = call("claude-sonnet-4-5", provider="anthropic")
    row, _ = costs([call("gpt-4o", (2**63, 2**63, 1, None, None)), with_tiers])
    assert row["input_cost_usd"] == ((2**63 - 1) * Decimal("2.5") + Decimal("1.25")) / 10**6
    assert row["output_cost_usd"] == 2**63 * Decimal(10) / 10**6


@pytest.fixture
def price_file(tmp_path: Path) -> Path:
    path = tmp_path / "prices.toml"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_a_price_file_comes_before_the_package_from_its_day_on(price_file: Path) -> None:
    prices = PriceBook.of(Settings.from_environment({"LLM_TRACES_PRICES": str(price_file)}))
    tokens = (1_000_000, 1_000_000, 500_000, None, None)
    last_of_march = datetime(2026, 4, 1, tzinfo=UTC) - timedelta(microseconds=1)
    found = costs(
        [
            call("gpt-4o", tokens, datetime(2026, 3, 1, 23, 59, tzinfo=UTC)),
            call("gpt-4o", tokens, datetime(2026, 3, 2, tzinfo=UTC)),
            call("gpt-4o", tokens, last_of_march),
            call("gpt-4o", tokens, last_of_march + timedelta(microseconds=1)),
            call("gpt-4o", tokens, NOON, "azure"),
            call("our-own", (3, 7, 1, 1, None), NOON, "vllm"),
        ],
        prices,
    )
    of_file = prices.file_version
    assert [
        (row["cost_usd"], row["cached_input_cost_usd"], row["price_version"]) for row in found
    ] == [
        (Decimal("11.875"), Decimal("0.625"), PACKAGE_VERSION),
        (Decimal("5.675"), Decimal("0.05"), of_file),
        (Decimal("5.675"), Decimal("0.05"), of_file),
        (Decimal(5), Decimal("0.5"), of_file),
        (Decimal("11.875"), Decimal("0.625"), PACKAGE_VERSION),
        (Decimal("4e-12"), Decimal("1e-12"), of_file),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[prices]", r"prices.toml: Expected ']]'"),
        ("[[price]]", r"prices.toml: prices: Field required"),
        (FILE.replace("output = 5\n", ""), r"prices.toml: prices.0.output: Field required"),
        (
            FILE.replace("output = 5\n", "output = -5\n"),
            r"prices.0.output: .* greater than or equal",
        ),
        (FILE.replace("output = 5\n", "output = 5e-7\n"), r"prices.0.output: .* 6 decimal places"),
        (FILE.replace("output = 5\n", "output = nan\n"), r"prices.0.output: .* finite"),
        (FILE.replace("cached_input", "cached"), r"prices.0.cached: Extra inputs"),
        (FILE.replace("04-01", "03-02"), r"two prices of openai/gpt-4o from 2026-03-02"),
        (FILE.replace("2026-04-01", '"soon"'), r"prices.1.from: .* date"),
    ],
)
def test_a_wrong_price_file_is_one_line_that_names_the_place(
    price_file: Path, text: str, message: str
) -> None:
    price_file.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=rf"^LLM_TRACES_PRICES: .*{message}[^\n]*$"):
        PriceBook.of(Settings.from_environment({"LLM_TRACES_PRICES": str(price_file)}))
