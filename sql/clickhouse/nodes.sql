-- The replicas of a cluster, shard by shard. A shard's weight is its share of the sharding key.
SELECT shard_num, shard_weight, host_name
FROM system.clusters
WHERE cluster = {cluster:String}
ORDER BY shard_num, replica_num
