-- The columns of a table in ClickHouse, in their order. is_key: a column of the sorting or the
-- partition key. computed: how the table computes the column, where nothing can be inserted into it.
SELECT
    name,
    type,
    is_in_sorting_key OR is_in_partition_key AS is_key,
    if(default_kind = 'DEFAULT', '', default_kind) AS computed
FROM system.columns
WHERE database = {database:String} AND table = {table:String}
ORDER BY position
