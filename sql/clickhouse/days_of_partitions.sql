-- The first and the last UTC day of which some partitions of {table} hold rows, by the time in
-- {column}. One row, none where they are empty.
SELECT
    toStartOfDay(min({column}), 'UTC') AS first,
    toStartOfDay(max({column}), 'UTC') AS last
FROM {table}
WHERE _partition_id IN {partitions:Array(String)}
HAVING count() > 0
