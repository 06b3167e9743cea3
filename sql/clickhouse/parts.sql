-- The parts of one partition of {table} that have rows. They are asked of the table and not of
-- system.parts, which on shared storage tells what this replica knows, and that may be old.
SELECT _part AS name
FROM {table}
WHERE _partition_id = {partition:String}
GROUP BY name
