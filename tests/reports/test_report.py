"""The report against independent arithmetic, in a real browser; the asset and the command."""

import json
import os
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from dagster import build_schedule_context, materialize
from playwright.sync_api import Browser, Page, sync_playwright

from llm_trace_pipeline.batches.extract import extract_hour
from llm_trace_pipeline.batches.history import capture_billing
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.cli.report import days_between, write_report
from llm_trace_pipeline.clickhouse.client import Database, connect
from llm_trace_pipeline.clickhouse.tables import define_table, has_table
from llm_trace_pipeline.clickhouse.traces import HourLoader
from llm_trace_pipeline.definitions import defs
from llm_trace_pipeline.defs.assets import usage_report
from llm_trace_pipeline.defs.runs import hours_of_run
from llm_trace_pipeline.defs.stores import Stores
from llm_trace_pipeline.demo.traffic import add_traffic
from llm_trace_pipeline.errors import PipelineError, SettingsError
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.reports.spend import Days, figures_of, page_of
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.source.postgres import Source
from tests.defs.test_dagster_ui import BROWSER_ARGUMENTS
from tests.harness.operational import Operational

FIRST, LAST = date(2026, 3, 1), date(2026, 3, 5)
LONG, SHORT, EMPTY = Days(FIRST, LAST), Days(FIRST, FIRST), Days(date(2025, 1, 1), date(2025, 1, 1))
MADE_AT = datetime(2026, 3, 6, 9, tzinfo=UTC)
HOSTILE = "<script>alert('1')</script>\"'><img src=x onerror=alert(2)> & {{ 7 * 7 }} \\"
PASSWORD = "no-page-shows-this"  # noqa: S105 -- of nobody

# US dollars a token: input, from the cache, written to it, output. The tenth has no price.
RATES: dict[str, Sequence[Decimal]] = {
    f"model-{number}": [Decimal(number) * Decimal(units) / 10**8 for units in (100, 10, 125, 400)]
    for number in range(1, 10)
}
UNPRICED = HOSTILE


@dataclass(frozen=True)
class Call:
    """What the report reads of a call."""

    organization_id: str
    model: str
    created_at: datetime
    is_byok: int
    is_error: int
    error_type: str
    latency_ms: int
    prompt_tokens: int
    completion_tokens: int
    cached_input_tokens: int | None
    cache_write_tokens: int | None
    billing_plan_type: str
    billing_cost_source: str
    billing_customer_id: str
    billing_match: str

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def costs(self) -> dict[str, Decimal | None]:
        """Input, from the cache, written to it, output; None without a price."""
        names = ("input", "cached_input", "cache_write", "output")
        if self.model not in RATES:
            return dict.fromkeys(names)
        cached, written = self.cached_input_tokens or 0, self.cache_write_tokens or 0
        counts = (self.prompt_tokens - cached - written, cached, written, self.completion_tokens)
        plain, read, write, output = (
            count * rate for count, rate in zip(counts, RATES[self.model], strict=True)
        )
        return dict(zip(names, (plain + read + write, read, write, output), strict=True))

    @property
    def cost(self) -> Decimal:
        costs = self.costs
        return (costs["input"] or Decimal(0)) + (costs["output"] or Decimal(0))


def made_calls() -> list[Call]:
    """Return calls of more models and organizations than the report names one by one."""
    rng = random.Random(1)  # noqa: S311 -- the same calls every time
    start = LONG.window.start
    calls = []
    for _ in range(1500):
        number = min(int(rng.expovariate(0.15)), 24)
        model = rng.choice([*RATES, UNPRICED] if rng.random() < 0.3 else ["model-3", "model-7"])
        prompt = rng.randrange(1, 4000)
        cached = rng.choice([None, 0, prompt // 2, prompt]) if model != "model-5" else prompt
        written = None if cached == prompt else rng.choice([None, prompt // 4])
        failed = rng.random() < 0.05
        has_billing = number != 4
        calls.append(
            Call(
                organization_id=HOSTILE if number == 0 else f"org-{number}",
                model=model,
                created_at=start + timedelta(seconds=rng.randrange(5 * 86400)),
                is_byok=int(number in {2, 9}),
                is_error=int(failed),
                error_type=rng.choice(["rate_limit", HOSTILE, ""]) if failed else "",
                latency_ms=rng.choice([0, rng.randrange(1, 9000)]),
                prompt_tokens=prompt,
                completion_tokens=rng.randrange(2000),
                cached_input_tokens=cached,
                cache_write_tokens=written,
                billing_plan_type=("team", "pro", HOSTILE)[number % 3] if has_billing else "",
                billing_cost_source=("quota", "credits")[number % 2] if has_billing else "",
                billing_customer_id=f"cus_{number}<b>" if has_billing else "",
                billing_match="as_of" if has_billing else "none",
            )
        )
    return calls


CALLS = made_calls()


def insert(database: Database, calls: Sequence[Call]) -> None:
    """Put calls into the table, as a load would have."""
    rows = [
        {
            **asdict(call),
            "id": str(number),
            "provider": "some-provider",
            "total_tokens": call.total_tokens,
            "created_at": f"{call.created_at:%Y-%m-%d %H:%M:%S}",
            **{
                f"{name}_cost_usd": None if cost is None else f"{cost:f}"
                for name, cost in call.costs.items()
            },
            "cost_usd": f"{call.cost:f}" if call.model in RATES else None,
            "price_version": "prices <1>" if call.model in RATES else "",
        }
        for number, call in enumerate(calls)
    ]
    lines = "\n".join(json.dumps(row) for row in rows)
    database.execute(f"INSERT INTO llm_traces FORMAT JSONEachRow\n{lines}")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a deployment whose ClickHouse holds the calls."""
    folder = tmp_path_factory.mktemp("report")
    with connect(Settings.from_environment({"LLM_TRACES_STATE": str(folder)})) as database:
        define_table(database, "llm_traces")
        insert(database, CALLS)
    return folder


@pytest.fixture(scope="module")
def pages(state: Path) -> dict[Days, Path]:
    """The report of each range of days, as a file."""
    environment = {"LLM_TRACES_STATE": str(state), "CLICKHOUSE_PASSWORD": PASSWORD}
    settings = Settings.from_environment(environment)
    store = BatchStore.of(settings)
    with connect(settings) as database:
        figures = [figures_of(database, store, days) for days in (LONG, SHORT, EMPTY)]
    paths = {}
    for each in figures:
        paths[each.days] = state / f"{each.days.first}_{each.days.last}.html"
        paths[each.days].write_text(page_of(each, MADE_AT), encoding="utf-8")
    return paths


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=BROWSER_ARGUMENTS
        )
        yield browser
        browser.close()


@pytest.fixture
def noise() -> list[str]:
    """What the page logged, asked or requested beside itself."""
    return []


@pytest.fixture
def page(browser: Browser, noise: list[str]) -> Iterator[Page]:
    """A window that notes whatever a quiet page does not do."""
    page = browser.new_page(viewport={"width": 1180, "height": 1600})
    page.on("console", lambda message: noise.append(message.text))
    page.on("pageerror", lambda error: noise.append(str(error)))
    page.on("dialog", lambda dialog: noise.append(dialog.message))
    page.on("request", lambda request: noise.append(request.url))
    yield page
    page.close()


def show(page: Page, path: Path) -> None:
    page.goto(path.as_uri())


READ = """() => Object.fromEntries([...document.querySelectorAll("[id]")].map(part => [part.id,
    Object.fromEntries([...part.querySelectorAll("tr[data-row]")].map(row => [row.dataset.row,
        Object.fromEntries([...row.querySelectorAll("[data-key]")]
            .map(cell => [cell.dataset.key, cell.dataset.value]))]))]))"""
READ_HEADLINE = """() => Object.fromEntries([...document.querySelectorAll("#headline [data-key]")]
    .map(cell => [cell.dataset.key, cell.dataset.value]))"""
READ_SERIES = """id => [...document.querySelectorAll(`#${id}-over-time tr[data-row]`)].map(row =>
    [row.dataset.row, [...row.querySelectorAll("[data-key]")].map(cell => cell.dataset.value)])"""

Table = dict[str, dict[str, Decimal]]


def tables_of(page: Page) -> dict[str, Table]:
    """Return the numbers of the page's tables, by table, row and column."""
    return {
        table: {
            row: {key: Decimal(value) for key, value in cells.items()}
            for row, cells in rows.items()
        }
        for table, rows in page.evaluate(READ).items()
    }


def summed(calls: Sequence[Call]) -> dict[str, Decimal]:
    """Return what tables of spend say of some calls."""
    return {
        "calls": Decimal(len(calls)),
        "tokens": Decimal(sum(call.total_tokens for call in calls)),
        "spend_usd": sum((call.cost for call in calls if not call.is_byok), Decimal(0)),
        "byok_usd": sum((call.cost for call in calls if call.is_byok), Decimal(0)),
    }


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


@pytest.mark.parametrize("days", [LONG, SHORT, EMPTY], ids=["days", "hours", "empty"])
def test_the_page_is_quiet_and_shows_texts_as_texts(
    pages: dict[Days, Path], page: Page, noise: list[str], days: Days
) -> None:
    show(page, pages[days])
    page.wait_for_load_state("networkidle")
    assert noise == [pages[days].as_uri()]
    assert page.evaluate("document.scripts.length + document.images.length") == 0
    text = pages[days].read_text(encoding="utf-8")
    assert PASSWORD not in text
    assert len(text) < 300_000
    if days is not EMPTY:
        assert page.get_by_role("rowheader", name=HOSTILE).count() > 1
        assert page.locator("figure svg").count() == 2


def test_days_without_calls_say_so(pages: dict[Days, Path], page: Page) -> None:
    show(page, pages[EMPTY])
    assert "There are no calls in these days" in page.locator("#empty").inner_text()
    assert page.locator("table, svg").count() == 0


def test_the_page_follows_light_dark_and_print(pages: dict[Days, Path], page: Page) -> None:
    def colours() -> list[str]:
        found: list[str] = page.evaluate(
            """() => [getComputedStyle(document.body).backgroundColor,
                getComputedStyle(document.querySelector("figure svg .mark-rect path")).fill,
                getComputedStyle(document.querySelector("details")).display]"""
        )
        return found

    show(page, pages[LONG])
    page.emulate_media(color_scheme="light")
    light = colours()
    page.emulate_media(color_scheme="dark")
    dark = colours()
    page.emulate_media(media="print", color_scheme="dark")
    assert light == ["rgb(255, 255, 255)", light[1], "block"]
    assert dark[0] != light[0]
    assert dark[1] != light[1]
    assert colours() == [*light[:2], "none"]  # on paper as in the light
    assert re.findall(rb"/Type /Page\b", page.pdf(format="A4"))


def test_no_column_is_wider_than_the_page(pages: dict[Days, Path], page: Page) -> None:
    show(page, pages[LONG])
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) == 1180
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate(width) == 390


@pytest.mark.parametrize(
    ("first", "last", "days"),
    [
        ("", "", ("2026-02-27", "2026-03-06")),
        ("2026-03-01", "", ("2026-03-01", "2026-03-06")),
        ("", "2026-03-01", ("2026-02-22", "2026-03-01")),
        ("2026-03-01", "2026-03-01", ("2026-03-01", "2026-03-01")),
    ],
    ids=["the last seven days and today", "until today", "seven days before", "a day"],
)
def test_days_that_a_command_names(first: str, last: str, days: tuple[str, str]) -> None:
    found = days_between(first, last, MADE_AT.date())
    assert (str(found.first), str(found.last)) == days


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        ("2026-03-01-00:00", "", "FROM, TO: must be days such as 2026-03-01"),
        ("2026-03-02", "2026-03-01", "TO: 2026-03-01 lies before FROM: 2026-03-02"),
    ],
    ids=["an hour", "backwards"],
)
def test_wrong_days_are_one_line(first: str, last: str, message: str) -> None:
    with pytest.raises(SettingsError, match=f"^{message}[^\n]*$"):
        days_between(first, last, MADE_AT.date())


def test_the_command_writes_the_page_and_says_where(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLM_TRACES_STATE", str(state))
    write_report(str(FIRST), str(LAST), "")
    path = state / "reports" / f"{FIRST}_{LAST}.html"
    assert capsys.readouterr().out == f"{path}\n"
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    with pytest.raises(PipelineError, match=r"^OUT: "):
        write_report(str(FIRST), str(LAST), f"{path}/elsewhere")


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
    old = (Path(__file__).parents[1] / "data" / "llm_traces_schema_1.sql").read_text(
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


def test_the_asset_keeps_the_report_of_a_day(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_TRACES_STATE", str(state))
    result = materialize(
        [usage_report],
        partition_key=str(FIRST),
        resources={"stores": Stores()},
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )
    [event] = result.get_asset_materialization_events()
    metadata: dict[str, Any] = {
        name: value.value for name, value in event.materialization.metadata.items()
    }
    calls = [call for call in CALLS if call.created_at.date() == FIRST]
    expected = summed(calls)
    assert Decimal(metadata["spend in USD"]) == expected["spend_usd"]
    assert Decimal(metadata["by own keys in USD"]) == expected["byok_usd"]
    assert (metadata["calls"], metadata["tokens"]) == (expected["calls"], expected["tokens"])
    page = state / "batches" / "reports" / f"{FIRST}.html"
    assert metadata["page"] == str(page)
    assert "LLM usage, 2026-03-01 to 2026-03-01" in page.read_text(encoding="utf-8")


def test_the_schedule_reports_on_the_day_before() -> None:
    tick = datetime(2026, 3, 6, 1, 30, tzinfo=UTC)
    schedule = defs.resolve_schedule_def("daily_usage_report_schedule")
    context = build_schedule_context(
        scheduled_execution_time=tick, repository_def=defs.get_repository_def()
    )
    [request] = schedule.evaluate_tick(context).run_requests or []
    assert request.partition_key == "2026-03-05"
    assert schedule.cron_schedule == "30 1 * * *"
    assert hours_of_run({"dagster/partition": "2026-03-05"}) == []  # it loads none


@pytest.mark.skipif("REPORT_PICTURE" not in os.environ, reason="make report-picture takes it")
def test_picture(
    operational: Operational,
    source: Source,
    store: BatchStore,
    database: Database,
    page: Page,
    tmp_path: Path,
) -> None:
    start = LONG.window.start
    add_traffic(operational.url, start, start + timedelta(days=7))
    history = capture_billing(source, store.files).history
    loader = HourLoader(database, store)
    for number in range(7 * 24):
        extract_hour(source, store, history, start + number * HOUR)
    for day in range(7):
        hours = [start + timedelta(days=day) + number * HOUR for number in range(24)]
        list(loader.load(hours, frozenset()))
    path = tmp_path / "report.html"
    week = Days(FIRST, FIRST + timedelta(days=6))
    figures = figures_of(database, store, week)
    path.write_text(page_of(figures, datetime.now(UTC)), encoding="utf-8")
    show(page, path)
    picture = Path(os.environ["REPORT_PICTURE"])
    page.screenshot(path=picture, clip={"x": 0, "y": 0, "width": 1180, "height": 1500})
