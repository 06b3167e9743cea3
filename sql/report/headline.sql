-- The window in one row. Spend is the cost of what was not called by the organization's own
-- key; that of the other calls stands apart.
-- {traces} are the rows of llm_traces, with columns as ours (see clickhouse/held.py).
SELECT
    count() AS calls,
    countIf(is_byok = 1) AS byok_calls,
    countIf(is_error = 1) AS errors,
    countIf(cost_usd IS NULL AND usage_source != 'none') AS unpriced_calls,
    countIf(cost_usd IS NULL AND usage_source = 'none') AS unmetered_calls,
    uniqExact(organization_id) AS organizations,
    uniqExact(toStartOfHour(created_at, 'UTC')) AS hours,
    sum(toUInt128(prompt_tokens)) AS input_tokens,
    sum(toUInt128(completion_tokens)) AS output_tokens,
    sum(toUInt128(total_tokens)) AS tokens,
    sumIf(ifNull(cost_usd, 0), is_byok = 0) AS spend_usd,
    sumIf(ifNull(cost_usd, 0), is_byok = 1) AS byok_usd,
    arraySort(groupUniqArrayIf(price_version, price_version != '')) AS price_versions,
    max(created_at) AS last_call
FROM {traces}
WHERE created_at >= {start:DateTime64(6, 'UTC')} AND created_at < {end:DateTime64(6, 'UTC')}
