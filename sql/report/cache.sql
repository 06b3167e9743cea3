-- What caching saved within the window, by model, own keys left out: the cached tokens at the price
-- of input, minus what they cost. A call's price of input is that of its uncached tokens; one that
-- has none takes its model's of that day, the lowest where the price has tiers. A cost that the
-- response reported tells no price. Cached tokens of which no price is known are counted, and saved
-- nothing. Amounts that are multiplied by tokens have
-- 256 bits: 128 overflow without an error where a call reports absurd counts.
-- {traces} are the rows of llm_traces, with columns as ours (see clickhouse/held.py).
SELECT
    model AS name,
    sum(day_cached) AS cached_tokens,
    sum(day_underived) AS underived_tokens,
    sum(day_cost) AS cached_usd,
    sum(day_written) AS written_usd,
    sum(day_at_input_price) AS at_input_price_usd,
    at_input_price_usd - sum(day_derived_cost) AS saved_usd
FROM (
    SELECT
        model,
        sum(toUInt128(cached)) AS day_cached,
        minOrNullIf(uncached_cost / divisor, has_rate) AS rate,
        sumIf(toUInt128(cached), NOT has_rate AND is_priced) AS rateless,
        sumIf(toUInt128(cached), NOT is_priced) + if(rate IS NULL, rateless, 0) AS day_underived,
        sum(cached_cost) AS day_cost,
        sum(written_cost) AS day_written,
        sumIf(uncached_cost * cached / divisor, has_rate) + ifNull(rate, 0) * rateless
            AS day_at_input_price,
        if(rate IS NULL, 0, day_cost) AS day_derived_cost
    FROM (
        SELECT
            provider,
            model,
            toDate(created_at, 'UTC') AS day,
            cost_usd IS NOT NULL AND cost_basis != 'reported' AS is_priced,
            least(ifNull(cached_input_tokens, 0), prompt_tokens) AS cached,
            toInt128(prompt_tokens) - cached - ifNull(cache_write_tokens, 0) AS uncached,
            is_priced AND uncached > 0 AS has_rate,
            greatest(uncached, 1) AS divisor,
            ifNull(cached_input_cost_usd, 0) AS cached_cost,
            ifNull(cache_write_cost_usd, 0) AS written_cost,
            toDecimal256(ifNull(input_cost_usd, 0), 18) - cached_cost - written_cost
                AS uncached_cost
        FROM {traces}
        WHERE created_at >= {start:DateTime64(6, 'UTC')}
            AND created_at < {end:DateTime64(6, 'UTC')}
            AND is_byok = 0
    )
    GROUP BY provider, model, day
)
GROUP BY name
HAVING cached_tokens > 0 OR written_usd > 0
ORDER BY saved_usd DESC, name
