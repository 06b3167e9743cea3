-- How many traces are of no hour that is ever loaded: their created_at is missing, lies more than a day
-- ahead (infinity does), or before 1970 (-infinity does). One row.
SELECT count(*) AS rows
FROM all_traces
WHERE created_at IS NULL OR created_at < '1970-01-01 00:00+00' OR created_at > now() + interval '1 day'
