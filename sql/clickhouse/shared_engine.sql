-- Whether this server keeps tables on storage that its replicas share: ClickHouse Cloud and its like.
SELECT count() FROM system.table_engines WHERE name = 'SharedMergeTree'
