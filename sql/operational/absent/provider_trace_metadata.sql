-- Stands in for provider_trace_metadata where the deployment has no such table.
SELECT
    NULL::text AS id, NULL::timestamptz AS created_at, NULL::timestamptz AS updated_at,
    NULL::bool AS is_deleted, NULL::text AS org_id, NULL::text AS organization_id,
    NULL::text AS agent_id, NULL::json AS agent_tags, NULL::text AS run_id,
    NULL::text AS step_id, NULL::text AS call_type
WHERE false
