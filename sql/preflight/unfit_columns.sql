-- The columns of a type that loads would misread without a word. One row per column. A domain counts as
-- the type that it is made of.
--
-- table    its name in full, as the search path finds it
-- column   created_at without time zone: nobody knows of which hour the row is; or a column of JSON that
--          holds something else, such as an array of texts
-- type     its type
-- is_view  whether the table is a view, which ALTER TABLE does not change
WITH RECURSIVE typed AS (
    SELECT c.relnamespace, c.relname, c.relkind, a.attname, a.atttypid AS type
    FROM unnest(ARRAY['provider_traces', 'provider_trace_metadata', 'steps']) AS asked (name)
    JOIN pg_class AS c ON c.oid = to_regclass(asked.name)
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND NOT a.attisdropped
    WHERE a.attname = 'created_at' OR asked.name <> 'steps' AND a.attname IN (
        'request_json', 'response_json', 'llm_config', 'agent_tags', 'billing_context'
    )
    UNION ALL
    SELECT typed.relnamespace, typed.relname, typed.relkind, typed.attname, d.typbasetype
    FROM typed
    JOIN pg_type AS d ON d.oid = typed.type AND d.typtype = 'd'
)

SELECT
    typed.relnamespace::regnamespace || '.' || quote_ident(typed.relname) AS "table",
    typed.attname::text AS "column",
    format_type(typed.type, NULL) AS type,
    typed.relkind IN ('v', 'm') AS is_view
FROM typed
JOIN pg_type AS t ON t.oid = typed.type AND t.typtype <> 'd'
WHERE CASE typed.attname
    WHEN 'created_at' THEN typed.type IN ('timestamp'::regtype, 'date'::regtype)
    ELSE typed.type NOT IN (
        'json'::regtype, 'jsonb'::regtype, 'text'::regtype, 'varchar'::regtype, 'bpchar'::regtype
    )
END
ORDER BY 1, 2
