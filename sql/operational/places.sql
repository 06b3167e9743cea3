-- Where in provider_traces the rows of each hour lie, told by one scan of the table: what a run asks
-- where no index finds an hour. It holds for its own snapshot only. One row per hour that has any.
--
-- first, last  the places (ctid) of the first and of the last row; other hours' rows may lie between
SELECT
    date_trunc('hour', created_at, 'UTC') AS hour,
    min(place)::text AS first,
    max(place)::text AS last
FROM all_traces
WHERE origin = 1
    AND created_at >= {start}
    AND created_at < {end}
GROUP BY 1
