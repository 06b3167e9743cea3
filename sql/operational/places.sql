-- The places of hours in provider_traces, found by one scan of the table. A run asks for them where no
-- index finds an hour. They hold in the snapshot of the scan only. One row per hour that has any rows.
-- {start} and {end} are the bounds of the run's hours.
--
-- first, last  the places (ctid) of the first and of the last row; rows of other hours may lie between
SELECT
    date_trunc('hour', created_at, 'UTC') AS hour,
    min(place)::text AS first,
    max(place)::text AS last
FROM all_traces
WHERE origin = 1
    AND created_at >= {start}
    AND created_at < {end}
GROUP BY 1
