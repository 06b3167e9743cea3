-- The names of the clusters that a server knows.
SELECT DISTINCT cluster FROM system.clusters ORDER BY cluster
