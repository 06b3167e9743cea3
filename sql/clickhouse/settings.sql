-- The values of some settings for this user, and whether a profile holds them at that value. A
-- setting that the engine does not know has no row.
SELECT name, value, readonly = 1 AS is_fixed
FROM system.settings
WHERE name IN {names:Array(String)}
