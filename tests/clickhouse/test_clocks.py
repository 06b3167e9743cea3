"""Where clocks go back: an hour whose local time comes twice is loaded like any other.

Python never equates a time within such an hour with a time of another zone. The engine takes its
zone from TZ when its process starts, so that every zone has a process.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import pytest

from llm_trace_pipeline.clickhouse.client import Database, connect
from llm_trace_pipeline.clickhouse.rollup import compare_rollup, roll_up
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.reports.invoice import write_invoice
from llm_trace_pipeline.reports.spend import Days, figures_of
from llm_trace_pipeline.settings import Settings
from tests.harness.http_server import USERS, running, settings_of_server
from tests.harness.warehouse import fresh_warehouse, make_database

# The clocks go back within the first hour, or at its end.
ZONES = {
    "Europe/Berlin": datetime(2025, 10, 26, 0, tzinfo=UTC),
    "America/New_York": datetime(2025, 11, 2, 5, tzinfo=UTC),
    "Australia/Lord_Howe": datetime(2025, 4, 5, 14, tzinfo=UTC),  # by half an hour
}


@pytest.mark.parametrize("zone", ZONES)
def test_hours_whose_local_time_comes_twice_are_loaded_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    hours = [ZONES[zone] + number * HOUR for number in (-1, 0, 1, 2)]
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        process.submit(load_and_compare, tmp_path, hours).result()


def load_and_compare(folder: Path, hours: Sequence[datetime]) -> None:
    """Load hours, load them again, and ask everything that compares hours or has them as keys."""
    with fresh_warehouse(folder) as warehouse:
        for version in (1, 2):
            for hour in hours:
                warehouse.publish(hour, 9, version)
            assert all(result.was_written for result in warehouse.load_hours(*hours))
            warehouse.check()
        assert not any(result.was_written for result in warehouse.load_hours(*hours))
        database, store = warehouse.database, warehouse.store
        for was_written in (True, False):
            rolled_up = roll_up(database, store, hours)
            assert [result.differences for result in rolled_up] == [()] * len(hours)
            assert {result.was_written for result in rolled_up} == {was_written}
        assert compare_rollup(database, store, hours) == {}
        day = hours[0].date()
        days = Days(day, hours[-1].date())
        report = figures_of(database, store, days)
        assert report.headline["hours"] == len(hours)
        assert {row["bucket"] for row in report.over_time["plan"]} == set(hours)
        warehouse.close()  # one client holds the engine at a time
        invoice = write_invoice(
            warehouse.settings,
            f"{day:%Y-%m}",
            folder / "invoice",
            first_hour=hours[0],
            now=hours[-1] + HOUR,
        )
        assert invoice.holes == {}
        warehouse.reopen()
        warehouse.database.execute(
            "DELETE FROM llm_traces WHERE created_at >= {at:DateTime64(6, 'UTC')}",
            {"at": hours[1]},
        )
        loaded = warehouse.load_batch(warehouse.publish(hours[0], 9, 3))
        same_day = tuple(hour for hour in hours[1:] if hour.date() == day)
        assert loaded.repaired_hours == same_day


# What the client hands out


@pytest.fixture(params=["embedded", "over HTTP"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """ClickHouse by either transport."""
    if request.param == "embedded":
        with connect(Settings.from_environment({"LLM_TRACES_STATE": str(tmp_path)})) as database:
            yield database
        return
    with running(tmp_path / "server", *USERS) as server:
        settings = settings_of_server(tmp_path, server.port)
        make_database(settings)
        with connect(settings) as database:
            yield database


TIMES = """
SELECT
    toDateTime64(1761436800 + number * 1800, 6, 'Europe/Berlin') AS of_berlin,
    toDateTime(of_berlin) AS of_server,
    toDateTime(of_berlin, 'UTC') AS of_utc,
    toNullable(of_berlin) AS nullable,
    [of_berlin] AS listed,
    tuple(number, of_berlin) AS paired,
    map('at', of_berlin) AS mapped
FROM numbers(4)
ORDER BY number
"""


def test_every_time_comes_in_utc(anywhere: Database) -> None:
    expected = [ZONES["Europe/Berlin"] + number * HOUR / 2 for number in range(4)]
    for rows in (anywhere.rows(TIMES), list(chain.from_iterable(anywhere.row_blocks(TIMES)))):
        assert [tuple(row.values()) for row in rows] == [
            (at, at, at, at, [at], (number, at), {"at": at}) for number, at in enumerate(expected)
        ]
        assert {row[name].tzinfo for row in rows for name in ("of_berlin", "of_server")} == {UTC}
