-- The traces of the steps asked for, in whatever hour. One row per stored row that is not deleted, folded
-- rows included; the rows of a step in the order of time. $1 are the ids of the steps.
--
-- id            the id of the target, without "provider_trace-"
-- origin        1: a row of provider_traces, 2: of provider_trace_metadata
-- created_at    a time outside the years 1 to 9999 as the first or the last moment of these: Python has no
--               others
-- response_json as text; NULL: the trace has none, or one too large to be sent beside other columns
SELECT
    t.step_id, t.trace_key AS id, t.origin, t.call_type,
    least(
        greatest(t.created_at, '0001-01-01 00:00+00'), '9999-12-31 23:59:59.999999+00'
    ) AS created_at,
    CASE
        WHEN octet_length(t.response_json::text) < 268435456 THEN t.response_json::text
    END AS response_json
FROM all_traces AS t
WHERE NOT t.is_deleted
    AND t.step_id = ANY ($1)
ORDER BY t.step_id, t.created_at, t.id
