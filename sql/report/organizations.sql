-- The twenty organizations with most spend within the window, and all others as one; with the
-- plans and Stripe customers that their calls had.
-- {traces} are the rows of llm_traces, with columns as ours (see clickhouse/held.py).
SELECT
    least(place, 21) AS rank,
    any(organization) AS name,
    count() AS names,
    any(plans) AS plans,
    any(customers) AS customers,
    sum(toUInt128(calls)) AS calls,
    sum(tokens) AS tokens,
    sum(spend_usd) AS spend_usd,
    sum(byok_usd) AS byok_usd
FROM (
    SELECT
        *,
        row_number() OVER (
            ORDER BY spend_usd DESC, byok_usd DESC, tokens DESC, organization
        ) AS place
    FROM (
        SELECT
            organization_id AS organization,
            arraySort(groupUniqArrayIf(billing_plan_type, billing_plan_type != ''))
                AS plans,
            arraySort(groupUniqArrayIf(billing_customer_id, billing_customer_id != ''))
                AS customers,
            count() AS calls,
            sum(toUInt128(total_tokens)) AS tokens,
            sumIf(ifNull(cost_usd, 0), is_byok = 0) AS spend_usd,
            sumIf(ifNull(cost_usd, 0), is_byok = 1) AS byok_usd
        FROM {traces}
        WHERE created_at >= {start:DateTime64(6, 'UTC')}
            AND created_at < {end:DateTime64(6, 'UTC')}
        GROUP BY organization
    )
)
GROUP BY rank
ORDER BY rank
