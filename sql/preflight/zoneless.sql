-- The tables whose created_at has no time zone, so that nobody knows of which hour a row is. One row per
-- table, of those that tell the hour of a trace or a step.
--
-- table    its name in full, as the search path finds it
-- is_view  whether it is a view, which ALTER TABLE does not change
SELECT
    c.relnamespace::regnamespace || '.' || quote_ident(c.relname) AS "table",
    c.relkind IN ('v', 'm') AS is_view
FROM unnest(ARRAY['provider_traces', 'provider_trace_metadata', 'steps']) AS asked (name)
JOIN pg_class AS c ON c.oid = to_regclass(asked.name)
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'created_at'
WHERE a.atttypid = 'timestamp'::regtype
ORDER BY 1
