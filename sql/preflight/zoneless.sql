-- The tables whose created_at has no time zone, so that nobody knows of which hour a row is. One row per
-- table, of those that tell the hour of a trace or a step. A domain counts as the type that it is made of.
--
-- table    its name in full, as the search path finds it
-- is_view  whether it is a view, which ALTER TABLE does not change
WITH RECURSIVE typed AS (
    SELECT c.relnamespace, c.relname, c.relkind, a.atttypid AS type
    FROM unnest(ARRAY['provider_traces', 'provider_trace_metadata', 'steps']) AS asked (name)
    JOIN pg_class AS c ON c.oid = to_regclass(asked.name)
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'created_at'
    UNION ALL
    SELECT typed.relnamespace, typed.relname, typed.relkind, d.typbasetype
    FROM typed
    JOIN pg_type AS d ON d.oid = typed.type AND d.typtype = 'd'
)

SELECT
    relnamespace::regnamespace || '.' || quote_ident(relname) AS "table",
    relkind IN ('v', 'm') AS is_view
FROM typed
WHERE type IN ('timestamp'::regtype, 'date'::regtype)
ORDER BY 1
