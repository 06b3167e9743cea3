-- Spend within the window by step of time and value of one column, {dimension}: the place of the
-- value in {names}, 0 for all others.
-- {traces} are the rows of llm_traces, with columns as ours (see clickhouse/held.py).
SELECT
    toDateTime(
        toStartOfInterval(created_at, toIntervalSecond({seconds:UInt32}), 'UTC'), 'UTC'
    ) AS bucket,
    indexOf({names:Array(String)}, {dimension}) AS place,
    sum(ifNull(cost_usd, 0)) AS spend_usd
FROM {traces}
WHERE created_at >= {start:DateTime64(6, 'UTC')} AND created_at < {end:DateTime64(6, 'UTC')}
    AND is_byok = 0
GROUP BY bucket, place
ORDER BY bucket, place
