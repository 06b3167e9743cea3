-- What each Stripe customer used within the window, by meter and UTC day: one row per meter event.
-- Left out is what no customer uses of ours: calls without a customer, and calls by their own key.
-- Some responses report more cached or cache-written tokens than input. They are cut to it, so that
-- the three input meters add up to prompt_tokens.
-- {traces} are the rows of llm_traces, with columns as ours (see clickhouse/held.py).
SELECT customer, day, meter.1 AS event_name, meter.2 AS value
FROM
(
    WITH
        least(ifNull(cached_input_tokens, 0), prompt_tokens) AS cached,
        least(ifNull(cache_write_tokens, 0), toUInt64(prompt_tokens - cached)) AS written
    SELECT
        billing_customer_id AS customer,
        toDate(created_at, 'UTC') AS day,
        count() AS calls,
        sum(toUInt128(toUInt64(prompt_tokens - cached - written))) AS sum_uncached,
        sum(toUInt128(cached)) AS sum_cached,
        sum(toUInt128(written)) AS sum_written,
        sum(toUInt128(completion_tokens)) AS sum_output
    FROM {traces}
    WHERE created_at >= {start:DateTime64(6, 'UTC')} AND created_at < {end:DateTime64(6, 'UTC')}
        AND is_byok = 0 AND billing_customer_id != ''
    GROUP BY customer, day
)
ARRAY JOIN [
    ('llm_calls', calls),
    ('llm_uncached_input_tokens', sum_uncached),
    ('llm_cached_input_tokens', sum_cached),
    ('llm_cache_write_tokens', sum_written),
    ('llm_output_tokens', sum_output)
] AS meter
WHERE value > 0
ORDER BY customer, day, event_name
