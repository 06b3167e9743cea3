-- What others ordered to be changed in a table, in one partition or in all: its mutations, and the patch
-- parts that a lightweight UPDATE leaves beside the parts of the partition. {parts} are those of this
-- server, or of all replicas.
SELECT mutation_id AS name
FROM system.mutations
WHERE database = {database:String} AND table = {table:String}
UNION ALL
SELECT DISTINCT name
FROM {parts}
WHERE database = {database:String} AND table = {table:String} AND active
    AND startsWith(partition_id, 'patch-') AND endsWith(partition_id, concat('-', {partition:String}))
