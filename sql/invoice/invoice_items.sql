-- What each customer is to pay for within the window: one row per plan, what pays, provider, model,
-- own key or not, prices and meter; see meter_events.sql for the meters. Every call is in one row
-- of the meter llm_calls, whose amount is the fee that a few models have per call.
-- list_amount_usd is NULL where the calls have no price; all of them add up to sum(cost_usd).
SELECT
    customer,
    plan,
    cost_source,
    provider,
    model,
    is_byok,
    price_version,
    of_meter.1 AS meter,
    of_meter.2 AS quantity,
    of_meter.3 AS list_amount_usd
FROM
(
    WITH
        least(ifNull(cached_input_tokens, 0), prompt_tokens) AS cached,
        least(ifNull(cache_write_tokens, 0), toUInt64(prompt_tokens - cached)) AS written
    SELECT
        billing_customer_id AS customer,
        billing_plan_type AS plan,
        billing_cost_source AS cost_source,
        provider,
        model,
        is_byok,
        price_version,  -- '' where there is no price
        count() AS calls,
        sum(toUInt64(prompt_tokens - cached - written)) AS sum_uncached,
        sum(cached) AS sum_cached,
        sum(written) AS sum_written,
        sum(completion_tokens) AS sum_output,
        sum(input_cost_usd) AS input_cost,
        sum(cached_input_cost_usd) AS cached_cost,
        sum(cache_write_cost_usd) AS written_cost,
        sum(output_cost_usd) AS output_cost,
        sum(cost_usd) - input_cost - output_cost AS fees
    FROM llm_traces
    WHERE created_at >= {start:DateTime64(6, 'UTC')} AND created_at < {end:DateTime64(6, 'UTC')}
    GROUP BY customer, plan, cost_source, provider, model, is_byok, price_version
)
ARRAY JOIN [
    ('llm_calls', calls, fees),
    ('llm_uncached_input_tokens', sum_uncached, input_cost - cached_cost - written_cost),
    ('llm_cached_input_tokens', sum_cached, cached_cost),
    ('llm_cache_write_tokens', sum_written, written_cost),
    ('llm_output_tokens', sum_output, output_cost)
] AS of_meter
WHERE quantity > 0 OR list_amount_usd != 0
ORDER BY customer, is_byok, plan, cost_source, provider, model, price_version, meter
