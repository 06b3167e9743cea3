-- The rows of {table} that an erasure covers ({condition}), as {counted} by {key}. With a {mask} of 0,
-- rows that a lightweight DELETE masked are seen too. One row per key that has any.
SELECT
    {key} AS key,
    {counted} AS rows
FROM {table}
WHERE {condition}
GROUP BY key
HAVING rows > 0
ORDER BY key
SETTINGS apply_deleted_mask = {mask}
