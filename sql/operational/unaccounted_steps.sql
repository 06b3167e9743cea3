-- Asked of an hour without any trace: did the agent server work all the same? One row.
--
-- steps_without_trace steps of the hour that no trace belongs to, in whatever hour that trace might
--                     lie; those of the last minute are left out, their trace may still be on its way
-- has_traces          whether the source holds any trace at all
-- has_earlier_traces  whether it holds any from before the hour; if it holds none, but has some from
--                     after it, the traces of this hour were pruned and their steps were kept
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
