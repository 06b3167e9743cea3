"""An hour that becomes a batch: what is refused, what is empty, and what cannot be sent."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llm_trace_pipeline.batches import extract
from llm_trace_pipeline.errors import SourceError
from llm_trace_pipeline.hours import HOUR, floor, key_of
from llm_trace_pipeline.upkeep.reconcile import compare_source
from tests.harness.operational import Operational, trace
from tests.harness.pipeline import Pipeline
from tests.harness.rows import T0


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
    assert found == ({}, {}, {})


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


def test_an_hour_that_has_not_ended_by_the_databases_clock_is_refused(
    operational: Operational, pipeline: Pipeline
) -> None:
    hour = floor(datetime.now(UTC))
    operational.insert("provider_traces", trace(hour, id="early"))
    with pytest.raises(SourceError, match=rf"^hour {key_of(hour)} has not ended by the oper"):
        pipeline.extract(hour)
    assert pipeline.store.manifest(hour) is None
