-- The rows of llm_usage_hourly that the calls of {table} within {filter} add up to. One row per
-- hour and combination of who called what and who pays for it.
SELECT
    toStartOfHour(traces.created_at, 'UTC') AS hour,
    traces.organization_id AS organization_id,
    traces.project_id AS project_id,
    traces.agent_id AS agent_id,
    traces.provider AS provider,
    traces.model AS model,
    traces.call_type AS call_type,
    traces.billing_plan_type AS billing_plan_type,
    traces.billing_cost_source AS billing_cost_source,
    traces.billing_customer_id AS billing_customer_id,
    traces.is_byok AS is_byok,
    count() AS calls,
    countIf(traces.is_error = 1) AS errors,
    sum(toUInt128(traces.prompt_tokens)) AS prompt_tokens,
    sum(toUInt128(traces.completion_tokens)) AS completion_tokens,
    sum(toUInt128(traces.total_tokens)) AS total_tokens,
    ifNull(sum(toUInt128(traces.cached_input_tokens)), 0) AS cached_input_tokens,
    ifNull(sum(toUInt128(traces.cache_write_tokens)), 0) AS cache_write_tokens,
    ifNull(sum(toUInt128(traces.reasoning_tokens)), 0) AS reasoning_tokens,
    sum(toUInt128(traces.request_size_bytes)) AS request_size_bytes,
    sum(toUInt128(traces.response_size_bytes)) AS response_size_bytes,
    quantilesBFloat16StateIf(0.5, 0.95)(traces.latency_ms, traces.latency_ms > 0) AS latency_ms,
    ifNull(sum(traces.cost_usd), 0) AS cost_usd,
    ifNull(sum(traces.input_cost_usd), 0) AS input_cost_usd,
    ifNull(sum(traces.cached_input_cost_usd), 0) AS cached_input_cost_usd,
    ifNull(sum(traces.cache_write_cost_usd), 0) AS cache_write_cost_usd,
    ifNull(sum(traces.output_cost_usd), 0) AS output_cost_usd,
    countIf(isNull(traces.cost_usd)) AS unpriced_calls,
    ifNull(sum(traces.other_cost_usd), 0) AS other_cost_usd,
    countIf(isNull(traces.cost_usd) AND traces.usage_source = 'none') AS unmetered_calls
FROM {table} AS traces
WHERE {filter}
GROUP BY
    hour, organization_id, project_id, agent_id, provider, model, call_type,
    billing_plan_type, billing_cost_source, billing_customer_id, is_byok
