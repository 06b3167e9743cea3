-- The ledger of a window: its rows hour by hour, counted and hashed without reading a payload.
-- One row per hour that has any. {window} is the condition of the window, {row_hash} the hash of a row.
--
-- rows          stored rows that are not deleted, folded rows included
-- deleted       soft-deleted rows
-- newest_change the latest updated_at of a trace, of those that lie in the years 1 to 9999: Python has
--               no others, and infinity is no time at all
-- source_hash   the sum of the rows' hashes (row_hash.sql), so that their order does not count
SELECT
    date_trunc('hour', t.created_at, 'UTC') AS hour,
    count(*) FILTER (WHERE NOT t.is_deleted) AS rows,
    count(*) FILTER (WHERE t.is_deleted) AS deleted,
    max(t.updated_at) FILTER (
        WHERE t.updated_at >= '0001-01-01 00:00+00' AND t.updated_at < '10000-01-01 00:00+00'
    ) AS newest_change,
    -- Modulo 2**64 keeps the sign of the sum; the hash of a batch is never negative.
    ((sum({row_hash}::numeric) % 18446744073709551616 + 18446744073709551616)
        % 18446744073709551616)::text AS source_hash
FROM all_traces AS t
LEFT JOIN all_steps AS s ON s.id = t.step_id
LEFT JOIN step_metrics AS m ON m.id = t.step_id
LEFT JOIN superseded_steps AS v ON t.origin = 2 AND v.id = t.id
WHERE {window}
GROUP BY 1
