-- The least that the pipeline needs of ClickHouse Cloud. Run it in the SQL console, or as the user
-- "default", with a password of your own: at least 12 characters, a digit, a capital and another sign.
-- Where CLICKHOUSE_DATABASE is not "default", put its name in place of that, and make it first. The
-- last two lines are for seeing the statements that run on other replicas, and for batches in a
-- bucket. A single server has no use for them: see sql/grants/clickhouse.sql.
CREATE USER llm_traces_loader IDENTIFIED WITH sha256_password BY 'CHANGE_ME';
GRANT SELECT, INSERT, ALTER ADD COLUMN, ALTER MODIFY COLUMN, ALTER MODIFY COMMENT, ALTER DELETE, ALTER UPDATE, CREATE TABLE, DROP TABLE, CREATE VIEW, DROP VIEW ON `default`.* TO llm_traces_loader;
GRANT SELECT ON system.tables TO llm_traces_loader;
GRANT SELECT ON system.columns TO llm_traces_loader;
GRANT SELECT ON system.processes TO llm_traces_loader;
GRANT SELECT ON system.mutations TO llm_traces_loader;
GRANT SELECT ON system.parts TO llm_traces_loader;
GRANT S3 ON *.* TO llm_traces_loader;
GRANT REMOTE ON *.* TO llm_traces_loader;
