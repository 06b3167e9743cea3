-- The columns of a table in ClickHouse, in their order. is_key: a column of the sorting or the
-- partition key.
SELECT name, type, is_in_sorting_key OR is_in_partition_key AS is_key
FROM system.columns
WHERE database = {database:String} AND table = {table:String}
ORDER BY position
