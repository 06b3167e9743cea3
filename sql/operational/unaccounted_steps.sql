-- The steps of an hour that no trace belongs to, in whatever hour the trace might lie. One row. {start} and
-- {end} are the bounds of the hour, {window} is the condition that a trace is of it.
--
-- steps how many there are
-- calls of these, the steps that called a model: they name it, and have tokens or an error
--
-- Left out are soft-deleted steps, the steps of the last minute, whose trace may still be on its way, and
-- where the source holds traces, the steps from before the first one: their traces were pruned.
--
-- Nearly every step has its trace in its own hour, and these are found together, by one pass over the
-- hour. Of the few steps that are left over, an array of ids makes the planner use the index of step_id.
SELECT
    count(*) AS steps,
    count(*) FILTER (WHERE is_call) AS calls
FROM (
    WITH left_over AS MATERIALIZED (
        SELECT
            s.id, s.created_at,
            s.model <> ''
            AND (
                s.prompt_tokens > 0 OR s.completion_tokens > 0 OR s.total_tokens > 0
                OR s.error_type <> '' OR s.status = 'failed' OR s.stop_reason = 'llm_api_error'
            ) AS is_call
        FROM all_steps AS s
        WHERE s.created_at >= {start}
            AND s.created_at < {end} - interval '1 minute'
            AND NOT s.is_deleted
            AND NOT EXISTS (
                SELECT 1
                FROM all_traces AS t
                WHERE {window}
                    AND t.step_id = s.id
            )
    ),

    traced AS MATERIALIZED (
        SELECT t.step_id
        FROM all_traces AS t
        WHERE t.step_id = ANY (ARRAY(SELECT s.id FROM left_over AS s))
    )

    SELECT s.is_call
    FROM left_over AS s
    WHERE NOT EXISTS (SELECT 1 FROM traced AS t WHERE t.step_id = s.id)
        AND (
            NOT EXISTS (SELECT 1 FROM all_traces)
            OR EXISTS (
                SELECT 1 FROM all_traces
                WHERE created_at < {start}
            )
            OR s.created_at >= (
                SELECT min(t.created_at) FROM all_traces AS t
                WHERE {window}
            )
        )
) AS without_trace
