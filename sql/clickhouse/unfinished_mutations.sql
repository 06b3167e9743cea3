-- The mutations of a table that have parts of one partition still to change, and why they do not.
SELECT mutation_id, latest_fail_reason
FROM system.mutations
WHERE database = {database:String} AND table = {table:String} AND NOT is_done
    AND arrayExists(
        part -> startsWith(part, concat({partition:String}, '_')), parts_to_do_names
    )
ORDER BY mutation_id
