-- How many rows a window holds, counted without joining anything: what a batch is held against. One row.
--
-- rows          stored rows that are not deleted, folded ones included
-- deleted       soft-deleted rows
-- newest_change the latest updated_at of a trace
SELECT
    count(*) FILTER (WHERE NOT is_deleted) AS rows,
    count(*) FILTER (WHERE is_deleted) AS deleted,
    max(updated_at) AS newest_change
FROM all_traces AS t
WHERE {window}
