-- The organizations with calls within the window that have no billing details: most spend first.
-- {traces} are the rows of llm_traces, with columns as ours (see clickhouse/held.py).
SELECT
    organization_id AS name,
    count() AS calls,
    sum(toUInt128(total_tokens)) AS tokens,
    sumIf(ifNull(cost_usd, 0), is_byok = 0) AS spend_usd,
    sumIf(ifNull(cost_usd, 0), is_byok = 1) AS byok_usd,
    max(created_at) AS last_call,
    count() OVER () AS found
FROM {traces}
WHERE created_at >= {start:DateTime64(6, 'UTC')} AND created_at < {end:DateTime64(6, 'UTC')}
    AND billing_match = 'none'
GROUP BY name
ORDER BY spend_usd DESC, tokens DESC, name
LIMIT 50
