-- Stands in for step_metrics where the deployment has no such table.
SELECT NULL::text AS id, NULL::bigint AS llm_request_ns
WHERE false
