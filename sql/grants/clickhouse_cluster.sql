-- What the pipeline needs besides sql/grants/clickhouse.sql where CLICKHOUSE_CLUSTER is set. Run both
-- as an administrator, on every node: with ON CLUSTER after GRANT and CREATE USER, or where users are
-- kept in Keeper, on one. Where CLICKHOUSE_DATABASE is not "default", put its name in place of that.
GRANT CLUSTER ON *.* TO llm_traces_loader;
GRANT REMOTE ON *.* TO llm_traces_loader;
GRANT SYSTEM SYNC REPLICA ON `default`.* TO llm_traces_loader;
GRANT SELECT ON system.clusters TO llm_traces_loader;
