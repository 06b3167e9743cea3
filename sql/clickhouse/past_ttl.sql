-- The last hour of which a TTL, {expression}, has deleted rows by now, of the last 30 years; long ago
-- where it deleted none. ClickHouse itself evaluates it for the start of the hours, as it does for a row
-- whose {column} has the type {type}.
SELECT max(starts_at) AS last_past
FROM (
    SELECT
        toStartOfHour(now('UTC'), 'UTC') - toIntervalHour(number) AS starts_at,
        CAST(starts_at, {type}) AS {column}
    FROM numbers(30 * 366 * 24)
)
WHERE ({expression}) <= now()
