-- How many rows one partition of {table} holds of every hour, by the time in {column}.
SELECT toStartOfHour({column}, 'UTC') AS hour, count() AS rows
FROM {table}
WHERE _partition_id = {partition:String}
GROUP BY hour
ORDER BY hour
