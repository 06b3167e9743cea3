-- The traces that the source still has, in whatever hour, of those asked for; soft-deleted traces count.
-- One row per trace: trace_key. $1 are the ids asked for, with and without their prefix.
SELECT DISTINCT trace_key
FROM all_traces
WHERE id = ANY ($1)
