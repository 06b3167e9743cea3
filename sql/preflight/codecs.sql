-- How columns of a table in ClickHouse are packed. One row per column of the list.
--
-- codec  such as 'CODEC(ZSTD(1))'; '': by the default of the server
-- bytes  what its packed values take
SELECT name, compression_codec AS codec, data_compressed_bytes AS bytes
FROM system.columns
WHERE database = {database:String} AND table = {table:String} AND name IN {names:Array(String)}
ORDER BY position
