"""A year of hourly partitions, all of them materialized: ``python -m bench.year``.

Measured is what a person and the daemon wait for: the asset's page in a browser, the ticks of the
schedule and of the sensor by the code server, and the launch of a backfill of the whole year.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

from dagster import AssetKey, AssetMaterialization, DagsterInstance
from playwright.sync_api import Browser, sync_playwright
from sqlalchemy import Engine, event

from bench.__main__ import ROOT, machine, say
from bench.backfill import ASSETS, fresh_state, launch_backfill, query, serving
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.hours import HOUR, Window, floor, key_of
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.upkeep.reconcile import Reconciliation, record_reconciliation

RESULTS = Path(__file__).with_name("year.json")
HOURS = 365 * 24
DRIFTED = 7 * 24
RUNS = 5
LIMITS = {"page": 3.0, "tick": 2.0}

_TICKS = """ { __typename
    ... on DryRunInstigationTick { evaluationResult {
        runRequests { runKey } skipReason error { message } } }
    ... on PythonError { message } } }"""
_SENSOR = (
    "mutation ($of: SensorSelector!) { tick: sensorDryRun(selectorData: $of, cursor: null)" + _TICKS
)
_SCHEDULE = (
    "mutation ($of: ScheduleSelector!, $at: Float!) "
    "{ tick: scheduleDryRun(selectorData: $of, timestamp: $at)" + _TICKS
)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m bench.year")
    parser.add_argument("--hours", type=int, default=HOURS, help="a trial: fewer, no file")
    count = parser.parse_args().hours
    now = floor(datetime.now(UTC))
    hours = Window(now - count * HOUR, now).hours
    environment = fresh_state("year") | {
        # Nothing is loaded here; without a URL this would be the demo, with traffic for a year.
        "OPERATIONAL_DATABASE_URL": "postgresql://127.0.0.1:1/none?connect_timeout=1",
        "LLM_TRACES_START": key_of(hours[0]),
    }
    os.environ.update(environment)
    # 13 ms an event instead of 31, and there are two for every hour.
    event.listen(Engine, "connect", lambda found, _: found.execute("PRAGMA synchronous = OFF"))
    say(f"recording {count:,} hours of each asset as materialized")
    with DagsterInstance.get() as instance:
        for asset in ASSETS:
            for hour in hours:
                instance.report_runless_asset_event(
                    AssetMaterialization(
                        AssetKey(asset), partition=key_of(hour), metadata={"rows": 1_000}
                    )
                )
    with serving(environment) as port:
        results = {"machine": machine(), "hours": count, **_measure(port, hours)}
    for name, figure in results.items():
        say(f"  {name:34}{figure}")
    if count == HOURS:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        say(f"written to {RESULTS.relative_to(ROOT)}")


def _measure(port: int, hours: list[datetime]) -> dict[str, Any]:
    newest = key_of(hours[-1])
    results: dict[str, Any] = {"limits_s": LIMITS}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--headless=new", "--no-sandbox"]
        )
        for view in ("overview", "partitions"):
            address = f"http://127.0.0.1:{port}/assets/llm_traces?view={view}"
            pages = [_page_seconds(browser, address, newest) for _ in range(RUNS)]
            results[f"page_{view}_first_s"] = pages[0]
            results[f"page_{view}_median_s"] = round(median(pages), 2)
        browser.close()
    drifted = tuple(hours[-DRIFTED:])
    told: tuple[str, ...] = ("source rows 1001, not 1000",)
    record_reconciliation(
        BatchStore.of(Settings.from_environment()).files,
        Reconciliation(
            id=uuid4().hex,
            at=datetime.now(UTC),
            drifted=drifted,
            loaded=drifted,
            differences=dict.fromkeys(drifted, told),
        ),
    )
    sensor = _selector("sensorName", "changed_hours_sensor")
    schedule = _selector("scheduleName", "hourly_llm_traces_schedule")
    at = hours[-1].timestamp() + 3600 + 600  # ten past this hour
    ticks: dict[str, Callable[[], dict[str, Any]]] = {
        "sensor": lambda: query(port, _SENSOR, of=sensor)["tick"],
        "schedule": lambda: query(port, _SCHEDULE, of=schedule, at=at)["tick"],
    }
    for name, tick in ticks.items():
        results |= _tick(name, tick)
    started = time.perf_counter()
    launch_backfill(port, hours)
    results["launch_backfill_s"] = round(time.perf_counter() - started, 2)
    # Its hours are left to it: no run is to be requested.
    results |= _tick("sensor_beside_backfill", ticks["sensor"])
    return results


def _page_seconds(browser: Browser, address: str, newest: str) -> float:
    """Return how long it takes until a page shows its partitions; nothing is cached before."""
    page = browser.new_page(viewport={"width": 1400, "height": 800})
    started = time.perf_counter()
    page.goto(address, wait_until="commit")
    page.get_by_text(newest, exact=True).first.wait_for(timeout=120_000)
    seconds = time.perf_counter() - started
    page.close()
    return round(seconds, 2)


def _tick(name: str, tick: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the slowest of some ticks, and how many runs each requests."""
    seconds: list[float] = []
    for _ in range(RUNS):
        started = time.perf_counter()
        found = tick()
        seconds.append(time.perf_counter() - started)
        if "evaluationResult" not in found or found["evaluationResult"]["error"]:
            raise SystemExit(f"{name}: {found}")
    requests = found["evaluationResult"]["runRequests"] or ()
    return {f"{name}_tick_max_s": round(max(seconds), 2), f"{name}_requests": len(requests)}


def _selector(kind: str, name: str) -> dict[str, str]:
    location = {"repositoryName": "__repository__", "repositoryLocationName": "llm_traces"}
    return location | {kind: name}


if __name__ == "__main__":
    main()
