-- The exact median and 95th percentile, hour by hour, of the latencies that were measured in {table}
-- within {filter}: the least latency that so many of the calls do not exceed.
SELECT
    toStartOfHour(created_at, 'UTC') AS hour,
    quantilesExactWeighted(0.5, 0.95)(latency_ms, 1) AS latency
FROM {table}
WHERE {filter} AND latency_ms > 0
GROUP BY hour
