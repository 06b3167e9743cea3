-- What failed within the window, by kind of error, and what it cost all the same.
-- {traces} are the rows of llm_traces, with columns as ours (see clickhouse/held.py).
SELECT
    error_type AS name,
    count() AS calls,
    uniqExact(organization_id) AS organizations,
    sum(toUInt128(total_tokens)) AS tokens,
    sumIf(ifNull(cost_usd, 0), is_byok = 0) AS spend_usd,
    sumIf(ifNull(cost_usd, 0), is_byok = 1) AS byok_usd
FROM {traces}
WHERE created_at >= {start:DateTime64(6, 'UTC')} AND created_at < {end:DateTime64(6, 'UTC')}
    AND is_error = 1
GROUP BY name
ORDER BY calls DESC, name
