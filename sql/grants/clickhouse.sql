-- The least that the pipeline needs of ClickHouse. Run it as an administrator, and give the user a
-- way in, such as ALTER USER llm_traces_loader IDENTIFIED BY '…'. Where CLICKHOUSE_DATABASE is not
-- "default", put its name in place of that, and grant CREATE DATABASE on it too, unless it exists.
-- For batches in a bucket: GRANT S3 ON *.* TO llm_traces_loader;
CREATE USER llm_traces_loader;
GRANT SELECT, INSERT, ALTER ADD COLUMN, ALTER MODIFY COLUMN, ALTER MODIFY COMMENT, ALTER DELETE, ALTER UPDATE, CREATE TABLE, DROP TABLE, CREATE VIEW, DROP VIEW ON `default`.* TO llm_traces_loader;
GRANT SELECT ON system.tables TO llm_traces_loader;
GRANT SELECT ON system.columns TO llm_traces_loader;
GRANT SELECT ON system.processes TO llm_traces_loader;
GRANT SELECT ON system.mutations TO llm_traces_loader;
GRANT SELECT ON system.parts TO llm_traces_loader;
