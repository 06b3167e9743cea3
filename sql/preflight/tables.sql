-- What the catalog knows of the tables that sql/operational reads. One row per table of the setting
-- llm_traces.tables, a JSON object of table names and lists of column names.
--
-- qualified   its name in full, as the search path finds it; NULL where it finds none
-- elsewhere   a schema that holds such a table, NULL where none does
-- missing     the columns of the list that it lacks
-- is_readable whether this role may read it
-- hides_rows  whether a row-level security policy holds for this role
-- kind        'r' a table, 'p' a partitioned one; anything else cannot be given an index that counts
-- has_index   whether one of its indexes finds an hour, that is, begins with created_at
SELECT
    asked.name,
    c.relnamespace::regnamespace || '.' || quote_ident(c.relname) AS qualified,
    (
        SELECT quote_ident(n.nspname) FROM pg_class AS e JOIN pg_namespace AS n ON n.oid = e.relnamespace
        WHERE e.relname = asked.name AND e.relkind IN ('r', 'p', 'v', 'm', 'f')
        ORDER BY n.nspname LIMIT 1
    ) AS elsewhere,
    ARRAY(
        SELECT wanted.name FROM json_array_elements_text(asked.columns) AS wanted (name)
        WHERE NOT EXISTS (
            SELECT FROM pg_attribute AS a
            WHERE a.attrelid = c.oid AND a.attname = wanted.name AND a.attnum > 0 AND NOT a.attisdropped
        )
        ORDER BY wanted.name
    ) AS missing,
    has_table_privilege(c.oid, 'SELECT') AS is_readable,
    coalesce(row_security_active(c.oid), false) AS hides_rows,
    c.relkind::text AS kind,
    EXISTS (
        SELECT FROM pg_index AS i
        JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        WHERE i.indrelid = c.oid AND a.attname = 'created_at' AND i.indisvalid AND i.indpred IS NULL
    ) AS has_index
FROM json_each(current_setting('llm_traces.tables')::json) AS asked (name, columns)
LEFT JOIN pg_class AS c ON c.oid = to_regclass(quote_ident(asked.name))
ORDER BY asked.name
