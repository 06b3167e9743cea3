-- The number of rows of a window, counted without a join: a batch is compared with it. One row.
-- {window} is the condition of the window.
--
-- rows          stored rows that are not deleted, folded rows included
-- deleted       soft-deleted rows
-- newest_change the latest updated_at of a trace
SELECT
    count(*) FILTER (WHERE NOT is_deleted) AS rows,
    count(*) FILTER (WHERE is_deleted) AS deleted,
    max(updated_at) AS newest_change
FROM all_traces AS t
WHERE {window}
