-- The active parts of one partition of a table. A merge gives its part another name, but never a
-- larger block number: that one only grows when somebody inserts.
SELECT name, max_block_number
FROM system.parts
WHERE database = {database:String} AND table = {table:String}
    AND partition_id = {partition:String} AND active
