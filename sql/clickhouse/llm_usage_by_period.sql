-- The roll-up {table} by {period}, UTC, as the view {view}: llm_usage_daily or llm_usage_monthly, which
-- are read like tables. {start_of} is the function that returns the period's first day. The costs of
-- calls by an organization's own key, for which nobody else pays, are summed apart.
CREATE OR REPLACE VIEW {view} AS
SELECT
    {start_of}(usage.hour) AS {period},
    usage.organization_id AS organization_id,
    usage.project_id AS project_id,
    usage.agent_id AS agent_id,
    usage.provider AS provider,
    usage.model AS model,
    usage.call_type AS call_type,
    usage.billing_plan_type AS billing_plan_type,
    usage.billing_cost_source AS billing_cost_source,
    usage.billing_customer_id AS billing_customer_id,
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
    ifNotFinite(quantileBFloat16Merge(0.5)(usage.latency_ms), 0) AS p50_latency_ms,
    ifNotFinite(quantileBFloat16Merge(0.95)(usage.latency_ms), 0) AS p95_latency_ms,
    sumIf(usage.cost_usd, usage.is_byok = 0) AS cost_usd,
    sumIf(usage.input_cost_usd, usage.is_byok = 0) AS input_cost_usd,
    sumIf(usage.cached_input_cost_usd, usage.is_byok = 0) AS cached_input_cost_usd,
    sumIf(usage.cache_write_cost_usd, usage.is_byok = 0) AS cache_write_cost_usd,
    sumIf(usage.output_cost_usd, usage.is_byok = 0) AS output_cost_usd,
    sumIf(usage.cost_usd, usage.is_byok = 1) AS byok_list_cost_usd,
    sum(toUInt128(usage.unpriced_calls)) AS unpriced_calls,
    sumIf(usage.other_cost_usd, usage.is_byok = 0) AS other_cost_usd,
    sum(toUInt128(usage.unmetered_calls)) AS unmetered_calls
FROM {table} AS usage
GROUP BY
    {period}, organization_id, project_id, agent_id, provider, model, call_type,
    billing_plan_type, billing_cost_source, billing_customer_id
