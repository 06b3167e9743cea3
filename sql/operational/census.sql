-- The number of rows of a window, counted without a join: a batch is compared with it. One row.
-- {window} is the condition of the window.
--
-- rows          stored rows that are not deleted, folded rows included
-- deleted       soft-deleted rows
-- newest_change the latest updated_at of a trace, of those that lie in the years 1 to 9999: Python has
--               no others, and infinity is no time at all
SELECT
    count(*) FILTER (WHERE NOT is_deleted) AS rows,
    count(*) FILTER (WHERE is_deleted) AS deleted,
    max(updated_at) FILTER (
        WHERE updated_at >= '0001-01-01 00:00+00' AND updated_at < '10000-01-01 00:00+00'
    ) AS newest_change
FROM all_traces AS t
WHERE {window}
