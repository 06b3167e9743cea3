"""A day of the demo against an independent query: the values of all columns that SQL can derive."""

from datetime import UTC, datetime
from urllib.parse import urlsplit

import clickhouse_connect
import pyarrow as pa
from adbc_driver_postgresql import dbapi

from llm_trace_pipeline.batches.extract import extract_hour
from llm_trace_pipeline.batches.history import capture_billing
from llm_trace_pipeline.batches.rules import Rules
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.clickhouse.cluster import loader_of
from llm_trace_pipeline.demo.traffic import add_traffic
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.source.postgres import Source
from tests.harness.operational import Operational

START = datetime(2026, 3, 2, 15, tzinfo=UTC)  # the demo changes a plan on the day after its first
HOURS = 24

# Written from the contract, not from the pipeline's own SQL.
EXPECTED = """
WITH billing AS (
    SELECT
        organization_id, plan_type, cost_source, stripe_customer_id,
        coalesce(updated_at, created_at) AS since,
        lead(coalesce(updated_at, created_at)) OVER version AS until,
        row_number() OVER version AS number
    FROM organization_billing_details
    WINDOW version AS (PARTITION BY organization_id ORDER BY coalesce(updated_at, created_at))
), traces AS (
    SELECT
        id, org_id, organization_id, agent_id, agent_tags, run_id, step_id, call_type, created_at,
        request_json, response_json, llm_config, billing_context, is_deleted, false AS metadata
    FROM provider_traces
    UNION ALL
    SELECT
        id, org_id, organization_id, agent_id, agent_tags, run_id, step_id, call_type, created_at,
        NULL, NULL, NULL, NULL, is_deleted, true
    FROM provider_trace_metadata AS m
    WHERE NOT EXISTS (SELECT FROM provider_traces AS p WHERE p.id = m.id)
), flat AS (
    SELECT
        *, coalesce(nullif(org_id, ''), organization_id) AS organization,
        coalesce(billing_context ->> 'plan_type', '') AS own_plan,
        coalesce(billing_context ->> 'cost_source', '') AS own_source,
        coalesce(billing_context ->> 'customer_id', '') AS own_customer,
        coalesce(
            billing_context ->> 'plan_type', billing_context ->> 'cost_source',
            billing_context ->> 'customer_id', ''
        ) <> '' AS is_own
    FROM traces
    WHERE NOT coalesce(is_deleted, false)
)
SELECT
    replace(t.id, 'provider_trace-', '') AS id,
    t.organization AS organization_id,
    coalesce(s.project_id, '') AS project_id,
    coalesce(t.agent_id, '') AS agent_id,
    ARRAY(
        SELECT tag FROM json_array_elements_text(
            CASE WHEN json_typeof(t.agent_tags) = 'array' THEN t.agent_tags ELSE '[]' END
        ) AS tag
        WHERE tag IS NOT NULL
    ) AS agent_tags,
    coalesce(t.run_id, '') AS run_id,
    coalesce(t.step_id, '') AS step_id,
    coalesce(s.trace_id, '') AS trace_id,
    coalesce(nullif(t.call_type, ''), 'unknown') AS call_type,
    coalesce(
        nullif(t.llm_config ->> 'model_endpoint_type', ''), nullif(s.provider_name, ''), 'unknown'
    ) AS provider,
    (coalesce(
        nullif(t.llm_config ->> 'provider_category', ''), s.provider_category, ''
    ) = 'byok')::int AS is_byok,
    coalesce(octet_length(t.request_json::text), 0) AS request_size_bytes,
    coalesce(octet_length(t.response_json::text), 0) AS response_size_bytes,
    greatest(0, floor(coalesce(m.llm_request_ns, 0) / 1e6 + 0.5))::bigint AS latency_ms,
    coalesce(t.request_json::text, '') AS request_json,
    coalesce(t.response_json::text, '') AS response_json,
    coalesce(nullif(t.llm_config::text, 'null'), '{}') AS llm_config_json,
    coalesce(CASE WHEN t.is_own THEN t.own_plan ELSE b.plan_type END, '') AS billing_plan_type,
    coalesce(CASE WHEN t.is_own THEN t.own_source ELSE b.cost_source END, '')
        AS billing_cost_source,
    coalesce(CASE WHEN t.is_own THEN t.own_customer ELSE b.stripe_customer_id END, '')
        AS billing_customer_id,
    t.created_at,
    CASE
        WHEN t.is_own THEN 'request'
        WHEN b.organization_id IS NULL THEN 'none'
        WHEN b.since > t.created_at THEN 'first_known'
        ELSE 'as_of'
    END AS billing_match
FROM flat AS t
LEFT JOIN steps AS s ON s.id = t.step_id
LEFT JOIN step_metrics AS m ON m.id = t.step_id
LEFT JOIN billing AS b ON b.organization_id = t.organization
    AND (b.since <= t.created_at OR b.number = 1)
    AND (b.until IS NULL OR b.until > t.created_at)
ORDER BY 1
"""


def test_a_day_of_the_demo_equals_an_independent_query(
    operational: Operational,
    source: Source,
    store: BatchStore,
    database: Database,
    settings: Settings,
) -> None:
    until = START + HOURS * HOUR
    add_traffic(operational.url, START, until)
    history = capture_billing(source, store.files).history
    loader = loader_of(database, store)
    hours = [START + HOUR * n for n in range(HOURS)]
    for number, hour in enumerate(hours):
        extract_hour(source, store, Rules(history), hour)
        [result] = loader.load([hour], frozenset(hours[number + 1 :]))
        assert result.differences == ()
        assert result.repaired_hours == ()

    with dbapi.connect(operational.url) as connection, connection.cursor() as cursor:
        cursor.execute(EXPECTED)
        expected = cursor.fetch_arrow_table()
    names = ", ".join(expected.column_names)
    with clickhouse_connect.get_client(
        interface="chdb", path=urlsplit(settings.clickhouse_endpoint).path
    ) as client:
        found = client.query_arrow(f"SELECT {names} FROM llm_traces ORDER BY id")
    assert found.num_rows == expected.num_rows > 10_000
    for name in expected.column_names:
        theirs = expected.column(name).combine_chunks()
        ours = found.column(name).combine_chunks().cast(theirs.type)
        different = [
            (found.column("id")[row].as_py(), ours[row].as_py(), theirs[row].as_py())
            for row in range(found.num_rows if not ours.equals(theirs) else 0)
            if ours[row] != theirs[row]
        ]
        assert not different, f"{name}: {len(different)} differ, such as {different[:3]}"
    matches = set(found.column("billing_match").to_pylist())
    assert matches == {"request", "as_of", "none"}
    plans_of_the_changing_one = pa.compute.value_counts(
        found.filter(
            pa.compute.is_in(found.column("organization_id"), _changes_plan(expected))
        ).column("billing_plan_type")
    )
    assert len(plans_of_the_changing_one) >= 2


def _changes_plan(expected: pa.Table) -> pa.Array:
    pairs = expected.group_by(["organization_id", "billing_plan_type"]).aggregate([])
    counts = pairs.group_by("organization_id").aggregate([("billing_plan_type", "count")])
    return (
        counts.filter(pa.compute.greater(counts.column("billing_plan_type_count"), 1))
        .column("organization_id")
        .combine_chunks()
    )
