"""The page of the report in a browser: quiet, readable and the same on paper."""

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Page

from llm_trace_pipeline.clickhouse.cluster import loader_of
from llm_trace_pipeline.demo.traffic import add_traffic
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.reports.spend import Days, figures_of, page_of
from tests.harness.calls import EMPTY, FIRST, HOSTILE, LONG, SHORT
from tests.harness.operational import Operational
from tests.harness.pipeline import Pipeline
from tests.harness.report_page import PASSWORD, show


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


@pytest.mark.skipif("REPORT_PICTURE" not in os.environ, reason="make report-picture takes it")
def test_picture(
    operational: Operational,
    pipeline: Pipeline,
    page: Page,
    tmp_path: Path,
) -> None:
    start = LONG.window.start
    add_traffic(operational.url, start, start + timedelta(days=7))
    for number in range(7 * 24):
        pipeline.extract(start + number * HOUR)
    for day in range(7):
        hours = [start + timedelta(days=day) + number * HOUR for number in range(24)]
        loader_of(pipeline.database, pipeline.store).load(hours)
    path = tmp_path / "report.html"
    week = Days(FIRST, FIRST + timedelta(days=6))
    figures = figures_of(pipeline.database, pipeline.store, week)
    path.write_text(page_of(figures, datetime.now(UTC)), encoding="utf-8")
    show(page, path)
    picture = Path(os.environ["REPORT_PICTURE"])
    page.screenshot(path=picture, clip={"x": 0, "y": 0, "width": 1180, "height": 1500})
