-- The ten organizations with the most tokens within the window, and who pays for them.
-- {traces} are the rows of llm_traces, with columns as ours (see clickhouse/held.py).
SELECT
    organization_id AS organization,
    argMax(billing_customer_id, created_at) AS stripe_customer,
    argMax(billing_plan_type, created_at) AS plan,
    count() AS calls,
    sum(toUInt128(total_tokens)) AS tokens,
    round(sumIf(cost_usd, is_byok = 0), 2) AS usd,
    countIf(is_byok = 1) AS own_key_calls,
    countIf(is_error = 1) AS errors
FROM {traces}
WHERE created_at >= {start:DateTime64(6, 'UTC')} AND created_at < {end:DateTime64(6, 'UTC')}
GROUP BY organization
ORDER BY tokens DESC, organization
LIMIT 10
