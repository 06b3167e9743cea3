"""The rows of a check's history: each names its hour and both numbers, and none hides a finding."""

from datetime import UTC, datetime
from typing import Any

from dagster import AssetCheckKey, AssetKey

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.hours import HOUR, floor, key_of
from tests.harness.jobs import Jobs
from tests.harness.operational import Operational, trace
from tests.harness.rows import T0

HOURS = [T0, T0 + HOUR, T0 + 2 * HOUR]


def history(jobs: Jobs, asset: str, check: str) -> list[tuple[str | None, bool, str]]:
    """Return hour, outcome and description of a check's evaluations, newest last."""
    key = AssetCheckKey(AssetKey(asset), check)
    records = jobs.instance.event_log_storage.get_asset_check_execution_history(key, limit=100)
    found: list[Any] = [record.evaluation for record in records if record.status.value != "PLANNED"]
    return [(each.partition, each.passed, each.description) for each in reversed(found)]


def test_every_hour_says_both_numbers_and_the_run_says_all_hours(
    operational: Operational, jobs: Jobs
) -> None:
    keys = [key_of(hour) for hour in HOURS]
    operational.insert("provider_traces", trace(T0, id="a"), trace(T0, id="b"))
    assert jobs.load(HOURS[0], HOURS[-1]).success
    said = {
        ("trace_batches", "rows_match_source"): "rows of the source = {} of the batch",
        ("llm_traces", "rows_match_batch"): "rows of the batch = {} of ClickHouse",
        ("llm_traces", "ids_are_unique"): "rows = {} ids",
        ("llm_usage_hourly", "rollup_matches_traces"): "calls of llm_traces = {} of the roll-up",
    }
    for (asset, check), text in said.items():
        assert sorted(history(jobs, asset, check), key=lambda row: row[0] or "~") == [
            *(
                (key, True, f"{key}: {rows} {text.format(rows)}")
                for key, rows in zip(keys, (2, 0, 0), strict=True)
            ),
            (None, True, f"{keys[0]} to {keys[-1]}: none of 3 hours failed"),
        ]
    warned = [row for row in history(jobs, "trace_batches", "billing_is_known") if not row[1]]
    text = f"{keys[0]}: 1 organizations without billing, such as org-1"
    assert {row[2] for row in warned} == {text, f"1 of 3 hours failed; {text}"}


def test_a_step_that_fails_says_what_was_checked(operational: Operational, jobs: Jobs) -> None:
    operational.insert("provider_traces", trace(T0, id="a", step_id="step-1"))
    operational.execute("ALTER TABLE steps DROP CONSTRAINT steps_pkey")
    operational.insert("steps", {"id": "step-1"}, {"id": "step-1"})
    assert not jobs.load(T0, T0 + HOUR, asset_selection=[AssetKey("trace_batches")]).success
    text = f"{key_of(T0)}: 1 rows of the source ≠ 2 of the batch, 1 ids"
    found = history(jobs, "trace_batches", "rows_match_source")
    assert (None, False, f"1 of 2 hours failed; {text}") in found


def test_a_load_of_other_hours_keeps_what_the_reconciliation_found(
    operational: Operational, jobs: Jobs
) -> None:
    hour = floor(datetime.now(UTC)) - 3 * HOUR
    operational.insert("provider_traces", trace(hour, id="a"), trace(hour, id="b"))
    assert jobs.load(hour, hour).success
    operational.execute("DELETE FROM provider_traces WHERE id = 'a'")
    assert jobs.run("reconcile_hours").success
    assert BatchStore.of(jobs.settings).manifest(hour)
    other = jobs.load(hour - HOUR, hour - HOUR, asset_selection=[AssetKey("trace_batches")])
    assert other.success
    first, again = history(jobs, "trace_batches", "source_keeps_loaded_traces")
    assert (first[1], again[1]) == (False, False)
    advice = f"{key_of(hour)}: lost traces in the source; their batches and their rows in "
    assert advice in first[2]
    assert first[2].split(" hours: ")[0].isdecimal()
    assert again[2].startswith("as of 20")
    assert advice in again[2]
    [passed, _] = history(jobs, "trace_batches", "source_matches_batches")
    assert passed[2].endswith(" hours: none differs")  # without advice
