"""What is read of the operational database, and what it may lack."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from operator import itemgetter
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pytest
from adbc_driver_postgresql import dbapi

from llm_trace_pipeline.errors import SourceError
from llm_trace_pipeline.source.postgres import Source
from tests.harness.operational import Operational, trace
from tests.harness.pipeline import Pipeline
from tests.harness.rows import T0


def test_a_snapshot_holds_whatever_it_is_asked(operational: Operational, source: Source) -> None:
    operational.insert("provider_traces", trace(id="before"))
    with source.snapshot() as snapshot:
        ledger = snapshot.ledger_of(T0)
        operational.insert("provider_traces", trace(id="after"))
        assert snapshot.census(T0).rows == ledger.rows == 1
        assert snapshot.folded(T0) == []
        assert snapshot.present(["before", "after"]) == {"before"}
        assert snapshot.ledger_of(T0) == ledger


@pytest.mark.parametrize(
    "rewrite", ["ALTER TABLE {} ADD later uuid DEFAULT gen_random_uuid()", "TRUNCATE {}"]
)
@pytest.mark.parametrize("table", ["provider_traces", "steps"])
def test_a_table_cannot_be_rewritten_while_a_snapshot_is_held(
    operational: Operational, source: Source, table: str, rewrite: str
) -> None:
    operational.insert("provider_traces", trace(id="a", step_id="step-1"))
    operational.insert("steps", {"id": "step-1", "project_id": "project-1", "created_at": T0})
    statement = f"SET lock_timeout = 50; {rewrite.format(table)}"
    with source.snapshot() as snapshot:
        with pytest.raises(dbapi.ProgrammingError, match="lock timeout"):
            operational.execute(statement)
        with snapshot.traces(T0) as traces:
            [row] = next(traces.streams[0]).to_pylist()
    assert (row["id"], row["project_id"]) == ("a", "project-1")
    operational.execute(statement)


def test_a_table_that_is_being_rewritten_for_too_long_is_an_error(
    operational: Operational, source: Source
) -> None:
    operational.execute(
        "DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || current_database() || ' SET lock_timeout = 50'; "
        "END $$"
    )
    with dbapi.connect(operational.url) as other, other.cursor() as cursor:
        cursor.execute("LOCK TABLE steps IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(SourceError, match="due to lock timeout"), source.snapshot():
            pass
        other.rollback()
    with source.snapshot():
        pass


def test_connections_share_an_hour_of_one_moment_and_hand_out_every_trace_once(
    operational: Operational, source: Source
) -> None:
    ids = [f"{number}" for number in range(60)]
    operational.insert(
        "provider_traces",
        *(
            trace(
                T0 + int(each) * timedelta(minutes=1),
                id=each,
                org_id=f"org-{int(each) % 3}",
                agent_id=f"agent-{int(each) % 12}" if int(each) % 5 else None,
            )
            for each in ids
        ),
    )

    def rows_of(stream: Iterator[pa.RecordBatch]) -> list[dict[str, Any]]:
        return [each for batch in stream for each in batch.to_pylist()]

    with source.snapshot() as snapshot:
        operational.insert("provider_traces", trace(id="later"))
        with (
            snapshot.traces(T0, connections=3) as traces,
            ThreadPoolExecutor(len(traces.streams)) as pool,
        ):
            found = list(pool.map(rows_of, traces.streams))
    assert all(found)
    assert sorted(row["id"] for rows in found for row in rows) == sorted(ids)
    # An agent's calls follow each other, in one stream: side by side they take little space.
    streams = [{row["agent_id"] for row in rows if row["agent_id"]} for rows in found]
    assert sum(map(len, streams)) == len(set().union(*streams)) == 12
    order = itemgetter("organization_id", "agent_id", "created_at")
    for rows in found:
        places = [order(row | {"agent_id": row["agent_id"] or "~"}) for row in rows]
        assert places == sorted(places)


def test_a_snapshot_can_be_asked_after_a_stream_that_failed(
    operational: Operational, source: Source
) -> None:
    operational.insert("provider_traces", trace(id="a"))
    with source.snapshot() as snapshot:
        with (
            patch.object(snapshot, "statement", return_value="SELECT 1 / 0 AS nothing"),
            snapshot.traces(T0) as traces,
            pytest.raises(SourceError, match="division by zero"),
        ):
            next(traces.streams[0])
        assert snapshot.census(T0).rows == 1
        with snapshot.traces(T0) as traces:
            assert sum(batch.num_rows for batch in traces.streams[0]) == 1


def test_an_hour_can_be_read_again_after_a_stream_that_was_left(
    operational: Operational, source: Source
) -> None:
    operational.insert("provider_traces", *(trace(id=f"{n}", agent_id=f"{n}") for n in range(9)))
    with source.snapshot() as snapshot:
        for _ in range(2):
            with snapshot.traces(T0, connections=2) as traces:
                assert next(traces.streams[0]).num_rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("DROP TABLE steps", "no table steps.*sql/operational/all_steps.sql"),
        ("DROP TABLE provider_traces", "no table provider_traces.*sql/operational/all_traces.sql"),
        (
            "ALTER TABLE steps DROP COLUMN cache_write_tokens",
            "no column cache_write_tokens.*sql/operational/all_steps.sql",
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
        (
            (
                "ALTER TABLE organization_billing_details ALTER updated_at TYPE timestamp, "
                "ALTER created_at TYPE timestamp"
            ),
            "billing.sql does not return valid_from timestamptz; edit that file: ",
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


# What a column of jsonb, which keeps no spaces, has otherwise.
OF_TEXT = {
    "request_json",
    "response_json",
    "llm_config_json",
    "request_size_bytes",
    "response_size_bytes",
    "payload_hash",
}


def test_json_is_read_alike_from_columns_of_all_types(
    operational: Operational, pipeline: Pipeline
) -> None:
    context = '{"plan_type":"own","cost_source":"credits","customer_id":"cus_own"}'
    stored = [
        trace(id="a", agent_tags='["a","b"]', billing_context=context, step_id="step-1"),
        trace(id="b", response_json='{"error":{"type":"x","message":"\\u00fc 🦉"}}'),
        trace(id="c", request_json=None, response_json="null", llm_config=None),
    ]
    operational.insert("provider_traces", *stored)
    only_metadata = trace(id="d", agent_tags='["a"]', step_id="step-2")
    for name in ("request_json", "response_json", "llm_config"):
        del only_metadata[name]
    operational.insert("provider_trace_metadata", only_metadata)
    operational.insert("steps", {"id": "step-2", "prompt_tokens": 7, "error_data": '{"a":1}'})
    columns = {
        "provider_traces": "request_json response_json llm_config agent_tags billing_context",
        "provider_trace_metadata": "agent_tags",
        "steps": "error_data",
    }
    rows = {}
    for json_type in ("json", "text", "jsonb"):
        for table, names in columns.items():
            for name in names.split():
                operational.execute(
                    f"ALTER TABLE {table} ALTER {name} TYPE {json_type} USING {name}::{json_type}"
                )
        assert pipeline.load().rows == 4
        rows[json_type] = pipeline.rows()
    assert [row["total_tokens"] for row in rows["json"]] == [15, 0, 0, 7]
    assert rows["json"][0]["agent_tags"] == ["a", "b"]
    assert rows["json"][0]["billing_plan_type"] == "own"
    assert rows["text"] == rows["json"]
    for row, of_json in zip(rows["jsonb"], rows["json"], strict=True):
        assert {name for name in row if row[name] != of_json[name]} <= OF_TEXT
