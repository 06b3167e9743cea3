-- The models with calls within the window whose cost is not known: most tokens first. Of those,
-- "contradictory" report more cached tokens than input, or more reasoning than output: no price
-- helps them. All others lack one.
SELECT
    provider,
    model,
    countIf(cost_usd IS NULL) AS calls,
    countIf(
        cost_usd IS NULL
        AND (
            toUInt128(ifNull(cached_input_tokens, 0)) + ifNull(cache_write_tokens, 0)
                > prompt_tokens
            OR ifNull(reasoning_tokens, 0) > completion_tokens
        )
    ) AS contradictory,
    sumIf(prompt_tokens, cost_usd IS NULL) AS input_tokens,
    sumIf(completion_tokens, cost_usd IS NULL) AS output_tokens,
    count() OVER () AS found
FROM llm_traces
WHERE created_at >= {start:DateTime64(6, 'UTC')} AND created_at < {end:DateTime64(6, 'UTC')}
GROUP BY provider, model
HAVING calls > 0
ORDER BY input_tokens + output_tokens DESC, calls DESC, provider, model
LIMIT 50
