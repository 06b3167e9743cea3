-- The partitions of {table} whose newest row lies before a line, by the time in {column}.
SELECT _partition_id AS id
FROM {table}
GROUP BY id
HAVING max({column}) < {line:DateTime64(6, 'UTC')}
ORDER BY id
