-- The sums of rows of llm_usage_hourly, hour by hour. {rows} is a query that returns them: from the
-- table, or computed from llm_traces. One row per hour that has any. The content hash covers who
-- called and who pays too: a restated plan leaves the sums as they are.
SELECT
    usage.hour AS hour,
    count() AS rows,
    sum(toUInt128(usage.calls)) AS calls,
    sum(toUInt128(usage.errors)) AS errors,
    sum(usage.prompt_tokens) AS prompt_tokens,
    sum(usage.completion_tokens) AS completion_tokens,
    sum(usage.total_tokens) AS total_tokens,
    sum(usage.cached_input_tokens) AS cached_input_tokens,
    sum(usage.cache_write_tokens) AS cache_write_tokens,
    sum(usage.reasoning_tokens) AS reasoning_tokens,
    sum(usage.request_size_bytes) AS request_size_bytes,
    sum(usage.response_size_bytes) AS response_size_bytes,
    sum(usage.cost_usd) AS cost_usd,
    sum(usage.input_cost_usd) AS input_cost_usd,
    sum(usage.cached_input_cost_usd) AS cached_input_cost_usd,
    sum(usage.cache_write_cost_usd) AS cache_write_cost_usd,
    sum(usage.output_cost_usd) AS output_cost_usd,
    sum(toUInt128(usage.unpriced_calls)) AS unpriced_calls,
    sum(usage.other_cost_usd) AS other_cost_usd,
    sum(toUInt128(usage.unmetered_calls)) AS unmetered_calls,
    sum(cityHash64(
        usage.organization_id, usage.project_id, usage.agent_id, usage.provider, usage.model,
        usage.call_type, usage.billing_plan_type, usage.billing_cost_source,
        usage.billing_customer_id, usage.is_byok, usage.calls, usage.errors, usage.prompt_tokens,
        usage.completion_tokens, usage.total_tokens, usage.cached_input_tokens,
        usage.cache_write_tokens, usage.reasoning_tokens, usage.request_size_bytes,
        usage.response_size_bytes, finalizeAggregation(usage.latency_ms), usage.cost_usd,
        usage.input_cost_usd, usage.cached_input_cost_usd, usage.cache_write_cost_usd,
        usage.output_cost_usd, usage.unpriced_calls, usage.other_cost_usd, usage.unmetered_calls
    )) AS content_hash,
    -- Where no latency was measured, it is not a number.
    arrayMap(ms -> ifNotFinite(ms, 0), quantilesBFloat16Merge(0.5, 0.95)(usage.latency_ms)) AS latency
FROM ({rows}) AS usage
GROUP BY hour
ORDER BY hour
