-- The models with calls within the window whose usage is known and whose cost is not: most tokens
-- first. Of those, "contradictory" report more cached tokens than input, or more reasoning than
-- output: no price helps them. All others lack one. See unmetered_models.sql for calls without usage.
-- {traces} are the rows of llm_traces, with columns as ours (see clickhouse/held.py).
SELECT
    provider,
    model,
    count() AS calls,
    countIf(
        toUInt128(ifNull(cached_input_tokens, 0)) + ifNull(cache_write_tokens, 0) > prompt_tokens
        OR ifNull(reasoning_tokens, 0) > completion_tokens
    ) AS contradictory,
    sum(toUInt128(prompt_tokens)) AS input_tokens,
    sum(toUInt128(completion_tokens)) AS output_tokens,
    count() OVER () AS found
FROM {traces}
WHERE created_at >= {start:DateTime64(6, 'UTC')} AND created_at < {end:DateTime64(6, 'UTC')}
    AND cost_usd IS NULL AND usage_source != 'none'
GROUP BY provider, model
ORDER BY input_tokens + output_tokens DESC, calls DESC, provider, model
LIMIT 50
