"""A call from PostgreSQL to ClickHouse: every column, read back as a value."""

import json
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_trace_pipeline.hours import HOUR
from tests.harness.operational import Operational, trace
from tests.harness.pipeline import Pipeline
from tests.harness.rows import T0
from tests.harness.usage_cases import CASES


def as_json(value: object) -> str | None:
    """Return the text that a case's value is stored as."""
    return None if value is None else json.dumps(value)


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


def test_a_latency_may_be_numeric(operational: Operational, pipeline: Pipeline) -> None:
    operational.execute("ALTER TABLE step_metrics ALTER llm_request_ns TYPE numeric")
    operational.execute("INSERT INTO step_metrics (id, llm_request_ns) VALUES ('s', 2499999.2)")
    operational.insert("provider_traces", trace(step_id="s"))
    pipeline.load()
    assert pipeline.rows("latency_ms") == [{"latency_ms": 2}]


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
