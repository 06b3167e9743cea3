"""The user's price file: which calls its entries price, and what is wrong with it."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from llm_trace_pipeline.errors import SettingsError
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.trace.list_prices import LIST_VERSION
from llm_trace_pipeline.trace.price_file import Entry
from llm_trace_pipeline.trace.prices import PriceBook
from tests.harness.prices import Call, call, costs

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
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
        (Decimal("11.875"), Decimal("0.625"), LIST_VERSION),
        (Decimal("5.675"), Decimal("0.05"), of_file),
        (Decimal("5.675"), Decimal("0.05"), of_file),
        (Decimal(5), Decimal("0.5"), of_file),
        (Decimal("11.875"), Decimal("0.625"), LIST_VERSION),
        (Decimal("4e-12"), Decimal("1e-12"), of_file),
    ]


def entry(price: int, head: str = "", **conditions: str) -> str:
    """Return the text of an entry whose input costs this much, and its output nothing."""
    named = {"provider": "openai", "model": "m"} | conditions
    lines = [f"{name} = {json.dumps(value)}" for name, value in named.items() if value]
    return "\n".join([head, "[[prices]]", *lines, f"input = {price}", "output = 0", ""])


@pytest.fixture
def book(price_file: Path) -> Any:
    """Return the prices of a file by its text."""

    def book(*texts: str) -> PriceBook:
        price_file.write_text("\n".join(texts), encoding="utf-8")
        return PriceBook.of_file(price_file)

    return book


MILLION = (1_000_000, 0, None, None, None)


def model(name: str = "m", tokens: Any = MILLION, **columns: Any) -> Call:
    details = columns.pop("details", None)
    text = json.dumps(details) if details else ""
    return call(name, tokens, usage_details=text, **columns)


# --- what an entry prices -------------------------------------------------------------------------

# By the field that prices it alone: the tokens and details of a call with a million of a unit, or a
# thousand uses.
TOKENS: dict[str, tuple[tuple[int | None, ...], dict[str, int]]] = {
    "input": ((1_000_000, 0, None, None, None), {}),
    "cached_input": ((1_000_000, 0, 1_000_000, None, None), {}),
    "cache_write": ((1_000_000, 0, None, 1_000_000, None), {}),
    "cache_write_1h": ((1_000_000, 0, None, 1_000_000, None), {"cache_write_1h_tokens": 1_000_000}),
    "output": ((0, 1_000_000, None, None, None), {}),
    "reasoning": ((0, 1_000_000, None, None, 1_000_000), {}),
    **{
        f"input_{medium}": (
            (1_000_000, 0, None, None, None),
            {f"input_{medium}_tokens": 1_000_000},
        )
        for medium in ("audio", "image", "video")
    },
    **{
        f"cached_{medium}": (
            (1_000_000, 0, 1_000_000, None, None),
            {f"input_{medium}_tokens": 1_000_000, f"cache_{medium}_read_tokens": 1_000_000},
        )
        for medium in ("audio", "image", "video")
    },
    **{
        f"output_{medium}": (
            (0, 1_000_000, None, None, None),
            {f"output_{medium}_tokens": 1_000_000},
        )
        for medium in ("audio", "image", "video")
    },
    "citations": ((0, 1_000_000, None, None, None), {"output_citation_tokens": 1_000_000}),
}
USES = (
    *("web_searches", "web_search_previews", "social_searches", "storage_searches"),
    *("search_sources", "code_executions", "document_searches", "map_searches"),
    "image_generations",
)


def test_an_entry_for_the_standard_tier_stands_beside_one_for_all_tiers(book: Any) -> None:
    prices = book(entry(1) + entry(2, service_tier="standard"))
    found = costs([model(), model(service_tier="flex")], prices)
    assert [row["price_entry"] for row in found] == [
        "openai/m service_tier=standard",
        "openai/m",
    ]


def test_these_are_all_fields_of_prices() -> None:
    conditions = {"provider", "served_by", "service_tier", "speed", "inference_geo"}
    others = conditions | {"search_context_size", "model", "since", "override"}
    assert Entry.model_fields.keys() - others == {*TOKENS, *USES, "requests", "audio_hours"}


@pytest.mark.parametrize("field", TOKENS)
def test_a_price_of_tokens_is_for_a_million_of_them(field: str, book: Any) -> None:
    tokens, details = TOKENS[field]
    # All other prices are other ones: no other unit is charged.
    others = dict.fromkeys(TOKENS, 1_000) | {field: 7}
    lines = "\n".join(f"{name} = {price}" for name, price in others.items())
    prices = book(f'[[prices]]\nprovider = "openai"\nmodel = "m"\n{lines}')
    [row] = costs([model(tokens=tokens, details=details)], prices)
    is_output = tokens[0] == 0
    assert (row["cost_usd"], row["other_cost_usd"]) == (7, 0)
    assert row["output_cost_usd" if is_output else "input_cost_usd"] == 7
    assert row["input_cost_usd" if is_output else "output_cost_usd"] == 0
    assert row["cached_input_cost_usd"] == (7 if field.startswith("cached") else 0)
    assert row["cache_write_cost_usd"] == (7 if field.startswith("cache_write") else 0)
    assert (row["cost_basis"], row["price_version"]) == ("file", prices.file_version)


@pytest.mark.parametrize("field", TOKENS)
def test_tokens_without_a_price_cost_as_much_as_those_they_are_part_of(
    field: str, book: Any
) -> None:
    tokens, details = TOKENS[field]
    [row] = costs(
        [model(tokens=tokens, details=details)],
        book('[[prices]]\nprovider = "openai"\nmodel = "m"\ninput = 3\noutput = 5'),
    )
    is_output = tokens[0] == 0
    assert row["cost_usd"] == (5 if is_output else 3)
    assert row["cached_input_cost_usd"] == (3 if field.startswith("cached") else 0)
    assert row["cache_write_cost_usd"] == (3 if field.startswith("cache_write") else 0)


@pytest.mark.parametrize("field", USES)
def test_a_price_of_uses_is_for_a_thousand_of_them(field: str, book: Any) -> None:
    used = model(details={field: 500})
    [row] = costs([used], book(entry(1) + f"{field} = 7"))
    assert (row["other_cost_usd"], row["cost_usd"]) == (Decimal("3.5"), Decimal("4.5"))
    others = "\n".join(f"{name} = 7" for name in USES if name != field)
    [row] = costs([used], book(entry(1) + others))
    assert (row["cost_usd"], row["cost_basis"]) == (None, "")


def test_a_price_of_requests_is_for_a_thousand_of_them(book: Any) -> None:
    [row] = costs([model()], book(entry(1) + "requests = 7"))
    assert (row["other_cost_usd"], row["cost_usd"]) == (Decimal("0.007"), Decimal("1.007"))


def test_searches_that_are_charged_once_a_request_are_so_by_an_entry_too(book: Any) -> None:
    prices = book(
        entry(0, provider="google_ai", model="gemini-2.5-flash") + "web_searches = 20",
        entry(0, provider="google_ai", model="gemini-3-flash-preview") + "web_searches = 20",
    )
    calls = [
        model(name, provider="google_ai", details={"web_searches": 3})
        for name in ("gemini-2.5-flash", "gemini-3-flash-preview")
    ]
    assert [row["cost_usd"] for row in costs(calls, prices)] == [Decimal("0.02"), Decimal("0.06")]


def test_what_an_entry_cannot_price_is_not_free(book: Any) -> None:
    details = {"audio_seconds": 60, "input_audio_seconds": 60}
    [row] = costs([model(details=details)], book(entry(1)))
    assert row["cost_usd"] is None
    [row] = costs([model(details=details)], book(f"{entry(1)}\naudio_hours = 6"))
    assert row["other_cost_usd"] == Decimal("0.1")


# --- which calls an entry is for ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditions", "columns", "is_for"),
    [
        ({}, {}, True),
        ({}, {"service_tier": "flex"}, True),  # what is not named is not restricted
        ({}, {"details": {"speed": "fast"}}, True),
        ({}, {"provider": "azure"}, False),
        ({"model": "n"}, {}, False),
        ({"model": "M"}, {}, False),
        ({"model": "served"}, {"served_model": "served"}, True),
        ({"service_tier": "flex"}, {"service_tier": "flex"}, True),
        ({"service_tier": "flex"}, {"service_tier": "priority"}, False),
        ({"service_tier": "flex"}, {}, False),
        ({"service_tier": "standard"}, {}, True),
        ({"service_tier": "standard"}, {"service_tier": "flex"}, False),
        ({"service_tier": "default"}, {}, True),
        ({"service_tier": "Auto"}, {}, True),
        ({"service_tier": "default"}, {"service_tier": "flex"}, False),
        ({"service_tier": "ON_DEMAND_FLEX"}, {"service_tier": "flex"}, True),
        ({"speed": "fast"}, {"details": {"speed": "fast"}}, True),
        ({"speed": "fast"}, {"details": {"speed": "slow"}}, False),
        ({"speed": "fast"}, {}, False),
        ({"inference_geo": "us"}, {"details": {"inference_geo": "us"}}, True),
        ({"inference_geo": "us"}, {}, False),
        ({"search_context_size": "low"}, {"details": {"search_context_size": "low"}}, True),
        ({"search_context_size": "low"}, {"details": {"search_context_size": "high"}}, False),
        ({"provider": "", "served_by": "vllm"}, {"served_by": "vllm"}, True),
        ({"provider": "", "served_by": "vllm"}, {"served_by": "openai"}, False),
        ({"served_by": "vllm"}, {"served_by": "vllm"}, True),
        ({"served_by": "vllm"}, {"served_by": "vllm", "provider": "azure"}, False),
        (
            {"service_tier": "flex", "speed": "fast"},
            {"service_tier": "flex", "details": {"speed": "fast"}},
            True,
        ),
        ({"service_tier": "flex", "speed": "fast"}, {"service_tier": "flex"}, False),
    ],
)
def test_an_entry_is_for_the_calls_that_have_what_it_names(
    conditions: dict[str, str], columns: dict[str, Any], is_for: bool, book: Any
) -> None:
    [row] = costs([model(**columns)], book(entry(7, **conditions)))
    assert row["cost_usd"] == (7 if is_for else None)
    assert row["cost_basis"] == ("file" if is_for else "")


@pytest.mark.parametrize(
    ("texts", "columns", "price"),
    [
        pytest.param(
            [entry(1), entry(2, service_tier="flex")], {"service_tier": "flex"}, 2, id="conditions"
        ),
        pytest.param([entry(1), entry(2, service_tier="flex")], {}, 1, id="not met"),
        pytest.param(
            [
                entry(3, service_tier="flex", served_by="openai"),
                entry(1),
                entry(2, service_tier="flex") + "from = 2026-10-01",
            ],
            {"service_tier": "flex"},
            3,
            id="more conditions come before a newer day",
        ),
        pytest.param(
            [entry(1) + "from = 2026-10-01", entry(2)], {}, 1, id="the newer of two for all"
        ),
        pytest.param([entry(1) + "from = 2026-12-01", entry(2)], {}, 2, id="not before its day"),
        pytest.param(
            [
                entry(1, model="asked", service_tier="flex", served_by="openai"),
                entry(2, model="served"),
            ],
            {"service_tier": "flex", "served_model": "served"},
            2,
            id="the model served before all else",
        ),
        pytest.param(
            [entry(1, model="asked"), entry(2, model="other")],
            {"served_model": "served"},
            1,
            id="else the model asked for",
        ),
    ],
)
def test_the_entry_that_says_most_of_a_call_prices_it(
    texts: list[str], columns: dict[str, Any], price: int, book: Any
) -> None:
    name = "asked" if "asked" in "".join(texts) else "m"
    assert [row["cost_usd"] for row in costs([model(name, **columns)], book(*texts))] == [price]


def test_a_row_names_the_entry_that_priced_it(book: Any) -> None:
    prices = book(
        entry(1, provider="", served_by="vllm", model="a"),
        entry(2, service_tier="flex", speed="fast") + "from = 2026-10-01",
        entry(3, served_by="openai", model="b"),
    )
    calls = [
        model("a", served_by="vllm"),
        model(service_tier="flex", details={"speed": "fast"}),
        model("b"),
        model("gpt-4o"),
    ]
    assert [row["price_entry"] for row in costs(calls, prices)] == [
        "vllm/a",
        "openai/m service_tier=flex speed=fast from=2026-10-01",
        "openai/b served_by=openai",
        "openai/gpt-4o",
    ]


# --- what the response says was charged -----------------------------------------------------------

REPORTED = {"reported_cost_usd": "0.5"}


@pytest.mark.parametrize(
    ("text", "basis", "cost"),
    [
        pytest.param("", "reported", Decimal("0.5"), id="no entry"),
        pytest.param(entry(7), "reported", Decimal("0.5"), id="an entry that does not override"),
        pytest.param(entry(7) + 'override = "reported"', "file", Decimal(7), id="one that does"),
        pytest.param(
            entry(7, head='override = "reported"'), "file", Decimal(7), id="all of a file do"
        ),
        pytest.param(
            entry(7, model="other") + 'override = "reported"',
            "reported",
            Decimal("0.5"),
            id="one for another model",
        ),
        pytest.param(
            entry(7) + 'override = "reported"\nfrom = 2026-12-01',
            "reported",
            Decimal("0.5"),
            id="one for later days",
        ),
    ],
)
def test_what_was_charged_is_believed_but_where_an_entry_overrides_it(
    text: str, basis: str, cost: Decimal, price_file: Path
) -> None:
    price_file.write_text(text or FILE, encoding="utf-8")
    prices = PriceBook.of_file(price_file)
    found = costs([model(details=REPORTED), model("gpt-4o")], prices)
    assert (found[0]["cost_basis"], found[0]["cost_usd"]) == (basis, cost)
    assert found[0]["price_version"] == (prices.file_version if basis == "file" else "")
    assert (found[0]["price_entry"] == "") == (basis == "reported")


def test_an_override_without_a_price_for_a_use_leaves_what_was_charged(book: Any) -> None:
    prices = book(entry(7) + 'override = "reported"')
    [row] = costs([model(details=REPORTED | {"web_searches": 1})], prices)
    assert (row["cost_basis"], row["cost_usd"]) == ("reported", Decimal("0.5"))


# --- wrong files ----------------------------------------------------------------------------------


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
        (FILE.replace('provider = "vllm"\n', ""), r"prices.2: .*neither provider nor served_by"),
        (FILE.replace('"vllm"', '""'), r"prices.2.provider: .*at least 1 character"),
        (FILE.replace('"our-own"', "7"), r"prices.2.model: .*valid string"),
        (FILE + 'override = "list"\n', r"prices.2.override: .*'reported'"),
        ('override = "all"\n' + FILE, r"prices.toml: override: .*'reported'"),
        (FILE + "web_searches = -1\n", r"prices.2.web_searches: .*greater than or equal"),
        (FILE + "searches = 1\n", r"prices.2.searches: Extra inputs"),
        (FILE + 'service_tier = ""\n', r"prices.2.service_tier: .*at least 1 character"),
        (FILE + "input_audio = 12345678901\n", r"prices.2.input_audio: .* digits"),
        (
            entry(1, served_by="a", service_tier="flex") * 2,
            r"two prices of openai/a/flex/m from 0001-01-01",
        ),
        (
            entry(1, service_tier="standard") + entry(2, service_tier="default"),
            r"two prices of openai/m",
        ),
        (
            FILE + "cached_input = 1\ninput_audio = 1\n",
            r"prices.2: .*has cached_input and input_audio, so that it needs cached_audio",
        ),
    ],
)
def test_a_wrong_price_file_is_one_line_that_names_the_place(
    price_file: Path, text: str, message: str
) -> None:
    price_file.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=rf"^LLM_TRACES_PRICES: .*{message}[^\n]*$"):
        PriceBook.of(Settings.from_environment({"LLM_TRACES_PRICES": str(price_file)}))
