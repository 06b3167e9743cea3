"""What runs by itself, and which hour it asks for."""

from datetime import UTC, datetime, timedelta

import pytest
from dagster import RunRequest, build_schedule_context

from llm_trace_pipeline.definitions import defs
from llm_trace_pipeline.defs.partitions import HOURLY
from llm_trace_pipeline.hours import key_of

FIRST = datetime.fromtimestamp(HOURLY.start.timestamp(), UTC)
SCHEDULE = defs.resolve_schedule_def("hourly_llm_traces_schedule")


def requested_hours(tick: datetime) -> list[str | None]:
    """Return the hours that a tick of the schedule asks for."""
    context = build_schedule_context(
        scheduled_execution_time=tick, repository_def=defs.get_repository_def()
    )
    found = SCHEDULE.evaluate_tick(context)
    assert all(isinstance(request, RunRequest) for request in found.run_requests or ())
    return [request.partition_key for request in found.run_requests or ()]


@pytest.mark.parametrize("hours", [1, 2, 24], ids=lambda hours: f"{hours} hours after the first")
def test_a_tick_asks_for_exactly_the_hour_that_closed(hours: int) -> None:
    tick = FIRST + timedelta(hours=hours, minutes=10)
    closed = FIRST + timedelta(hours=hours - 1)
    assert requested_hours(tick) == [key_of(closed)]


def test_nothing_is_asked_for_before_the_first_hour_closed() -> None:
    assert requested_hours(FIRST + timedelta(minutes=10)) == []


def test_the_schedule_ticks_ten_minutes_past_every_hour() -> None:
    assert SCHEDULE.cron_schedule == "10 * * * *"
    assert SCHEDULE.execution_timezone == "UTC"
