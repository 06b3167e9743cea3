-- How long the calls within the window took, by model: the twelve that were called most. Calls that
-- were not measured, or that failed, are left out.
-- {traces} are the rows of llm_traces, with columns as ours (see clickhouse/held.py).
SELECT
    model AS name,
    count() AS calls,
    toUInt64(quantileExact(0.5)(latency_ms)) AS p50_ms,
    toUInt64(quantileExact(0.95)(latency_ms)) AS p95_ms
FROM {traces}
WHERE created_at >= {start:DateTime64(6, 'UTC')} AND created_at < {end:DateTime64(6, 'UTC')}
    AND latency_ms > 0 AND is_error = 0
GROUP BY name
ORDER BY calls DESC, name
LIMIT 12
