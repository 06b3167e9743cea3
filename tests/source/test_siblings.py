"""The other traces of a step, asked for while the hour is read."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import chain
from unittest.mock import patch

import pyarrow as pa
import pytest

from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.source import snapshot as snapshots
from llm_trace_pipeline.source.postgres import Source
from llm_trace_pipeline.source.snapshot import Snapshot
from tests.harness.operational import Operational, trace
from tests.harness.rows import DAY, T0, Row

MINUTE = timedelta(minutes=1)


def siblings(snapshot: Snapshot, *step_ids: str) -> list[Row]:
    """Ask for the traces of steps beside an hour that is not read."""
    with snapshot.traces(T0) as traces:
        return traces.siblings(step_ids)


def connections(operational: Operational) -> int:
    """Return how many connections of the pipeline are open."""
    [found] = operational.rows(
        "SELECT count(*) AS open FROM pg_stat_activity "
        "WHERE application_name = 'llm_trace_pipeline' AND datname = current_database()"
    )
    return int(found["open"])


def test_the_traces_of_a_step_come_from_any_hour_and_both_tables(
    operational: Operational, source: Source
) -> None:
    operational.insert(
        "provider_traces",
        trace(
            id="provider_trace-failed",
            step_id="step-1",
            call_type="agent_step",
            response_json='{"error": null}',
        ),
        trace(T0 + DAY, id="unanswered", step_id="step-1", call_type=None, response_json=None),
        trace(id="gone", step_id="step-1", is_deleted=True),
        trace(id="of another step", step_id="step-2"),
        trace(id="of no step", step_id=None),
    )
    operational.insert(
        "provider_trace_metadata",
        {"id": "bare", "step_id": "step-1", "organization_id": "org-1", "created_at": T0 - HOUR},
    )
    of_step = {"step_id": "step-1"}
    with source.snapshot() as snapshot:
        assert siblings(snapshot, "step-1", "step-3") == [
            of_step
            | {
                "id": "bare",
                "origin": 2,
                "call_type": None,
                "created_at": T0 - HOUR,
                "response_json": None,
            },
            of_step
            | {
                "id": "failed",
                "origin": 1,
                "call_type": "agent_step",
                "created_at": T0,
                "response_json": '{"error": null}',
            },
            of_step
            | {
                "id": "unanswered",
                "origin": 1,
                "call_type": None,
                "created_at": T0 + DAY,
                "response_json": None,
            },
        ]
        assert siblings(snapshot) == []


def test_threads_ask_while_all_connections_read(
    operational: Operational, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "_KEYS_PER_QUERY", 2)
    # So much text that no stream is at its end when the first batch of it is there.
    response = '"' + "x" * 400_000 + '"'
    operational.insert(
        "provider_traces",
        *(
            trace(T0 + n * MINUTE, id=f"{n}", step_id=f"step-{n}", response_json=response)
            for n in range(60)
        ),
        *(trace(T0 + HOUR, id=f"{n} later", step_id=f"step-{n}") for n in range(60)),
    )

    with source.snapshot() as snapshot:
        operational.insert("provider_traces", trace(T0 + HOUR, id="unseen", step_id="step-1"))
        with snapshot.traces(T0, connections=2) as traces:
            assert connections(operational) == 2

            def siblings_of(stream: Iterator[pa.RecordBatch]) -> list[Row]:
                return [
                    row
                    for batch in stream
                    for row in traces.siblings(batch.column("step_id").to_pylist())
                ]

            with ThreadPoolExecutor(2) as pool:
                found = list(chain(*pool.map(siblings_of, traces.streams)))
            assert connections(operational) == 3
        assert connections(operational) == 1
    expected = {f"{n}" for n in range(60)} | {f"{n} later" for n in range(60)}
    assert sorted(row["id"] for row in found) == sorted(expected)


def test_no_connection_is_opened_where_nothing_is_asked(
    operational: Operational, source: Source
) -> None:
    with source.snapshot() as snapshot, snapshot.traces(T0) as traces:
        assert traces.siblings([]) == []
        assert connections(operational) == 1


def test_a_response_too_wide_to_be_sent_is_left_out(
    operational: Operational, source: Source
) -> None:
    responses = {"wide": '"' + "x" * 98 + '"', "narrow": '"' + "x" * 97 + '"'}
    operational.insert(
        "provider_traces",
        *(trace(id=name, step_id="step-1", response_json=text) for name, text in responses.items()),
    )
    with source.snapshot() as snapshot:
        # The limit itself would take a quarter of a gigabyte.
        sql = snapshot.statement("siblings").replace("268435456", "100")
        with patch.object(snapshot, "statement", return_value=sql):
            found = {row["id"]: row["response_json"] for row in siblings(snapshot, "step-1")}
    assert found == responses | {"wide": None}


def test_traces_are_found_through_an_index(operational: Operational, source: Source) -> None:
    operational.execute(f"""
        INSERT INTO provider_traces (id, step_id, organization_id, created_at, response_json)
        SELECT n::text, 'step-' || n, 'org-1', '{T0 + DAY}', '{{}}' FROM generate_series(1, 5000) n;
        ANALYZE provider_traces
    """)

    def rows_scanned() -> int:
        [found] = operational.rows(
            "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'provider_traces'"
        )
        return int(found["seq_tup_read"])

    before = rows_scanned()
    with source.snapshot() as snapshot:
        assert [row["id"] for row in siblings(snapshot, "step-7", "step-8")] == ["7", "8"]
        assert snapshot.present(["9", "absent"]) == {"9"}
    assert rows_scanned() - before < 100
