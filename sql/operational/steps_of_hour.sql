-- The number of steps of an hour whose trace must be there: those that unaccounted_steps.sql looks for. One
-- row. {start} and {end} are the bounds of the hour.
SELECT count(*) AS number
FROM all_steps AS s
WHERE s.created_at >= {start}
    AND s.created_at < {end} - interval '1 minute'
    AND NOT s.is_deleted
