-- The table that is queried in a cluster: {table} sends every row, and every query, to the tables
-- {local} of the shards. {key} puts all rows of an organization on one shard, so that a reader sees
-- every organization whole. {cluster}, {database} and {name} say where the shards' tables are.
CREATE TABLE IF NOT EXISTS {table} AS {local}
ENGINE = Distributed({cluster}, {database}, {name}, {key})
COMMENT {comment}
