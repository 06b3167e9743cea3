-- The stored rows of an hour that give way to another row of their id: provider_traces comes before
-- provider_trace_metadata, then the later updated_at. Usually there is none. One row per stored row:
-- origin, id, is_deleted. {window} is the condition of the hour.
SELECT origin, id, is_deleted
FROM (
    SELECT
        origin, id, is_deleted,
        row_number() OVER (
            PARTITION BY trace_key ORDER BY origin, updated_at DESC NULLS LAST, id DESC
        ) AS place
    FROM all_traces AS t
    WHERE {window}
        -- Ids that occur twice are found by hashing, so that nothing is sorted where there is none.
        AND trace_key IN (
            SELECT trace_key
            FROM all_traces AS t
            WHERE {window}
            GROUP BY trace_key
            HAVING count(*) > 1
        )
) AS ranked
WHERE place > 1
