-- What the values of one column, {dimension}, cost within the window: the eight with most spend,
-- and all others as a ninth.
-- {traces} are the rows of llm_traces, with columns as ours (see clickhouse/held.py).
SELECT
    least(place, 9) AS series,
    any(value) AS name,
    count() AS names,
    sum(toUInt128(calls)) AS calls,
    sum(tokens) AS tokens,
    sum(spend_usd) AS spend_usd,
    sum(byok_usd) AS byok_usd
FROM (
    SELECT
        *,
        row_number() OVER (ORDER BY spend_usd DESC, byok_usd DESC, tokens DESC, value) AS place
    FROM (
        SELECT
            {dimension} AS value,
            count() AS calls,
            sum(toUInt128(total_tokens)) AS tokens,
            sumIf(ifNull(cost_usd, 0), is_byok = 0) AS spend_usd,
            sumIf(ifNull(cost_usd, 0), is_byok = 1) AS byok_usd
        FROM {traces}
        WHERE created_at >= {start:DateTime64(6, 'UTC')}
            AND created_at < {end:DateTime64(6, 'UTC')}
        GROUP BY value
    )
)
GROUP BY series
ORDER BY series
