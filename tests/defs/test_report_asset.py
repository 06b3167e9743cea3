"""The report of a day as an asset, and its schedule."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from dagster import build_schedule_context, materialize

from llm_trace_pipeline.definitions import defs
from llm_trace_pipeline.defs.assets import usage_report
from llm_trace_pipeline.defs.runs import hours_of_run
from llm_trace_pipeline.defs.stores import Stores
from tests.harness.calls import CALLS, FIRST, summed


def test_the_asset_keeps_the_report_of_a_day(
    state_of_calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_TRACES_STATE", str(state_of_calls))
    result = materialize(
        [usage_report],
        partition_key=str(FIRST),
        resources={"stores": Stores()},
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )
    [event] = result.get_asset_materialization_events()
    metadata: dict[str, Any] = {
        name: value.value for name, value in event.materialization.metadata.items()
    }
    calls = [call for call in CALLS if call.created_at.date() == FIRST]
    expected = summed(calls)
    assert Decimal(metadata["spend in USD, exactly"]) == expected["spend_usd"]
    assert Decimal(str(metadata["spend in USD by own keys"])) == expected["byok_usd"]
    assert (metadata["calls"], metadata["tokens"]) == (expected["calls"], expected["tokens"])
    assert metadata["report"].startswith(f"**{FIRST}**\n\n| ")
    assert metadata["report"].count("\n| 20 | org-") == 1
    assert "<script" not in metadata["report"].replace("\\<script", "")
    page = state_of_calls / "batches" / "reports" / f"{FIRST}.html"
    assert metadata["page"] == str(page)
    assert "LLM usage, 2026-03-01 to 2026-03-01" in page.read_text(encoding="utf-8")


def test_the_schedule_reports_on_the_day_before() -> None:
    tick = datetime(2026, 3, 6, 1, 30, tzinfo=UTC)
    schedule = defs.resolve_schedule_def("daily_usage_report_schedule")
    context = build_schedule_context(
        scheduled_execution_time=tick, repository_def=defs.get_repository_def()
    )
    [request] = schedule.evaluate_tick(context).run_requests or []
    assert request.partition_key == "2026-03-05"
    assert schedule.cron_schedule == "30 1 * * *"
    assert hours_of_run({"dagster/partition": "2026-03-05"}) == []  # it loads none
