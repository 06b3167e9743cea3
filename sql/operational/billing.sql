-- The billing details of the organizations: one row per known version of an organization's details.
-- The table is not part of the open-source agent server. Where yours has another name or other columns,
-- edit this file; it must return these five columns:
--
-- organization_id  the organization, as the traces name it
-- plan_type        the plan, such as 'pro'
-- cost_source      the means of payment: 'quota' or 'credits'
-- customer_id      the Stripe customer
-- valid_from       the moment from which on this version holds, inclusive
SELECT
    organization_id::text AS organization_id,
    coalesce(plan_type::text, '') AS plan_type,
    coalesce(cost_source::text, '') AS cost_source,
    coalesce(stripe_customer_id::text, '') AS customer_id,
    coalesce(updated_at, created_at) AS valid_from
FROM organization_billing_details
WHERE organization_id IS NOT NULL
