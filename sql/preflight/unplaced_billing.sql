-- How many rows of {billing}, the statement of billing.sql, name no organization or no date. One row.
SELECT count(*) AS rows
FROM (
{billing}
) AS mapping
WHERE organization_id IS NULL OR valid_from IS NULL
