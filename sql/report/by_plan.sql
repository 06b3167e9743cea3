-- What was called within the window, by plan and by what pays for it. Calls by own keys cost nothing.
-- {traces} are the rows of llm_traces, with columns as ours (see clickhouse/held.py).
SELECT
    billing_plan_type AS plan,
    billing_cost_source AS cost_source,
    count() AS calls,
    sum(toUInt128(prompt_tokens)) AS prompt,
    sum(toUInt128(completion_tokens)) AS completion,
    sum(toUInt128(cached_input_tokens)) AS cached,
    sum(toUInt128(cache_write_tokens)) AS cache_written,
    sum(toUInt128(reasoning_tokens)) AS reasoning,
    round(sumIf(cost_usd, is_byok = 0), 2) AS usd,
    countIf(is_error = 1) AS errors,
    toUInt64(quantileExactIf(0.5)(latency_ms, latency_ms > 0)) AS p50_ms,
    toUInt64(quantileExactIf(0.95)(latency_ms, latency_ms > 0)) AS p95_ms
FROM {traces}
WHERE created_at >= {start:DateTime64(6, 'UTC')} AND created_at < {end:DateTime64(6, 'UTC')}
GROUP BY plan, cost_source
ORDER BY calls DESC, plan, cost_source
