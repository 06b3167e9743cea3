-- The models with calls within the window whose cost is not known: most tokens first. "priced" are
-- the calls of that model with a cost: the others then report more cached tokens than tokens.
SELECT
    provider,
    model,
    countIf(cost_usd IS NULL) AS calls,
    countIf(cost_usd IS NOT NULL) AS priced,
    sumIf(prompt_tokens, cost_usd IS NULL) AS input_tokens,
    sumIf(completion_tokens, cost_usd IS NULL) AS output_tokens,
    count() OVER () AS found
FROM llm_traces
WHERE created_at >= {start:DateTime64(6, 'UTC')} AND created_at < {end:DateTime64(6, 'UTC')}
GROUP BY provider, model
HAVING calls > 0
ORDER BY input_tokens + output_tokens DESC, calls DESC, provider, model
LIMIT 50
