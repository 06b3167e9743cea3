-- The materialized views that every insert into some tables feeds. A refreshable one, which reads its
-- source by itself, is not among them.
SELECT name AS table, concat(fed.1, '.', fed.2) AS view
FROM system.tables
ARRAY JOIN arrayZip(dependencies_database, dependencies_table) AS fed
WHERE database = {database:String} AND name IN {tables:Array(String)}
ORDER BY table, view
