-- The statements running now that name one of some quoted tables, in {processes}: of this server, or
-- of all replicas. Their names are this statement's parameters, which the embedded engine shows in its
-- text: it leaves itself out, and what a replica is asked on its behalf.
SELECT query_id
FROM {processes}
WHERE multiSearchAny(query, {tables:Array(String)}) AND position(query, 'system.processes') = 0
    AND is_initial_query
