-- Whether others changed rows of a table since the journal of a swap was made: mutations, and the patch
-- parts of lightweight updates, in the order of the server's own clock. {parts} are those of this server,
-- or of all replicas.
WITH (
    SELECT metadata_modification_time
    FROM system.tables
    WHERE database = {database:String} AND name = {journal:String}
) AS made
SELECT (
    SELECT count()
    FROM system.mutations
    WHERE database = {database:String} AND table = {table:String} AND create_time >= made
) + (
    SELECT count()
    FROM {parts}
    WHERE database = {database:String} AND table = {table:String} AND active
        AND startsWith(partition_id, 'patch-') AND modification_time >= made
) AS changes
