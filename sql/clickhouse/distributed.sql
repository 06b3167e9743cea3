-- What is queried in a cluster: {table} sends every row, and every query, to the tables {local}
-- of the shards. All rows of an organization are on one shard, so each is seen whole.
CREATE TABLE IF NOT EXISTS {table} AS {local}
ENGINE = Distributed({cluster}, {database}, {name}, {key})
COMMENT {comment}
