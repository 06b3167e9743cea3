-- Every step of the source with what its traces need of it, soft-deleted steps too. One row per step.
-- The other statements read this one as all_steps. The planner inlines it.
--
-- status, stop_reason, error_type, error_data, model_handle
--             NULL where the deployment has no such column, see all_traces.sql
-- status      in lower case: the server's own type has the values in capitals
-- error_data  as text; NULL too where it has more than 512 kB, so that it never makes a row too wide
--             for one message (too_wide.sql). Its CASE has a second use. PostgreSQL joins only what the
--             CASE returns, of which it knows no width. Of the bare column, it takes the mean width of
--             the few steps that failed for that of all steps, and then plans no hash join.
SELECT
    s.id, s.created_at, s.is_deleted IS TRUE AS is_deleted, s.project_id, s.trace_id, s.provider_name, s.provider_category, s.model,
    s.prompt_tokens, s.completion_tokens, s.total_tokens, s.cached_input_tokens,
    s.cache_write_tokens, s.reasoning_tokens,
    lower(s.status::text) AS status, s.stop_reason::text AS stop_reason,
    s.error_type::text AS error_type, s.model_handle::text AS model_handle,
    CASE
        WHEN octet_length(s.error_data::text) < 524288 THEN s.error_data::text
    END AS error_data
FROM (
    SELECT
        NULL::text AS status, NULL::text AS stop_reason, NULL::text AS error_type,
        NULL::text AS error_data, NULL::text AS model_handle
) AS absent
CROSS JOIN LATERAL (
    SELECT
        id, created_at, is_deleted, project_id, trace_id, provider_name, provider_category, model,
        prompt_tokens, completion_tokens, total_tokens, cached_input_tokens, cache_write_tokens,
        reasoning_tokens, status, stop_reason, error_type, error_data, model_handle
    FROM steps
) AS s
