"""Which hours are compared with their source, and what becomes of one that cannot be."""

from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llm_trace_pipeline.batches.history import read_history
from llm_trace_pipeline.batches.manifest import Manifest
from llm_trace_pipeline.batches.rules import Rules
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.defs.checks import check_reconciliation
from llm_trace_pipeline.hours import HOUR, floor, key_of
from llm_trace_pipeline.upkeep import reconcile as module
from llm_trace_pipeline.upkeep.reconcile import hours_to_reconcile, reconcile
from tests.harness.operational import Operational, trace
from tests.harness.pipeline import Pipeline
from tests.harness.rows import T0

H0 = floor(datetime.now(UTC)) - 12 * HOUR
MINUTE = timedelta(minutes=1)


def test_what_is_compared_ends_with_the_hour_that_closed(store: BatchStore) -> None:
    now = H0 + 30 * MINUTE
    assert hours_to_reconcile(store, H0 - 5 * HOUR, 1, now) == [H0 - n * HOUR for n in (5, 4, 3, 2)]
    assert len(hours_to_reconcile(store, H0 - timedelta(days=9), 2, now)) == 47
    assert hours_to_reconcile(store, H0 + HOUR, 1, now) == []


def test_hours_that_the_ttl_of_the_table_deleted_are_no_damage(
    operational: Operational, pipeline: Pipeline
) -> None:
    operational.insert("provider_traces", trace(T0, id="past"), trace(H0, id="kept"))
    pipeline.load_hours(T0)
    pipeline.load_hours(H0)
    database = pipeline.database
    database.execute("ALTER TABLE llm_traces MODIFY TTL toDateTime(created_at) + INTERVAL 9 DAY")
    assert database.rows("SELECT id FROM llm_traces") == [{"id": "kept"}]
    database.execute("DELETE FROM llm_traces WHERE id = 'kept'")
    rules = Rules(read_history(pipeline.store.files))
    for hour, damaged in ((T0, ()), (H0, (H0,))):
        found = reconcile(
            pipeline.source, pipeline.store, lambda: nullcontext(database), [hour], rules
        )
        assert found.damaged == damaged


@pytest.mark.parametrize("comparison", ["has_lost_traces", "is_stale"])
def test_an_hour_whose_comparison_fails_is_reported_and_the_others_go_on(
    operational: Operational,
    pipeline: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    comparison: str,
) -> None:
    hours = [T0, T0 + HOUR, T0 + 2 * HOUR]
    operational.insert("provider_traces", *(trace(hour, id=key_of(hour)) for hour in hours))
    pipeline.load_hours(*hours)
    drifted = hours[: 1 if comparison == "is_stale" else 2]  # is_stale is asked of the others
    operational.execute(
        f"UPDATE provider_traces SET call_type = 'late' WHERE created_at <= '{drifted[-1]}'"
    )
    pipeline.database.execute(
        "DELETE FROM llm_traces WHERE id = {id:String}", {"id": key_of(hours[2])}
    )
    compare = getattr(module, comparison)

    def failing(*arguments: Any) -> Any:
        [manifest] = [each for each in arguments if isinstance(each, Manifest)]
        if manifest.hour == hours[1]:
            raise OverflowError("date value out of range")
        return compare(*arguments)

    monkeypatch.setattr(module, comparison, failing)
    database = nullcontext(pipeline.database)
    rules = Rules(read_history(pipeline.store.files))
    found = reconcile(pipeline.source, pipeline.store, lambda: database, hours, rules)
    assert (found.drifted, found.unreadable, found.damaged) == ((T0,), (hours[1],), (hours[2],))
    [reason] = found.differences[hours[1]]
    assert reason == (
        f"hour {key_of(hours[1])}: unexpected OverflowError: date value out of range; "
        "its traceback is in the log"
    )
    [result, *_] = check_reconciliation(found, len(hours))
    assert not result.passed
    told = result.metadata["hours that cannot be compared"].value
    assert told == {key_of(hours[1]): [reason]}
