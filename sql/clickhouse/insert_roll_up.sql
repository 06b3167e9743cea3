-- Puts rows of llm_usage_hourly into {table}: those that the query {rows} returns, in the order of
-- {columns}.
INSERT INTO {table} ({columns})
SELECT {columns}
FROM ({rows})
