-- Drops one partition of {table}.
ALTER TABLE {table} DROP PARTITION ID {partition:String}
