-- How many rows {table} holds of every hour, by the time in {column}, where {filter} holds.
SELECT toStartOfHour({column}, 'UTC') AS hour, count() AS rows
FROM {table}
WHERE {filter}
GROUP BY hour
ORDER BY hour
