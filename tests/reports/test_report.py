"""The figures of the report, as its page shows them, against independent arithmetic."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.clickhouse.tables import define_table, definition_of, has_table
from llm_trace_pipeline.errors import PipelineError
from llm_trace_pipeline.reports.spend import Days, figures_of, page_of
from llm_trace_pipeline.settings import Settings
from tests.harness.calls import (
    CALLS,
    LONG,
    RATES,
    SHORT,
    UNMETERED,
    UNPRICED,
    Call,
    insert,
    summed,
)
from tests.harness.report_page import (
    MADE_AT,
    READ_HEADLINE,
    READ_SERIES,
    Table,
    show,
    tables_of,
)

OF_KOLKATA = "created_at DateTime64(6, 'Asia/Kolkata')"


def by(calls: Sequence[Call], key: Callable[[Call], str], shown: int) -> Table:
    """Return the largest groups of calls by spend, and all others as ''."""
    groups: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        groups[key(call)].append(call)

    def order(name: str) -> tuple[Decimal, Decimal, Decimal, str]:
        found = summed(groups[name])
        return -found["spend_usd"], -found["byok_usd"], -found["tokens"], name

    ordered = sorted(groups, key=order)
    named, others = ordered[:shown], ordered[shown:]
    table = {name: summed(groups[name]) for name in named}
    if others:
        name = others[0] if len(others) == 1 else ""
        table[name] = summed([call for each in others for call in groups[each]])
    return table


@pytest.mark.parametrize("days", [LONG, SHORT], ids=["by day", "by hour"])
def test_the_figures_are_those_of_the_calls(
    pages: dict[Days, Path], page: Page, days: Days
) -> None:
    window = days.window
    calls = [call for call in CALLS if window.start <= call.created_at < window.end]
    assert calls
    show(page, pages[days])
    headline = page.evaluate(READ_HEADLINE)
    assert {key: Decimal(value) for key, value in headline.items()} == {
        **summed(calls),
        "errors": sum(call.is_error for call in calls),
        "organizations": len({call.organization_id for call in calls}),
    }
    tables = tables_of(page)
    assert tables["model"] == by(calls, lambda call: call.model, 8)
    assert tables["plan"] == by(calls, lambda call: call.billing_plan_type, 8)
    assert tables["cost_source"] == by(calls, lambda call: call.billing_cost_source, 8)
    assert tables["organizations"] == by(calls, lambda call: call.organization_id, 20)
    failed = [call for call in calls if call.is_error]
    assert {
        name: {key: row[key] for key in ("calls", "tokens", "spend_usd", "byok_usd")}
        for name, row in tables["errors"].items()
    } == by(failed, lambda call: call.error_type, 99)


@pytest.mark.parametrize("days", [LONG, SHORT], ids=["by day", "by hour"])
def test_spend_over_time_is_that_of_the_calls(
    pages: dict[Days, Path], page: Page, days: Days
) -> None:
    window = days.window
    calls = [
        call for call in CALLS if window.start <= call.created_at < window.end and not call.is_byok
    ]
    show(page, pages[days])
    names = list(tables_of(page)["model"])
    expected: dict[str, list[Decimal]] = {}
    for call in sorted(calls, key=lambda call: call.created_at):
        bucket = call.created_at.replace(minute=0, second=0)
        if days is LONG:
            bucket = bucket.replace(hour=0)
        amounts = expected.setdefault(bucket.isoformat(), [Decimal(0)] * len(names))
        amounts[names.index(call.model if call.model in names else "")] += call.cost
    found = page.evaluate(READ_SERIES, "model")
    assert {bucket: [Decimal(value) for value in values] for bucket, values in found} == expected
    # A mark in the chart for each amount.
    amounts_above_zero = sum(1 for values in expected.values() for value in values if value)
    marks = page.locator("figure svg").first.locator(".mark-rect path")
    assert marks.count() >= amounts_above_zero


def test_savings_by_caching_are_those_of_the_rates(pages: dict[Days, Path], page: Page) -> None:
    calls = [call for call in CALLS if not call.is_byok and call.cached_input_tokens]
    show(page, pages[LONG])
    found = tables_of(page)["cache"]
    rated = {  # the models and days of which a call tells the price of input
        (call.model, call.created_at.date())
        for call in CALLS
        if not call.is_byok
        and call.model in RATES
        and call.prompt_tokens > (call.cached_input_tokens or 0) + (call.cache_write_tokens or 0)
    }
    saved: dict[str, Decimal] = defaultdict(Decimal)
    cached: dict[str, int] = defaultdict(int)
    for call in calls:
        cached[call.model] += call.cached_input_tokens or 0
        if (call.model, call.created_at.date()) in rated:
            plain, read, *_ = RATES[call.model]
            saved[call.model] += (call.cached_input_tokens or 0) * (plain - read)
    for model, tokens in cached.items():
        assert found[model]["cached_tokens"] == tokens
        assert found[model]["saved_usd"] == saved[model], model
    assert found[""]["saved_usd"] == sum(saved.values())
    # Of model-5 every token came from the cache, and of the last one no price is known.
    assert saved["model-5"] == saved[UNPRICED] == 0
    underived = sum(
        call.cached_input_tokens or 0
        for call in calls
        if (call.model, call.created_at.date()) not in rated
    )
    assert underived >= cached["model-5"] + cached[UNPRICED] > 0
    share = f"{100 * underived / sum(cached.values()):.1f} % of the cached tokens"
    assert share in page.locator("section", has_text="What caching saved").inner_text()


def test_latency_is_of_measured_calls_that_succeeded(pages: dict[Days, Path], page: Page) -> None:
    show(page, pages[LONG])
    found = tables_of(page)["latency"]
    for model in {call.model for call in CALLS}:
        times = sorted(
            call.latency_ms
            for call in CALLS
            if call.model == model and call.latency_ms and not call.is_error
        )
        assert found[model]["calls"] == len(times)
        for key, level in (("p50_ms", 0.5), ("p95_ms", 0.95)):
            assert found[model][key] == times[min(int(level * len(times)), len(times) - 1)]


def test_what_is_to_be_done_is_listed(pages: dict[Days, Path], page: Page) -> None:
    show(page, pages[LONG])
    tables = tables_of(page)
    unpriced = [call for call in CALLS if call.model == UNPRICED]
    assert tables["unpriced_models"] == {
        f"some-provider/{UNPRICED}": {
            "calls": len(unpriced),
            "contradictory": 0,
            "input_tokens": sum(call.prompt_tokens for call in unpriced),
            "output_tokens": sum(call.completion_tokens for call in unpriced),
        }
    }
    unmetered = [call for call in CALLS if call.model == UNMETERED]
    assert tables["unmetered_models"] == {f"some-provider/{UNMETERED}": {"calls": len(unmetered)}}
    alerts = page.locator("p.alert").all_inner_texts()
    assert [text.partition(" calls (")[0] for text in alerts] == [
        f"{len(calls):,}" for calls in (unpriced, unmetered)
    ]
    entry = page.locator("pre").text_content() or ""
    assert entry.startswith('[[prices]]\nprovider = "some-provider"\nmodel = "<script>')
    without = [call for call in CALLS if call.billing_match == "none"]
    assert tables["organizations_without_billing"] == {"org-4": summed(without)}


def report_of(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Return the page of a first day that has these rows, as a file."""
    settings = Settings.from_environment({"LLM_TRACES_STATE": str(folder)})
    created_at = f"{SHORT.window.start:%Y-%m-%d %H:%M:%S}"
    lines = "\n".join(
        json.dumps({"id": str(number), "created_at": created_at, "provider": "p", **row})
        for number, row in enumerate(rows)
    )
    with connect(settings) as database:
        define_table(database, "llm_traces")
        database.execute(f"INSERT INTO llm_traces FORMAT JSONEachRow\n{lines}")
        figures = figures_of(database, BatchStore.of(settings), SHORT)
    path = folder / "report.html"
    path.write_text(page_of(figures, MADE_AT), encoding="utf-8")
    return path


CONTRADICTORY = [
    {"prompt_tokens": 10, "cached_input_tokens": 11},
    {"prompt_tokens": 10, "cached_input_tokens": 6, "cache_write_tokens": 5},
    {"prompt_tokens": 10, "cached_input_tokens": 2**63, "cache_write_tokens": 2**63},
    {"completion_tokens": 10, "reasoning_tokens": 11},
]


CONSISTENT = [
    {"prompt_tokens": 10, "cached_input_tokens": 10, "completion_tokens": 1},
    {"prompt_tokens": 10, "cached_input_tokens": 6, "cache_write_tokens": 4},
    {"completion_tokens": 10, "reasoning_tokens": 10},
]


def test_calls_without_a_cost_are_told_apart_by_cause(tmp_path: Path, page: Page) -> None:
    priced = {"cost_usd": "1", "input_cost_usd": "1"}
    rows: list[dict[str, Any]] = [
        {"model": "contradictory", **priced},
        *({"model": "contradictory", **counts} for counts in CONTRADICTORY),
        {"model": "priced since", **priced},
        *({"model": "priced since", **counts} for counts in CONSISTENT),
        *({"model": "both", **counts} for counts in (*CONTRADICTORY[:1], *CONSISTENT)),
        {"model": "priced", **priced, **CONTRADICTORY[0]},  # its price knows no cache
    ]
    show(page, report_of(tmp_path, rows))
    found = tables_of(page)["unpriced_models"]
    assert {
        model: [
            int(row[key]) for key in ("calls", "contradictory", "input_tokens", "output_tokens")
        ]
        for model, row in found.items()
    } == {
        "p/contradictory": [4, 4, 30, 10],
        "p/priced since": [3, 0, 20, 11],
        "p/both": [4, 1, 30, 11],
    }
    entries = page.locator("#to-do pre").text_content() or ""
    assert re.findall('model = "(.*)"', entries) == ["both", "priced since"]
    assert "no price helps them" in page.locator("#to-do").inner_text()


def test_calls_without_usage_are_told_apart_from_models_without_a_price(
    tmp_path: Path, page: Page
) -> None:
    unmetered = {"usage_source": "none"}
    rows: list[dict[str, Any]] = [
        *[{"model": "both", **unmetered}] * 3,
        *[{"model": "both", "usage_source": "response", "prompt_tokens": 7}] * 2,
        {"model": "silent", **unmetered},
        {"model": "reported", **unmetered, "cost_usd": "0.5", "cost_basis": "reported"},
        {"model": "failed", **unmetered, "cost_usd": "0", "cost_basis": "list", "is_error": 1},
        {"model": "of version 2", "completion_tokens": 9},
    ]
    show(page, report_of(tmp_path, rows))
    tables = tables_of(page)
    assert tables["unmetered_models"] == {"p/both": {"calls": 3}, "p/silent": {"calls": 1}}
    assert {model: row["calls"] for model, row in tables["unpriced_models"].items()} == {
        "p/both": 2,
        "p/of version 2": 1,
    }
    assert "Calls without usage" in page.locator("#to-do").inner_text()


def test_a_reported_cost_tells_no_price_of_input(tmp_path: Path, page: Page) -> None:
    reported = {
        "model": "m",
        "prompt_tokens": 1000,
        "cached_input_tokens": 400,
        "cost_usd": "9",
        "cost_basis": "reported",
        "input_cost_usd": "5",
        "other_cost_usd": "4",
    }
    show(page, report_of(tmp_path, [cached_call(300, 700), cached_call(100, 0), reported]))
    found = tables_of(page)["cache"]["m"]
    assert found["cached_tokens"] == 800
    assert found["saved_usd"] == 18 * 400 / Decimal(10**6)
    assert "50.0 % of the cached tokens" in page.locator("section").all_inner_texts()[4]


def test_contradictory_calls_alone_need_no_price(tmp_path: Path, page: Page) -> None:
    show(page, report_of(tmp_path, [{"model": "m", **counts} for counts in CONTRADICTORY]))
    assert tables_of(page)["unpriced_models"]["p/m"]["contradictory"] == 4
    assert page.locator("#to-do pre").count() == 0


GARBLED = 10**15


def cached_call(cached: int, uncached: int, model: str = "m") -> dict[str, Any]:
    """Return a call at 20 US dollars a million tokens of input, and 2 where they are cached."""
    return {
        "model": model,
        "prompt_tokens": cached + uncached,
        "cached_input_tokens": cached,
        "cost_usd": f"{(20 * uncached + 2 * cached) / Decimal(10**6):f}",
        "input_cost_usd": f"{(20 * uncached + 2 * cached) / Decimal(10**6):f}",
        "cached_input_cost_usd": f"{2 * cached / Decimal(10**6):f}",
        "cache_write_cost_usd": "0",
    }


@pytest.mark.parametrize(
    "counts",
    [[(1000, 500), (GARBLED, GARBLED), (300, 0)], [(1, 2**64 - 2), (300, 0)]],
    ids=["beside a normal one", "beyond 63 bits"],
)
def test_a_call_of_absurd_counts_spoils_no_saving(
    tmp_path: Path, page: Page, counts: list[tuple[int, int]]
) -> None:
    rows = [*(cached_call(*each) for each in counts), cached_call(700, 700, "other")]
    show(page, report_of(tmp_path, rows))
    found = tables_of(page)["cache"]
    cached = sum(cached for cached, _ in counts)
    assert {model: row["saved_usd"] for model, row in found.items()} == {
        "m": 18 * cached / Decimal(10**6),
        "other": Decimal("0.0126"),
        "": 18 * (cached + 700) / Decimal(10**6),
    }
    assert found["m"]["at_input_price_usd"] == 20 * cached / Decimal(10**6)


def test_amounts_of_many_digits_are_exact(tmp_path: Path, page: Page) -> None:
    amounts = {
        "a": Decimal("12345678901234567.123456789012345678"),
        "b": Decimal("76543210987654321.000000000000000001"),
    }
    rows = [
        {
            **cached_call(1, 1, model),
            **dict.fromkeys(("cost_usd", "input_cost_usd", "cached_input_cost_usd"), f"{amount:f}"),
        }
        for model, amount in amounts.items()
    ]
    total = Decimal("88888889888888888.123456789012345679")
    show(page, report_of(tmp_path, rows))
    assert Decimal(page.evaluate(READ_HEADLINE)["spend_usd"]) == total
    tables = tables_of(page)
    assert {model: row["spend_usd"] for model, row in tables["model"].items()} == amounts
    cached = {model: row["cached_usd"] for model, row in tables["cache"].items()}
    assert cached == {**amounts, "": total}
    assert {model: row["saved_usd"] for model, row in tables["cache"].items()} == {
        model: amount.copy_negate() for model, amount in cached.items()
    }


def test_the_zone_of_the_column_does_not_change_the_figures(tmp_path: Path) -> None:
    """A table that was there before may tell times in a zone that is half an hour off."""
    settings = Settings.from_environment({"LLM_TRACES_STATE": str(tmp_path)})
    store = BatchStore.of(settings)
    with connect(settings) as database:
        [made] = definition_of(database, "llm_traces", exists=False)
        database.execute(made)
        insert(database, CALLS)
        expected = {days: figures_of(database, store, days) for days in (LONG, SHORT)}
        database.execute("RENAME TABLE llm_traces TO theirs")
        database.execute(made.replace("created_at DateTime64(6, 'UTC')", OF_KOLKATA))
        database.execute("INSERT INTO llm_traces SELECT * FROM theirs")
        [zone] = database.rows("SELECT timezoneOf(any(created_at)) AS name FROM llm_traces")
        assert zone["name"] == "Asia/Kolkata"
        for days, figures in expected.items():
            assert figures_of(database, store, days) == figures


def test_nothing_loaded_yet_is_one_line(tmp_path: Path) -> None:
    settings = Settings.from_environment({"LLM_TRACES_STATE": str(tmp_path)})
    with (
        connect(settings) as database,
        pytest.raises(PipelineError, match=r"^ClickHouse has no llm_traces yet: load hours first"),
    ):
        figures_of(database, BatchStore.of(settings), LONG)


def test_a_swap_that_was_cut_is_finished_before_the_figures_are_read(tmp_path: Path) -> None:
    """The state that a kill inside REPLACE leaves behind now and then, made on purpose."""
    settings = Settings.from_environment({"LLM_TRACES_STATE": str(tmp_path)})
    store = BatchStore.of(settings)
    with connect(settings) as database:
        define_table(database, "llm_traces")
        insert(database, CALLS)
        exact = figures_of(database, store, LONG)
        database.execute("CREATE TABLE llm_traces__ready CLONE AS llm_traces")
        insert(database, CALLS)
        [doubled] = database.rows("SELECT count() AS calls FROM llm_traces")
        assert doubled["calls"] == 2 * len(CALLS)
        assert figures_of(database, store, LONG) == exact
        assert not has_table(database, "llm_traces__ready")


def test_a_table_of_an_earlier_version_is_upgraded_first(tmp_path: Path) -> None:
    settings = Settings.from_environment({"LLM_TRACES_STATE": str(tmp_path)})
    old = (Path(__file__).parents[1] / "data" / "llm_traces_schema_0.sql").read_text(
        encoding="utf-8"
    )
    with connect(settings) as database:
        database.execute(old.replace("{table}", "llm_traces"))
        database.execute(
            "INSERT INTO llm_traces (id, created_at, total_tokens) "
            "VALUES ('old', {at:DateTime64(6, 'UTC')}, 7)",
            {"at": LONG.window.start},
        )
        headline = figures_of(database, BatchStore.of(settings), LONG).headline
    assert (headline["calls"], headline["tokens"], headline["unpriced_calls"]) == (1, 7, 1)
