"""Billing from its table to ClickHouse: each call has the plan of its time."""

import json
from datetime import timedelta

from llm_trace_pipeline.batches.history import capture_billing, read_history
from tests.harness.operational import Operational, billing, trace
from tests.harness.pipeline import Pipeline
from tests.harness.rows import T0


def test_each_trace_gets_the_plan_that_held_when_it_was_made(
    operational: Operational, pipeline: Pipeline
) -> None:
    minutes = [T0 + timedelta(minutes=n) for n in range(0, 60, 10)]
    operational.insert(
        "organization_billing_details",
        billing("org-1", "basic", minutes[1]),
        billing("org-2", "team", T0 - timedelta(days=1)),
    )
    capture_billing(pipeline.source, pipeline.store.files)
    # The table keeps the present only: what it said before lives on in the billing history.
    operational.execute(
        "UPDATE organization_billing_details SET plan_type = 'max', "
        f"updated_at = '{minutes[3].isoformat()}' WHERE organization_id = 'org-1'"
    )
    own = json.dumps({"plan_type": "contract", "customer_id": None})
    operational.insert(
        "provider_traces",
        *(trace(at, id=f"{n}") for n, at in enumerate(minutes)),
        trace(minutes[4], id="6", billing_context=own),
        trace(minutes[4], id="7", billing_context='{"plan_type": ""}', organization_id="org-2"),
        trace(minutes[4], id="8", organization_id="org-3"),
    )
    manifest = pipeline.load()
    names = ("billing_plan_type", "billing_cost_source", "billing_customer_id", "billing_match")
    found = {row["id"]: tuple(row[name] for name in names) for row in pipeline.rows()}
    basic, maximum = ("basic", "quota", "cus_org-1"), ("max", "quota", "cus_org-1")
    assert found == {
        "0": (*basic, "first_known"),
        "1": (*basic, "as_of"),
        "2": (*basic, "as_of"),
        "3": (*maximum, "as_of"),
        "4": (*maximum, "as_of"),
        "5": (*maximum, "as_of"),
        "6": ("contract", "", "", "request"),
        "7": ("team", "quota", "cus_org-2", "as_of"),
        "8": ("", "", "", "none"),
    }
    assert manifest.billing_matches == {"first_known": 1, "as_of": 6, "request": 1, "none": 1}
    assert manifest.organizations_without_billing_ids == ("org-3",)


def test_of_two_versions_of_one_moment_the_one_seen_last_wins(
    operational: Operational, pipeline: Pipeline
) -> None:
    operational.insert("organization_billing_details", billing("org-1", "basic", T0))
    operational.insert("provider_traces", trace(id="a"))
    pipeline.load()
    operational.execute("UPDATE organization_billing_details SET plan_type = 'corrected'")
    assert capture_billing(pipeline.source, pipeline.store.files).new == 1
    assert capture_billing(pipeline.source, pipeline.store.files).new == 0
    pipeline.load()
    assert pipeline.rows("billing_plan_type") == [{"billing_plan_type": "corrected"}]
    history = read_history(pipeline.store.files).to_pylist()
    assert [version["plan_type"] for version in history] == ["basic", "corrected"]


def test_a_version_without_a_date_is_set_aside_and_stops_nothing(
    operational: Operational, pipeline: Pipeline
) -> None:
    operational.execute(
        "ALTER TABLE organization_billing_details "
        "ALTER created_at DROP NOT NULL, ALTER updated_at DROP NOT NULL"
    )
    operational.insert("organization_billing_details", billing("org-1", "basic", T0))
    operational.execute(
        "INSERT INTO organization_billing_details (organization_id, created_at, updated_at) "
        "VALUES ('org-2', NULL, NULL)"
    )
    operational.insert("provider_traces", trace(id="a"), trace(id="b", organization_id="org-2"))
    assert capture_billing(pipeline.source, pipeline.store.files).set_aside == ("org-2",)
    pipeline.load()
    assert [row["billing_match"] for row in pipeline.rows()] == ["as_of", "none"]
