-- One row where the database exists, none where it does not.
SELECT 1 FROM system.databases WHERE name = {database:String}
