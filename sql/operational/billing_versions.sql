-- The rows of {billing}, the statement of billing.sql, as a load reads them. A version that holds from
-- infinity on, or from another time after the year 9999, holds after all others, and one from -infinity
-- or a time before the year 1 before all others: neither Arrow nor Python has such times. NULL stays.
SELECT
    organization_id, plan_type, cost_source, customer_id,
    CASE
        WHEN valid_from IS NOT NULL
            THEN least(greatest(valid_from, '0001-01-01 00:00+00'), '9999-12-31 23:59:59.999999+00')
    END AS valid_from
FROM (
{billing}
) AS mapping
