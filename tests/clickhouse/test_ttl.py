"""A table with a TTL of its own: what it deletes is past the retention."""

from datetime import UTC, datetime, timedelta

import pytest

from llm_trace_pipeline.clickhouse.tables import define_table
from llm_trace_pipeline.clickhouse.ttl import kept_by_ttl, ttl_that_deletes
from llm_trace_pipeline.hours import BEGINNING, HOUR
from llm_trace_pipeline.upkeep.retention import kept_since
from tests.harness.rows import TABLE
from tests.harness.warehouse import Warehouse

ROLLUP = "llm_usage_hourly"


def this_hour() -> datetime:
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


@pytest.mark.parametrize(
    ("ttl", "kept"),
    [
        ("toDateTime(created_at) + toIntervalDay(90)", timedelta(days=90)),
        ("created_at + INTERVAL 36 HOUR DELETE", timedelta(hours=36)),
        (
            "created_at TO DISK 'default', created_at + INTERVAL 9 WEEK WHERE id = ')'",
            timedelta(weeks=9),
        ),
        ("toDateTime(created_at) + toIntervalDay(9) RECOMPRESS CODEC(ZSTD(9))", None),
        ("toDateTime(created_at) + toIntervalDay(if(is_byok = 1, 9, 8))", None),
    ],
)
def test_the_first_hour_that_a_ttl_keeps(
    warehouse: Warehouse, ttl: str, kept: timedelta | None
) -> None:
    define_table(warehouse.database, TABLE)
    warehouse.database.execute(f"ALTER TABLE {TABLE} MODIFY TTL {ttl}")
    before = this_hour()
    found = kept_by_ttl(warehouse.database, TABLE, "created_at")
    expected = (BEGINNING,) if kept is None else (before - kept + HOUR, this_hour() - kept + HOUR)
    assert found in expected


def test_the_line_is_the_latest_of_retention_and_ttls(warehouse: Warehouse) -> None:
    database, now = warehouse.database, this_hour()
    for table in (TABLE, ROLLUP):
        define_table(database, table)
    database.execute(f"ALTER TABLE {TABLE} MODIFY TTL toDateTime(created_at) + INTERVAL 90 DAY")
    database.execute(f"ALTER TABLE {ROLLUP} MODIFY TTL hour + INTERVAL 30 DAY")

    def days_kept(days: int | None, *tables: str) -> int:
        return round((now - kept_since(database, warehouse.store, days, now, *tables)).days)

    assert days_kept(None, TABLE) in (89, 90)
    assert days_kept(None, TABLE, ROLLUP) in (29, 30)
    assert days_kept(7, TABLE) == 7


def test_an_engine_without_ttl_deletes_nothing() -> None:
    assert ttl_that_deletes("MergeTree ORDER BY id SETTINGS index_granularity = 8192") == []
