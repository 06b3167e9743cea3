-- How {table} is read, line by line, before anything is optimized away: a row policy of the user is a
-- line "Row level filter column: …". It takes no grant beside SELECT, where system.row_policies would.
-- A table without rows is not read, and shows none.
EXPLAIN actions = 1
SELECT _part FROM {table} SETTINGS query_plan_enable_optimizations = 0
