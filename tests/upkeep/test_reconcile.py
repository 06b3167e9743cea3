"""Which hours are compared with their source."""

from datetime import UTC, datetime, timedelta

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.hours import HOUR, floor
from llm_trace_pipeline.upkeep.reconcile import hours_to_reconcile

H0 = floor(datetime.now(UTC)) - 12 * HOUR
MINUTE = timedelta(minutes=1)


def test_what_is_compared_ends_with_the_hour_that_closed(store: BatchStore) -> None:
    now = H0 + 30 * MINUTE
    assert hours_to_reconcile(store, H0 - 5 * HOUR, 1, now) == [H0 - n * HOUR for n in (5, 4, 3, 2)]
    assert len(hours_to_reconcile(store, H0 - timedelta(days=9), 2, now)) == 47
    assert hours_to_reconcile(store, H0 + HOUR, 1, now) == []
