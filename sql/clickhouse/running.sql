-- The statements running now that name one of some quoted tables. Their names are this statement's
-- parameters, which the embedded engine shows in its text: it leaves itself out.
SELECT query_id
FROM system.processes
WHERE multiSearchAny(query, {tables:Array(String)}) AND position(query, 'system.processes') = 0
