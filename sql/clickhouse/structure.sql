-- What parts of a table have to agree in to move to another one: its columns and its keys, in words.
SELECT part
FROM (
    SELECT concat(name, ' ', type) AS part
    FROM system.columns
    WHERE database = {database:String} AND table = {table:String}
    UNION ALL
    SELECT concat('keys ', partition_key, ', ', sorting_key, ', ', primary_key) AS part
    FROM system.tables
    WHERE database = {database:String} AND name = {table:String}
)
ORDER BY part
