"""The retention under Dagster: neither it nor a load brings back what is past its line."""

from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo
from typing import Any

import pytest
from dagster import (
    DagsterInstance,
    build_schedule_context,
)

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.definitions import defs
from llm_trace_pipeline.defs import jobs
from llm_trace_pipeline.defs.stores import Stores
from llm_trace_pipeline.hours import HOUR, key_of, midnight
from llm_trace_pipeline.settings import Settings
from tests.harness.jobs import Jobs
from tests.harness.operational import Operational, trace
from tests.harness.rows import DAY
from tests.harness.warehouse import change

CLICKHOUSE, BATCHES = "LLM_TRACES_RETENTION_DAYS", "TRACE_BATCH_RETENTION_DAYS"


class Run(Jobs):
    """The jobs of the code location, beside a line that lies some days back from the real now."""

    def __init__(
        self, operational: Operational, settings: Settings, instance: DagsterInstance
    ) -> None:
        super().__init__(settings, instance)
        self.line = midnight(datetime.now(UTC)) - 10 * DAY
        self.past, self.kept = self.line - HOUR, self.line
        operational.insert("provider_traces", trace(self.past, id="past"))
        operational.insert("provider_traces", trace(self.kept, id="kept"))

    def load_both(self, **arguments: Any) -> dict[str, str]:
        """Run the hourly job for both hours; return the outcome of the past one, by asset."""
        result = self.load(self.past, self.kept, **arguments)
        assert result.success
        assert all(
            each.passed or each.check_name == "billing_is_known"
            for each in result.get_asset_check_evaluations()
        )
        return {
            asset: str(metadata["outcome"].value)
            for asset in ("trace_batches", "llm_traces")
            for hour, metadata in self.materializations(asset)
            if hour == key_of(self.past)
        }

    def apply(self) -> None:
        assert self.run("apply_retention").success

    def ids(self) -> tuple[list[str], list[datetime]]:
        """Return what ClickHouse holds, and the hours that have a batch."""
        ids = sorted(row["id"] for row in self.rows())
        return ids, BatchStore.of(self.settings).hours()


@pytest.fixture
def run(operational: Operational, settings: Settings) -> Iterator[Run]:
    with DagsterInstance.ephemeral() as instance:
        yield Run(operational, settings, instance)


def test_neither_comes_back_with_a_load(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run.load_both() == {"trace_batches": "new batch", "llm_traces": "loaded"}
    run.apply()
    assert run.ids() == (["kept", "past"], [run.past, run.kept])

    monkeypatch.setenv(CLICKHOUSE, "10")
    run.apply()
    assert run.ids() == (["kept"], [run.past, run.kept])
    assert run.load_both() == {
        "trace_batches": "unchanged: the batch was kept",
        "llm_traces": "past the retention: not loaded",
    }
    assert run.ids() == (["kept"], [run.past, run.kept])

    monkeypatch.setenv(BATCHES, "10")
    run.apply()
    assert run.ids() == (["kept"], [run.kept])
    past = {
        "trace_batches": "past the retention: no batch is kept",
        "llm_traces": "past the retention: not loaded",
    }
    assert run.load_both() == past
    enriching = {"ops": {"trace_batches": {"config": {"enrich_only": True}}}}
    assert run.load_both(run_config=enriching) == past
    assert run.ids() == (["kept"], [run.kept])


def test_clickhouse_keeps_what_its_batches_no_longer_hold(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.load_both()
    monkeypatch.setenv(BATCHES, "10")
    run.apply()
    assert run.load_both() == {
        "trace_batches": "past the retention: no batch is kept",
        "llm_traces": "past the retention: no batch to load; its rows are left alone",
    }
    assert run.ids() == (["kept", "past"], [run.kept])


def test_what_the_ttl_of_the_table_deletes_is_not_loaded_again(run: Run) -> None:
    run.load_both()
    change(run.settings, "ALTER TABLE llm_traces MODIFY TTL toDate(created_at) + 11")
    assert run.ids() == (["kept"], [run.past, run.kept])
    assert run.load_both() == {
        "trace_batches": "unchanged: the batch was kept",
        "llm_traces": "past the retention: not loaded",
    }


def test_a_clock_that_is_ahead_makes_no_row_old(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ahead:
        @staticmethod
        def now(zone: tzinfo) -> datetime:
            return datetime.now(zone) + 20 * DAY

    run.load_both()
    monkeypatch.setenv(CLICKHOUSE, "15")
    monkeypatch.setenv(BATCHES, "15")
    monkeypatch.setattr(jobs, "datetime", Ahead)
    run.apply()
    assert run.ids() == (["kept", "past"], [run.past, run.kept])


@pytest.mark.parametrize("name", [None, CLICKHOUSE, BATCHES])
def test_the_schedule_asks_for_a_run_where_a_retention_is_set(
    name: str | None,
    settings: Settings,  # noqa: ARG001 -- environment
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name:
        monkeypatch.setenv(name, "1")
    schedule = defs.resolve_schedule_def("apply_retention_schedule")
    context = build_schedule_context(
        scheduled_execution_time=datetime(2026, 3, 31, 15, 30, tzinfo=UTC),
        resources={"stores": Stores()},
    )
    asked = schedule.evaluate_tick(context).run_requests or []
    assert len(asked) == (1 if name else 0)
    assert schedule.default_status.value == "RUNNING"
