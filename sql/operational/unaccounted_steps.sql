-- Whether the agent server worked in an hour that has no trace. One row. {start} and {end} are the
-- bounds of the hour.
--
-- steps_without_trace steps of the hour that no trace belongs to, in whatever hour the trace might lie;
--                     steps of the last minute are left out: their trace may still be on its way
-- has_traces          whether the source holds any trace at all
-- has_earlier_traces  whether the source holds a trace from before the hour; a source that has traces,
--                     but none from before, pruned the traces of this hour and kept their steps
SELECT
    (
        SELECT count(*)
        FROM steps AS s
        WHERE s.created_at >= {start}
            AND s.created_at < {end} - interval '1 minute'
            AND NOT coalesce(s.is_deleted, false)
            AND NOT EXISTS (SELECT 1 FROM all_traces AS t WHERE t.step_id = s.id)
    ) AS steps_without_trace,
    EXISTS (SELECT 1 FROM all_traces) AS has_traces,
    EXISTS (
        SELECT 1 FROM all_traces
        WHERE created_at < {start}
    ) AS has_earlier_traces
