-- The tables of a database whose names begin with a text.
SELECT name
FROM system.tables
WHERE database = {database:String} AND startsWith(name, {prefix:String})
ORDER BY name
