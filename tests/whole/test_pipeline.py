"""The whole path on real engines: PostgreSQL, Parquet, ClickHouse, rows read back as values."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_trace_pipeline.batches import extract
from llm_trace_pipeline.batches.extract import capture_billing
from llm_trace_pipeline.errors import SourceError
from llm_trace_pipeline.hours import HOUR, Window
from llm_trace_pipeline.source.postgres import Source
from llm_trace_pipeline.upkeep.reconcile import compare_source
from tests.harness.operational import Operational, billing, trace
from tests.harness.pipeline import Pipeline
from tests.harness.rows import T0

CASES = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "usage_cases.jsonl").read_text().splitlines()
]


def as_json(value: object) -> str | None:
    """Return the text that a case's value is stored as."""
    if value is None:
        return None
    return json.dumps(_expand(value))


def _expand(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"$repeat", "$value"}:
            return value["$value"] * value["$repeat"]
        return {name: _expand(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_expand(inner) for inner in value]
    return value


def test_every_usage_case_comes_out_right_in_clickhouse(
    operational: Operational, pipeline: Pipeline
) -> None:
    operational.insert(
        "provider_traces",
        *(
            trace(id=case["name"], **{key: as_json(case["call"].get(key)) for key in case["call"]})
            for case in CASES
        ),
    )
    assert pipeline.load().rows == len(CASES) == 105
    found = {row["id"]: row for row in pipeline.rows()}
    wrong = {
        (case["name"], column): (found[case["name"]][column], expected)
        for case in CASES
        for column, expected in case["expected"].items()
        if found[case["name"]][column] != ("" if expected is None else expected)
        and not (expected is None and found[case["name"]][column] is None)
    }
    assert wrong == {}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(exclude_characters="\0")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "usage",
                    "error",
                    "choices",
                    "response",
                    "message",
                    "model",
                    "prompt_tokens",
                    "type",
                ]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(calls=st.lists(st.tuples(json_values, json_values, json_values, json_values), max_size=40))
def test_no_json_loses_a_row_or_stops_an_hour(
    operational: Operational,
    pipeline: Pipeline,
    calls: list[tuple[object, object, object, object]],
) -> None:
    operational.execute("DELETE FROM provider_traces")
    expected = {}
    rows = []
    for number, (config, request, response, tags) in enumerate(calls):
        texts = [json.dumps(value) for value in (config, request, response, tags)]
        names = ("llm_config", "request_json", "response_json", "agent_tags")
        rows.append(trace(id=str(number), **dict(zip(names, texts, strict=True))))
        expected[str(number)] = texts[1:3]
    if rows:
        operational.insert("provider_traces", *rows)
    manifest = pipeline.load(accept_loss=True)
    found = {row["id"]: [row["request_json"], row["response_json"]] for row in pipeline.rows()}
    assert found == expected
    assert manifest.unreadable == 0


def test_what_cannot_be_read_is_loaded_with_zero_usage_and_counted(
    operational: Operational, pipeline: Pipeline
) -> None:
    too_deep = "[" * 2000 + "]" * 2000
    operational.insert(
        "provider_traces",
        *(trace(id=f"deep-{n}", response_json=too_deep) for n in range(4)),
        trace(id="lone surrogate", response_json=r'{"error": "\ud83d", "error_type": "E"}'),
    )
    manifest = pipeline.load()
    assert (manifest.rows, manifest.unreadable) == (5, 4)
    assert manifest.unreadable_ids == ("deep-0", "deep-1", "deep-2")
    rows = {row["id"]: row for row in pipeline.rows()}
    assert rows["deep-0"]["response_json"] == too_deep
    assert rows["deep-0"]["total_tokens"] == 0
    assert rows["lone surrogate"]["error_message"] == "\ufffd"


def test_a_snapshot_holds_whatever_it_is_asked(operational: Operational, source: Source) -> None:
    operational.insert("provider_traces", trace(id="before"))
    with source.snapshot() as snapshot:
        ledger = snapshot.ledger_of(T0)
        operational.insert("provider_traces", trace(id="after"))
        assert snapshot.census(T0).rows == ledger.rows == 1
        assert snapshot.folded(Window.of([T0])) == []
        assert snapshot.present(["before", "after"]) == {"before"}
        assert snapshot.ledger_of(T0) == ledger


def test_a_row_too_wide_for_postgresql_is_loaded_without_payloads_and_counted(
    operational: Operational, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "ROWS_PER_STREAM", 1)  # by both connections
    # Neither written to the log nor compressed: the row takes seconds instead of a minute.
    operational.execute("""
        ALTER TABLE provider_traces SET UNLOGGED;
        ALTER TABLE provider_traces ALTER request_json SET STORAGE EXTERNAL,
            ALTER llm_config SET STORAGE EXTERNAL
    """)
    minutes = {"before": 1, "wide": 2, "after": 3, "other window": 50}
    operational.insert(
        "provider_traces",
        *(
            trace(T0 + timedelta(minutes=minute), id=name, agent_tags='["tag"]')
            for name, minute in minutes.items()
        ),
    )
    # Each fits into a message of 1 GB, both together do not.
    for change in (
        "request_json = ('\"' || repeat('x', 520 << 20) || '\"')::json",
        "llm_config = request_json",
    ):
        operational.execute(f"UPDATE provider_traces SET {change} WHERE id = 'wide'")
    manifest = pipeline.load()
    assert (manifest.rows, manifest.unreadable, manifest.unreadable_ids) == (4, 1, ("wide",))
    columns = (
        "id, agent_tags, model, request_json, response_json, llm_config_json, request_size_bytes, "
        "response_size_bytes, total_tokens, cached_input_tokens"
    )
    rows = {row.pop("id"): row for row in pipeline.rows(columns)}
    ordinary = trace()
    expected = {
        "agent_tags": ["tag"],
        "model": "gpt-4o",
        "request_json": ordinary["request_json"],
        "response_json": ordinary["response_json"],
        "llm_config_json": ordinary["llm_config"],
        "request_size_bytes": len(ordinary["request_json"]),
        "response_size_bytes": len(ordinary["response_json"]),
        "total_tokens": 15,
        "cached_input_tokens": None,
    }
    cut = {"model": "", "request_json": "", "response_json": "", "llm_config_json": "{}"}
    numbers = dict.fromkeys(("request_size_bytes", "response_size_bytes", "total_tokens"), 0)
    assert rows == dict.fromkeys(minutes, expected) | {"wide": expected | cut | numbers}
    assert pipeline.extract(only_changed=True) == manifest
    found = compare_source(pipeline.source, pipeline.store, [T0], {T0: manifest})
    assert found == ({}, {})


def test_an_hour_is_half_open(operational: Operational, pipeline: Pipeline) -> None:
    microsecond = timedelta(microseconds=1)
    for name, at in {
        "before": T0 - microsecond,
        "first": T0,
        "last": T0 + HOUR - microsecond,
        "after": T0 + HOUR,
    }.items():
        operational.insert("provider_traces", trace(at, id=name))
    manifest = pipeline.load()
    rows = pipeline.rows("id, created_at")
    assert rows == [
        {"id": "first", "created_at": T0},
        {"id": "last", "created_at": T0 + HOUR - microsecond},
    ]
    assert manifest.min_created_at == T0
    assert manifest.max_created_at == T0 + HOUR - microsecond


def test_columns_follow_the_contract(operational: Operational, pipeline: Pipeline) -> None:
    operational.insert(
        "steps",
        {
            "id": "step-1",
            "organization_id": "org-x",
            "project_id": "project-1",
            "trace_id": "otel-1",
            "provider_name": "step-provider",
            "provider_category": "byok",
            "model": "step-model",
            "is_deleted": True,
        },
    )
    operational.insert("step_metrics", {"id": "step-1", "llm_request_ns": 1_500_000})
    full = trace(
        id="provider_trace-full",
        org_id="org-own",
        organization_id="org-other",
        agent_id="agent-1",
        agent_tags='["a", null, 1, {"b": [2]}, "c"]',
        run_id="run-1",
        step_id="step-1",
        call_type="summarization",
        llm_config='{"model": "m", "model_endpoint_type": "anthropic", "provider_category": "x"}',
    )
    bare = {
        "id": "bare",
        "organization_id": "org-1",
        "org_id": "",
        "step_id": "step-1",
        "request_json": "null",
        "agent_tags": '{"no": "list"}',
        "llm_config": "null",
        "created_at": T0,
    }
    operational.insert("provider_traces", full, bare)
    pipeline.load()
    by_id = {row["id"]: row for row in pipeline.rows()}
    found = by_id["full"]
    assert found == {
        **found,
        "organization_id": "org-own",
        "project_id": "project-1",
        "agent_id": "agent-1",
        "agent_tags": ["a", "1", '{"b":[2]}', "c"],
        "run_id": "run-1",
        "step_id": "step-1",
        "trace_id": "otel-1",
        "call_type": "summarization",
        "provider": "anthropic",
        "model": "m",
        "is_byok": 0,
        "request_json": full["request_json"],
        "request_size_bytes": len(full["request_json"]),
        "latency_ms": 2,
        "llm_config_json": full["llm_config"],
    }
    found = by_id["bare"]
    assert found == {
        **found,
        "organization_id": "org-1",
        "agent_tags": [],
        "run_id": "",
        "call_type": "unknown",
        "provider": "step-provider",
        "model": "step-model",
        "is_byok": 1,
        "request_json": "null",
        "request_size_bytes": 4,
        "response_json": "",
        "response_size_bytes": 0,
        "llm_config_json": "{}",
        "prompt_tokens": 0,
        "cached_input_tokens": None,
    }


@pytest.mark.parametrize(
    ("nanoseconds", "milliseconds"),
    [(None, 0), (-5, 0), (499_999, 0), (500_000, 1), (2_499_999, 2), (2**63 - 1, 9223372036855)],
)
def test_latency_is_rounded_half_up(
    operational: Operational, pipeline: Pipeline, nanoseconds: int | None, milliseconds: int
) -> None:
    operational.insert("step_metrics", {"id": "step-1", "llm_request_ns": nanoseconds})
    operational.insert("provider_traces", trace(step_id="step-1"))
    pipeline.load()
    assert pipeline.rows("latency_ms") == [{"latency_ms": milliseconds}]


def test_one_row_per_id_and_what_was_folded_is_counted(
    operational: Operational, pipeline: Pipeline
) -> None:
    later = T0 + timedelta(minutes=5)
    operational.insert(
        "provider_traces",
        trace(id="provider_trace-a", call_type="older"),
        trace(id="a", call_type="newer", updated_at=later),
        trace(id="provider_trace-b", call_type="in provider_traces"),
        trace(id="provider_trace-gone", is_deleted=True),
    )
    metadata = {"organization_id": "org-1", "created_at": T0, "updated_at": later}
    operational.insert(
        "provider_trace_metadata",
        {"id": "provider_trace-b", "call_type": "in metadata", **metadata},
        {"id": "provider_trace-gone", "call_type": "in metadata", **metadata},
        {"id": "provider_trace-c", "call_type": "only in metadata", **metadata},
    )
    manifest = pipeline.load()
    assert {row["id"]: row["call_type"] for row in pipeline.rows()} == {
        "a": "newer",
        "b": "in provider_traces",
        "c": "only in metadata",
    }
    assert (manifest.source_rows, manifest.source_folded, manifest.source_deleted) == (6, 3, 1)


def test_metadata_only_traces_take_their_steps_usage_once(
    operational: Operational, pipeline: Pipeline
) -> None:
    operational.insert(
        "steps",
        {
            "id": "step-1",
            "provider_name": "anthropic",
            "model": "claude",
            "prompt_tokens": 100,
            "completion_tokens": 7,
            "total_tokens": 107,
            "cached_input_tokens": 60,
            "reasoning_tokens": 0,
        },
    )
    metadata = {"organization_id": "org-1", "step_id": "step-1"}
    operational.insert(
        "provider_trace_metadata",
        {"id": "error", "created_at": T0 + HOUR - timedelta(seconds=1), **metadata},
        {"id": "success", "created_at": T0 + HOUR, **metadata},
        {"id": "soft-deleted", "created_at": T0 + 2 * HOUR, "is_deleted": True, **metadata},
    )
    for hour in (T0, T0 + HOUR, T0 + 2 * HOUR):
        pipeline.load(hour)
    rows = pipeline.rows()
    assert [(row["id"], row["total_tokens"]) for row in rows] == [("error", 0), ("success", 107)]
    success = rows[1]
    assert success == {
        **success,
        "provider": "anthropic",
        "model": "claude",
        "prompt_tokens": 100,
        "completion_tokens": 7,
        "cached_input_tokens": 60,
        "cache_write_tokens": None,
        "reasoning_tokens": 0,
        "request_json": "",
        "request_size_bytes": 0,
        "llm_config_json": "{}",
    }


def test_soft_deleted_rows_are_gone_after_the_next_load(
    operational: Operational, pipeline: Pipeline
) -> None:
    operational.insert("provider_traces", trace(id="stays"), trace(id="goes"))
    pipeline.load()
    operational.execute("UPDATE provider_traces SET is_deleted = true WHERE id = 'goes'")
    pipeline.load()
    assert [row["id"] for row in pipeline.rows("id")] == ["stays"]
    operational.execute("UPDATE provider_traces SET is_deleted = true")
    pipeline.load()
    assert pipeline.rows() == []


def test_each_trace_gets_the_plan_that_held_when_it_was_made(
    operational: Operational, pipeline: Pipeline
) -> None:
    minutes = [T0 + timedelta(minutes=n) for n in range(0, 60, 10)]
    operational.insert(
        "organization_billing_details",
        billing("org-1", "basic", minutes[1]),
        billing("org-2", "team", T0 - timedelta(days=1)),
    )
    capture_billing(pipeline.source, pipeline.store)
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
    assert capture_billing(pipeline.source, pipeline.store).new == 1
    assert capture_billing(pipeline.source, pipeline.store).new == 0
    pipeline.load()
    assert pipeline.rows("billing_plan_type") == [{"billing_plan_type": "corrected"}]
    history = pipeline.store.billing_history().to_pylist()
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
    assert capture_billing(pipeline.source, pipeline.store).set_aside == ("org-2",)
    pipeline.load()
    assert [row["billing_match"] for row in pipeline.rows()] == ["as_of", "none"]


def test_a_step_without_trace_in_an_empty_hour_is_an_error(
    operational: Operational, pipeline: Pipeline
) -> None:
    operational.insert("steps", {"id": "step-1", "created_at": T0 + timedelta(minutes=30)})
    with pytest.raises(SourceError, match=r"hour 2026-03-01-09:00: .*1 steps .*accept_loss"):
        pipeline.extract()
    assert pipeline.store.manifest(T0) is None
    assert pipeline.extract(accept_loss=True).rows == 0


def no_steps(_: Operational) -> None:
    """The server was idle."""


def trace_in_the_next_hour(operational: Operational) -> None:
    """The step's trace lies on the other side of the edge; an earlier hour has traces too."""
    operational.insert("steps", {"id": "step-1", "created_at": T0 + timedelta(minutes=59)})
    operational.insert("provider_traces", trace(T0 + HOUR, step_id="step-1"), trace(T0 - 5 * HOUR))


def traces_were_pruned(operational: Operational) -> None:
    """The source has no trace as old as this hour, but its steps."""
    operational.insert("steps", {"id": "step-1", "created_at": T0 + timedelta(minutes=30)})
    operational.insert("provider_traces", trace(T0 + 48 * HOUR))


@pytest.mark.parametrize("prepare", [no_steps, trace_in_the_next_hour, traces_were_pruned])
def test_an_empty_hour_is_fine(operational: Operational, pipeline: Pipeline, prepare: Any) -> None:
    prepare(operational)
    assert pipeline.load().rows == 0
    assert pipeline.rows() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("DROP TABLE steps", "no table steps.*sql/operational/.*traces.sql"),
        ("DROP TABLE provider_traces", "no table provider_traces.*sql/operational/all_traces.sql"),
        (
            "ALTER TABLE steps DROP COLUMN cache_write_tokens",
            "no column s.cache_write_tokens.*sql/operational/.*traces.sql",
        ),
        (
            "ALTER TABLE provider_traces DROP COLUMN org_id",
            "no column org_id.*sql/operational/all_traces.sql",
        ),
        (
            "ALTER TABLE organization_billing_details RENAME TO subscriptions",
            "no table organization_billing_details.*sql/operational/billing.sql",
        ),
        (
            "ALTER TABLE organization_billing_details RENAME plan_type TO plan",
            "no column plan_type.*sql/operational/billing.sql",
        ),
    ],
)
def test_what_is_missing_is_named_with_the_file_to_edit(
    operational: Operational, pipeline: Pipeline, change: str, message: str
) -> None:
    operational.execute(change)
    with pytest.raises(SourceError, match=message):
        pipeline.extract()


@pytest.mark.parametrize(
    "change",
    [
        "DROP TABLE provider_trace_metadata",
        "DROP TABLE step_metrics",
        "ALTER TABLE provider_traces DROP COLUMN billing_context",
    ],
)
def test_what_a_deployment_may_lack_is_no_error(
    operational: Operational, pipeline: Pipeline, change: str
) -> None:
    operational.execute(change)
    operational.insert("provider_traces", trace(id="a"))
    assert pipeline.load().rows == 1


def test_a_join_that_multiplies_rows_does_not_replace_the_batch(
    operational: Operational, pipeline: Pipeline
) -> None:
    operational.insert("provider_traces", trace(id="a", step_id="step-1"))
    good = pipeline.load()
    operational.execute("ALTER TABLE steps DROP CONSTRAINT steps_pkey")
    operational.insert("steps", {"id": "step-1"}, {"id": "step-1"})
    bad = pipeline.extract()
    assert (bad.rows, bad.distinct_ids, bad.is_complete) == (2, 1, False)
    assert pipeline.store.manifest(T0) == good
