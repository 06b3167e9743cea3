"""Counts whose sum exceeds 64 bits: every total of them is exact, from the batch to the invoice."""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from llm_trace_pipeline.clickhouse.rollup import compare_rollup, roll_up
from llm_trace_pipeline.clickhouse.tables import ROLLUP, VIEWS
from llm_trace_pipeline.hours import HOUR, Window
from llm_trace_pipeline.reports.invoice import write_invoice
from llm_trace_pipeline.reports.spend import Days, figures_of, page_of
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.sql import read_sql, render
from llm_trace_pipeline.upkeep.reconcile import compare_loaded
from tests.harness.http_server import USERS, running, settings_of_server
from tests.harness.rows import MIDNIGHT, TABLE, Row, make_rows
from tests.harness.warehouse import Warehouse, make_database

PLAIN, ODD = 6, 6  # calls
TOKENS = {
    "prompt_tokens": 2**64 - 1,
    "completion_tokens": 2**63,
    "total_tokens": 2**64 - 1,
    "cached_input_tokens": 2**63,
    "cache_write_tokens": 2**62,
    "reasoning_tokens": 2**62,
}
COUNTS = {**TOKENS, "request_size_bytes": 2**63, "response_size_bytes": 2**62}
SUMS = {name: (PLAIN + ODD) * count for name, count in COUNTS.items()}
ODD_SUMS = {name: ODD * count for name, count in COUNTS.items()}
COMMON: Row = {
    **COUNTS,
    "organization_id": "org",
    "project_id": "",
    "agent_id": "agent",
    "model": "m",
    "provider": "p",
    "is_byok": 0,
    "is_error": 0,
    "error_type": "",
    "usage_source": "response",
    "billing_customer_id": "cus",
    "billing_cost_source": "quota",
    "price_version": "prices",
    "cost_usd": Decimal(5),  # with a fee, which a batch of version 2 names nowhere
    "input_cost_usd": Decimal(2),
    "cached_input_cost_usd": Decimal(1),
    "cache_write_cost_usd": Decimal(0),
    "output_cost_usd": Decimal(2),
    "other_cost_usd": None,
}
FAILED: Row = {
    **dict.fromkeys((name for name in COMMON if name.endswith("cost_usd")), None),
    "price_version": "",
    "is_error": 1,
    "error_type": "timeout",
    "billing_match": "none",
}
DAY = Days(MIDNIGHT.date(), MIDNIGHT.date())
WINDOW = Window(MIDNIGHT, MIDNIGHT + HOUR).parameters


@pytest.fixture(scope="module", params=["embedded", "http"])
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Warehouse]:
    """An hour of such rows, loaded and rolled up, on the embedded engine or over HTTP."""
    folder = tmp_path_factory.mktemp("large_counts")

    def warehouse(settings: Settings) -> Iterator[Warehouse]:
        make_database(settings)
        with closing(Warehouse(settings)) as opened:
            rows = [row | COMMON for row in make_rows(MIDNIGHT, PLAIN + ODD)]
            opened.load(MIDNIGHT, [*rows[:PLAIN], *(row | FAILED for row in rows[PLAIN:])])
            roll_up(opened.database, opened.store, [MIDNIGHT])
            yield opened

    if request.param == "embedded":
        yield from warehouse(Settings.from_environment({"LLM_TRACES_STATE": str(folder)}))
        return
    with running(folder / "server", *USERS) as server:
        yield from warehouse(settings_of_server(folder, server.port))


def test_the_batch_the_table_and_the_rollup_say_the_sums(loaded: Warehouse) -> None:
    manifest = loaded.store.manifest(MIDNIGHT)
    assert manifest
    assert manifest.tokens == {name: SUMS[name] for name in TOKENS}
    assert manifest.payload_bytes == SUMS["request_size_bytes"] + SUMS["response_size_bytes"]
    for table in (ROLLUP, *VIEWS):
        sums = ", ".join(f"sum({name}) AS {name}" for name in COUNTS)
        assert loaded.database.rows(f"SELECT {sums} FROM {table}") == [SUMS]


def test_nothing_differs_and_an_hour_loaded_again_is_left_alone(loaded: Warehouse) -> None:
    manifest = loaded.store.manifest(MIDNIGHT)
    assert manifest
    assert compare_loaded(loaded.database, loaded.store, [manifest]) == {}
    assert compare_rollup(loaded.database, loaded.store, [MIDNIGHT]) == {}
    assert not loaded.load_batch(manifest).was_written
    [rolled] = roll_up(loaded.database, loaded.store, [MIDNIGHT])
    assert not rolled.was_written


def test_the_report_says_the_sums(loaded: Warehouse) -> None:
    figures = figures_of(loaded.database, loaded.store, DAY)
    headline = figures.headline
    assert [headline[name] for name in ("input_tokens", "output_tokens", "tokens")] == [
        SUMS[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    ]
    for name in ("organizations", "model", "plan", "cost_source"):
        assert [row["tokens"] for row in figures.tables[name]] == [SUMS["total_tokens"]], name
    [cache] = figures.tables["cache"]
    assert cache["cached_tokens"] == SUMS["cached_input_tokens"]
    assert cache["underived_tokens"] == ODD_SUMS["cached_input_tokens"]
    for name in ("errors", "organizations_without_billing"):
        assert [row["tokens"] for row in figures.tables[name]] == [ODD_SUMS["total_tokens"]], name
    [unpriced] = figures.tables["unpriced_models"]
    assert [unpriced[name] for name in ("input_tokens", "output_tokens")] == [
        ODD_SUMS[name] for name in ("prompt_tokens", "completion_tokens")
    ]
    page = page_of(figures, MIDNIGHT)
    assert f'data-key="tokens" data-value="{SUMS["total_tokens"]}"' in page


def test_what_is_printed_after_a_load_says_the_sums(loaded: Warehouse) -> None:
    [plan] = loaded.database.rows(render("report/by_plan.sql", traces=TABLE), WINDOW)
    assert [plan[name] for name in ("prompt", "completion", "cached", "cache_written")] == [
        SUMS[name] for name in TOKENS if name not in ("total_tokens", "reasoning_tokens")
    ]
    largest = render("report/largest_organizations.sql", traces=TABLE)
    [organization] = loaded.database.rows(largest, WINDOW)
    assert organization["tokens"] == SUMS["total_tokens"]


def test_the_query_of_usage_says_the_sums(loaded: Warehouse) -> None:
    [usage] = loaded.database.rows(
        read_sql("examples/usage.sql"),
        {**WINDOW, "organization_id": "org", "group_by": "model"},
    )
    expected: dict[str, Any] = {name: SUMS[name] for name in list(TOKENS)[:3]}
    expected |= {
        "total_request_bytes": SUMS["request_size_bytes"],
        "total_response_bytes": SUMS["response_size_bytes"],
    }
    assert {name: usage[name] for name in expected} == expected


def test_the_invoice_says_the_sums(loaded: Warehouse, tmp_path: Path) -> None:
    loaded.close()
    try:
        invoice = write_invoice(
            loaded.settings, "2026-03", tmp_path, first_hour=MIDNIGHT, now=MIDNIGHT + HOUR
        )
    finally:
        loaded.reopen()
    assert invoice.holes == {}
    cached, written = SUMS["cached_input_tokens"], SUMS["cache_write_tokens"]
    quantities = {
        "llm_calls": PLAIN + ODD,
        "llm_uncached_input_tokens": SUMS["prompt_tokens"] - cached - written,
        "llm_cached_input_tokens": cached,
        "llm_cache_write_tokens": written,
        "llm_output_tokens": SUMS["completion_tokens"],
    }
    assert all(quantity > 2**64 for meter, quantity in quantities.items() if meter != "llm_calls")
    items = pq.read_table(tmp_path / "2026-03-invoice-items.parquet").to_pylist()
    of_items: Counter[str] = Counter()
    for item in items:
        of_items[item["meter"]] += item["quantity"]
    assert of_items == {**quantities, "llm_other_costs": PLAIN}
    events = pq.read_table(tmp_path / "2026-03-meter-events.parquet").to_pylist()
    assert {event["event_name"]: event["payload_value"] for event in events} == quantities
