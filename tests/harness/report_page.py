"""A page of the report, read in a browser."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from playwright.sync_api import Page

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.reports.spend import Days, figures_of, page_of
from llm_trace_pipeline.settings import Settings
from tests.harness.calls import EMPTY, LONG, SHORT

MADE_AT = datetime(2026, 3, 6, 9, tzinfo=UTC)


PASSWORD = "no-page-shows-this"  # noqa: S105 -- of nobody


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


def write_pages(folder: Path) -> dict[Days, Path]:
    """Write the report of each range of days over the calls that a state folder holds."""
    environment = {"LLM_TRACES_STATE": str(folder), "CLICKHOUSE_PASSWORD": PASSWORD}
    settings = Settings.from_environment(environment)
    with connect(settings) as database:
        store = BatchStore.of(settings)
        figures = [figures_of(database, store, days) for days in (LONG, SHORT, EMPTY)]
    paths = {}
    for each in figures:
        paths[each.days] = folder / f"{each.days.first}_{each.days.last}.html"
        paths[each.days].write_text(page_of(each, MADE_AT), encoding="utf-8")
    return paths
