"""Times that Python does not have: infinity, and what lies outside the years 1 to 9999."""

from contextlib import nullcontext

import pytest

from llm_trace_pipeline.batches.history import capture_billing
from llm_trace_pipeline.batches.rules import Rules
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.source.postgres import Source
from llm_trace_pipeline.upkeep.preflight_source import check_source
from llm_trace_pipeline.upkeep.reconcile import (
    Reconciliation,
    reconcile,
    record_reconciliation,
)
from tests.harness.operational import Operational, billing, trace
from tests.harness.pipeline import Pipeline
from tests.harness.rows import DAY, T0

LATE = ("infinity", "20000-01-01 00:00+00", "294276-12-31 00:00+00")
EARLY = ("-infinity", "0044-03-15 00:00+00 BC", "4713-01-01 00:00+00 BC")
ODD = (*LATE, *EARLY)


@pytest.mark.parametrize("has_others", [True, False], ids=["beside a usual time", "alone"])
def test_the_newest_change_is_the_latest_that_is_a_time(
    operational: Operational, pipeline: Pipeline, has_others: bool
) -> None:
    operational.insert("provider_traces", *(trace(id=each) for each in ODD))
    for each in ODD:
        operational.execute(f"UPDATE provider_traces SET updated_at = '{each}' WHERE id = '{each}'")
    if has_others:
        operational.insert("provider_traces", trace(id="usual", updated_at=T0 + DAY))
    newest = T0 + DAY if has_others else None
    manifest = pipeline.load()
    assert (manifest.rows, manifest.source_newest_change) == (len(ODD) + has_others, newest)
    with pipeline.source.snapshot() as snapshot:
        assert snapshot.census(T0).newest_change == newest
        assert snapshot.ledger_of(T0).newest_change == newest


@pytest.mark.parametrize("odd", ODD)
def test_a_change_to_an_odd_time_is_noticed(
    operational: Operational, pipeline: Pipeline, odd: str
) -> None:
    operational.insert("provider_traces", trace(id="a"), trace(id="b"))
    assert pipeline.load() == pipeline.extract(only_changed=True)
    operational.execute(f"UPDATE provider_traces SET updated_at = '{odd}' WHERE id = 'a'")
    with pipeline.source.snapshot() as snapshot:
        changed = snapshot.ledger_of(T0).source_hash
    assert pipeline.extract(only_changed=True).source_hash == changed


def test_a_trace_of_no_hour_is_named_and_disturbs_no_other(
    operational: Operational, pipeline: Pipeline, source: Source
) -> None:
    operational.insert("steps", {"id": "step-1", "prompt_tokens": 70, "completion_tokens": 8})
    silent = '{"choices": [{"message": {"content": "hi"}}]}'
    operational.insert(
        "provider_traces",
        *(trace(id=each, step_id="step-1", response_json=silent) for each in ("usual", *ODD)),
    )
    for each in ODD:
        operational.execute(f"UPDATE provider_traces SET created_at = '{each}' WHERE id = '{each}'")
    # The latest trace of the step has its usage, and the latest is that of infinity.
    pipeline.load()
    [row] = pipeline.rows("id, total_tokens")
    assert row == {"id": "usual", "total_tokens": 0}
    operational.execute("DELETE FROM provider_traces WHERE created_at > now() + interval '1 year'")
    pipeline.load(accept_loss=True)
    assert pipeline.rows("id, total_tokens") == [{"id": "usual", "total_tokens": 78}]
    [problem] = check_source(source, T0 + HOUR)
    assert problem.message.startswith("3 traces are of no hour: ")
    assert not problem.is_fatal


def test_billing_from_infinity_on_holds_last_and_from_minus_infinity_on_first(
    operational: Operational, pipeline: Pipeline
) -> None:
    plans = {"first": "-infinity", "usual": f"{T0 + HOUR / 2}", "never": "infinity"}
    for plan, since in plans.items():
        operational.insert("organization_billing_details", billing("org-1", plan, T0 - DAY))
        operational.execute(
            "UPDATE organization_billing_details "
            f"SET updated_at = '{since}' WHERE plan_type = '{plan}'"
        )
    operational.insert("organization_billing_details", billing("org-2", "ancient", T0 - DAY))
    operational.execute(
        "UPDATE organization_billing_details "
        "SET updated_at = '0044-03-15 BC' WHERE plan_type = 'ancient'"
    )
    operational.insert("organization_billing_details", billing("org-3", "to come", T0 - DAY))
    operational.execute(
        "UPDATE organization_billing_details SET updated_at = 'infinity' "
        "WHERE plan_type = 'to come'"
    )
    operational.insert(
        "provider_traces",
        trace(id="before"),
        trace(T0 + HOUR / 2, id="after"),
        trace(T0 + HOUR / 2, id="other", organization_id="org-2"),
        trace(T0 + HOUR / 2, id="third", organization_id="org-3"),
    )
    pipeline.load()
    found = {
        row["id"]: (row["billing_plan_type"], row["billing_match"])
        for row in pipeline.rows("id, billing_plan_type, billing_match")
    }
    assert found == {
        "before": ("first", "as_of"),
        "after": ("usual", "as_of"),
        "other": ("ancient", "as_of"),
        "third": ("to come", "first_known"),
    }
    captured = capture_billing(pipeline.source, pipeline.store.files)
    assert (captured.new, captured.history.num_rows) == (0, 5)
    # All versions are new, and T0 is an earlier hour: their times tell which hours they concern.
    rules = Rules(captured.history)
    record_reconciliation(
        pipeline.store.files, Reconciliation(id="last", at=T0, prices=rules.prices.version)
    )
    compared = reconcile(
        pipeline.source,
        pipeline.store,
        lambda: nullcontext(pipeline.database),
        [T0 + HOUR],
        rules,
    )
    assert (compared.stale, compared.unreadable) == ((), ())
