-- The models with calls within the window that answered and whose usage nobody reported, so that
-- their cost is not known: most calls first.
-- {traces} are the rows of llm_traces, with columns as ours (see clickhouse/held.py).
SELECT
    provider,
    model,
    count() AS calls,
    count() OVER () AS found
FROM {traces}
WHERE created_at >= {start:DateTime64(6, 'UTC')} AND created_at < {end:DateTime64(6, 'UTC')}
    AND cost_usd IS NULL AND usage_source = 'none'
GROUP BY provider, model
ORDER BY calls DESC, provider, model
LIMIT 50
