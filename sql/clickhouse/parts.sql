-- The active parts of one partition of a table. A merged part has a name of its own, and the largest
-- block number of its sources: only an insert brings a larger one.
SELECT name, max_block_number
FROM system.parts
WHERE database = {database:String} AND table = {table:String}
    AND partition_id = {partition:String} AND active
