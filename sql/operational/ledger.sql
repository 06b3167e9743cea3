-- What the source holds, hour by hour, told without reading a payload. One row per hour that has any.
--
-- rows          stored rows that are not deleted, folded ones included
-- deleted       soft-deleted rows
-- newest_change the latest updated_at of a trace
-- source_hash   a sum over the rows, so that their order does not count; every column that a load
--               reads and that is no payload enters it
SELECT
    date_trunc('hour', t.created_at, 'UTC') AS hour,
    count(*) FILTER (WHERE NOT t.is_deleted) AS rows,
    count(*) FILTER (WHERE t.is_deleted) AS deleted,
    max(t.updated_at) AS newest_change,
    (sum(hashtextextended(concat_ws(
        chr(31), t.origin, t.id, extract(epoch FROM t.created_at), extract(epoch FROM t.updated_at),
        t.is_deleted, coalesce(t.organization_id, ''), coalesce(t.agent_id, ''),
        coalesce(t.run_id, ''), coalesce(t.step_id, ''), coalesce(t.call_type, ''),
        coalesce(t.agent_tags, ''), coalesce(t.billing_context, ''), v.id IS NOT NULL,
        coalesce(s.project_id, ''), coalesce(s.trace_id, ''), coalesce(s.provider_name, ''),
        coalesce(s.provider_category, ''), coalesce(s.model, ''),
        coalesce(s.prompt_tokens, -1), coalesce(s.completion_tokens, -1),
        coalesce(s.total_tokens, -1), coalesce(s.cached_input_tokens, -1),
        coalesce(s.cache_write_tokens, -1), coalesce(s.reasoning_tokens, -1),
        coalesce(m.llm_request_ns, -1)
    ), 0)::numeric) % 18446744073709551616)::text AS source_hash
FROM all_traces AS t
LEFT JOIN steps AS s ON s.id = t.step_id
LEFT JOIN step_metrics AS m ON m.id = t.step_id
LEFT JOIN superseded_steps AS v ON t.origin = 2 AND v.id = t.id
WHERE t.created_at >= current_setting('llm_traces.start')::timestamptz
    AND t.created_at < current_setting('llm_traces.end')::timestamptz
GROUP BY 1
