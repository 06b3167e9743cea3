-- The engine of a database; no row where it does not exist.
SELECT engine FROM system.databases WHERE name = {database:String}
