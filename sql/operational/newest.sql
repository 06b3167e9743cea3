-- What the source has of a window, without a join: whether it is still written to. One row.
-- {window} is the condition of the window.
--
-- rows   stored rows that are not deleted, folded rows included
-- newest the latest created_at, NULL where the window has none
SELECT count(*) FILTER (WHERE NOT t.is_deleted) AS rows, max(t.created_at) AS newest
FROM all_traces AS t
WHERE {window}
