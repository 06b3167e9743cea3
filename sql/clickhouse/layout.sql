-- How a table is made: engine with its settings, where it is stored, keys, and the comment that tells
-- the schema's version. One row, none where the table does not exist.
SELECT engine, engine_full, storage_policy, partition_key, sorting_key, primary_key, comment
FROM system.tables
WHERE database = {database:String} AND name = {table:String}
