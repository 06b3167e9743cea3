-- The traces of a window, neither deleted nor folded, and the columns of their step. One row per trace.
-- {window} is the condition of the window, {row_hash} the hash of a row. {slice} is the condition that a
-- trace is of this connection's agents, where several connections under one snapshot share the work.
--
-- An agent resends its prompt, tools and messages with every call, so that its calls are nearly the same
-- text: side by side they take a fifth of the space that they take in the order of time.
--
-- latency_ms       llm_request_ns in milliseconds, rounded half up; 0: not measured, or negative
-- step_*           columns of the trace's step; NULL: it has no step; soft-deleted steps count too
-- row_hash         the row's part of the ledger's source_hash
-- step_is_of_hour  whether the step is one of steps_of_hour.sql
-- takes_step_usage whether a metadata-only trace carries its step's tokens
-- is_too_wide      whether the trace is one of the setting llm_traces.too_wide, a JSON list of ids (see
--                  too_wide.sql): it then comes without its payloads, and without any other value that
--                  is large enough to matter
SELECT
    t.trace_key AS id,
    t.organization_id,
    s.project_id,
    t.agent_id,
    CASE
        WHEN w.id IS NULL OR octet_length(t.agent_tags) < 268435456 THEN t.agent_tags
    END AS agent_tags,
    t.run_id,
    t.user_id,
    t.step_id,
    s.trace_id,
    t.call_type,
    t.origin = 2 AS is_metadata_only,
    t.origin = 2 AND v.id IS NULL AS takes_step_usage,
    s.provider_name AS step_provider,
    s.provider_category AS step_provider_category,
    s.model AS step_model,
    s.model_handle AS step_model_handle,
    s.status AS step_status,
    s.stop_reason AS step_stop_reason,
    s.error_type AS step_error_type,
    s.error_data AS step_error_data,
    s.prompt_tokens::bigint AS step_prompt_tokens,
    s.completion_tokens::bigint AS step_completion_tokens,
    s.total_tokens::bigint AS step_total_tokens,
    s.cached_input_tokens::bigint AS step_cached_input_tokens,
    s.cache_write_tokens::bigint AS step_cache_write_tokens,
    s.reasoning_tokens::bigint AS step_reasoning_tokens,
    CASE
        WHEN m.llm_request_ns > 0
            THEN m.llm_request_ns::bigint / 1000000
                + (m.llm_request_ns::bigint % 1000000 >= 500000)::int
        ELSE 0
    END AS latency_ms,
    w.id IS NOT NULL AS is_too_wide,
    CASE WHEN w.id IS NULL THEN t.request_json END AS request_json,
    CASE WHEN w.id IS NULL THEN t.response_json END AS response_json,
    CASE
        WHEN w.id IS NULL OR octet_length(t.llm_config::text) < 268435456 THEN t.llm_config
    END AS llm_config,
    CASE
        WHEN w.id IS NULL OR octet_length(t.billing_context) < 268435456 THEN t.billing_context
    END AS billing_context,
    t.created_at,
    {row_hash} AS row_hash,
    (
        s.created_at >= {start}
        AND s.created_at < {end} - interval '1 minute'
        AND NOT s.is_deleted
    ) IS TRUE AS step_is_of_hour
FROM all_traces AS t
LEFT JOIN all_steps AS s ON s.id = t.step_id
LEFT JOIN step_metrics AS m ON m.id = t.step_id
LEFT JOIN superseded_steps AS v ON t.origin = 2 AND v.id = t.id
LEFT JOIN json_array_elements_text(current_setting('llm_traces.too_wide')::json) AS w (id)
    ON t.origin = 1 AND w.id = t.id
WHERE {window}
    AND {slice}
    AND NOT t.is_deleted
    AND (t.origin, t.id) NOT IN (
        SELECT f.origin, f.id
        FROM json_to_recordset(current_setting('llm_traces.folded')::json) AS f (origin int, id text)
    )
ORDER BY t.organization_id COLLATE "C", t.agent_id COLLATE "C", t.created_at
