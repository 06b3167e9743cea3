-- Every trace of the source. A deployment that stores metadata only writes to provider_trace_metadata
-- instead of provider_traces, so both are read. One row per stored row; nothing is filtered or folded.
-- The other statements read this one as all_traces. The planner inlines it, so that a column which a
-- statement does not name (a payload, above all) is never fetched. Texts are cast to text, so that both
-- tables have the same types: else a condition on all_traces would not reach the tables' indexes.
--
-- origin           the table, as a number; where both hold an id, the row of provider_traces (1) counts
-- trace_key        the id without "provider_trace-": the id of the target
-- *_json, llm_config
--                  in their stored type: a cast to text would copy each payload twice more
-- place            the row's place in provider_traces, see places.sql; NULL where that is a view
-- billing_context, user_id
--                  NULL where the deployment has no such column: an unqualified name that the inner
--                  SELECT does not find in its own table is taken from "absent" outside
SELECT
    1 AS origin, t.id::text AS id,
    CASE WHEN starts_with(t.id, 'provider_trace-') THEN substr(t.id, 16) ELSE t.id END AS trace_key,
    t.created_at, t.updated_at, t.is_deleted IS TRUE AS is_deleted,
    coalesce(nullif(t.org_id, ''), t.organization_id)::text AS organization_id,
    t.agent_id::text AS agent_id, t.agent_tags::text AS agent_tags, t.run_id::text AS run_id,
    t.step_id::text AS step_id, t.call_type::text AS call_type, t.user_id::text AS user_id,
    t.request_json, t.response_json, t.llm_config,
    t.billing_context::text AS billing_context, t.place
FROM (SELECT NULL::json AS billing_context, NULL::text AS user_id, NULL::tid AS ctid) AS absent
CROSS JOIN LATERAL (
    SELECT
        id, created_at, updated_at, is_deleted, org_id, organization_id, agent_id, agent_tags,
        run_id, step_id, call_type, user_id, request_json, response_json, llm_config,
        billing_context, ctid AS place
    FROM provider_traces
) AS t
UNION ALL
SELECT
    2 AS origin, t.id::text AS id,
    CASE WHEN starts_with(t.id, 'provider_trace-') THEN substr(t.id, 16) ELSE t.id END AS trace_key,
    t.created_at, t.updated_at, t.is_deleted IS TRUE AS is_deleted,
    coalesce(nullif(t.org_id, ''), t.organization_id)::text AS organization_id,
    t.agent_id::text AS agent_id, t.agent_tags::text AS agent_tags, t.run_id::text AS run_id,
    t.step_id::text AS step_id, t.call_type::text AS call_type, t.user_id::text AS user_id,
    NULL AS request_json, NULL AS response_json, NULL AS llm_config,
    t.billing_context::text AS billing_context, NULL::tid AS place
FROM (SELECT NULL::json AS billing_context, NULL::text AS user_id) AS absent
CROSS JOIN LATERAL (
    SELECT
        id, created_at, updated_at, is_deleted, org_id, organization_id, agent_id, agent_tags,
        run_id, step_id, call_type, user_id, billing_context
    FROM provider_trace_metadata
) AS t
