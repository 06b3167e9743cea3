-- What each customer is to pay for within the window: one row per plan, what pays, provider, model,
-- own key or not, whose cost it is, prices and meter; see meter_events.sql for the meters. Every call
-- is in one row of the meter llm_calls, which costs nothing by itself, and whose unpriced_calls and
-- unmetered_calls have no cost: they lack a price, or their usage is not known. What is neither of the
-- input nor of the output (fees, and reported costs without their parts) is in a row llm_other_costs.
-- list_amount_usd is NULL where the cost is not known; all of them add up to sum(cost_usd).
-- {traces} are the rows of llm_traces, with columns as ours (see clickhouse/held.py).
SELECT
    customer,
    plan,
    cost_source,
    provider,
    model,
    is_byok,
    cost_basis,
    price_version,
    unpriced_calls,
    unmetered_calls,
    of_meter.1 AS meter,
    of_meter.2 AS quantity,
    if(isNull(cost), NULL, of_meter.3) AS list_amount_usd
FROM
(
    WITH
        least(ifNull(cached_input_tokens, 0), prompt_tokens) AS cached,
        least(ifNull(cache_write_tokens, 0), toUInt64(prompt_tokens - cached)) AS written,
        cost_usd - ifNull(input_cost_usd, 0) - ifNull(output_cost_usd, 0) AS other
    SELECT
        billing_customer_id AS customer,
        billing_plan_type AS plan,
        billing_cost_source AS cost_source,
        provider,
        model,
        is_byok,
        cost_basis,
        price_version,  -- '' where the cost is not of a price
        count() AS calls,
        countIf(isNull(cost_usd) AND usage_source != 'none') AS unpriced_calls,
        countIf(isNull(cost_usd) AND usage_source = 'none') AS unmetered_calls,
        countIf(other != 0) AS calls_with_other,
        sum(toUInt128(toUInt64(prompt_tokens - cached - written))) AS sum_uncached,
        sum(toUInt128(cached)) AS sum_cached,
        sum(toUInt128(written)) AS sum_written,
        sum(toUInt128(completion_tokens)) AS sum_output,
        sum(cost_usd) AS cost,
        sum(ifNull(input_cost_usd, 0)) AS input_cost,
        sum(ifNull(cached_input_cost_usd, 0)) AS cached_cost,
        sum(ifNull(cache_write_cost_usd, 0)) AS written_cost,
        sum(ifNull(output_cost_usd, 0)) AS output_cost,
        sum(ifNull(other, 0)) AS other_cost
    FROM {traces}
    WHERE created_at >= {start:DateTime64(6, 'UTC')} AND created_at < {end:DateTime64(6, 'UTC')}
    GROUP BY customer, plan, cost_source, provider, model, is_byok, cost_basis, price_version
)
ARRAY JOIN [
    ('llm_calls', calls, toDecimal128(0, 18)),
    ('llm_uncached_input_tokens', sum_uncached, input_cost - cached_cost - written_cost),
    ('llm_cached_input_tokens', sum_cached, cached_cost),
    ('llm_cache_write_tokens', sum_written, written_cost),
    ('llm_output_tokens', sum_output, output_cost),
    ('llm_other_costs', calls_with_other, other_cost)
] AS of_meter
WHERE quantity > 0 OR list_amount_usd != 0
ORDER BY
    customer, is_byok, plan, cost_source, provider, model, cost_basis, price_version, meter
