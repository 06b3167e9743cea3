-- What the files of an invoice must add up to: all calls within the window, and what is to be paid
-- for them; calls by the customer's own key are not.
-- {traces} are the rows of llm_traces, with columns as ours (see clickhouse/held.py).
SELECT
    count() AS calls,
    sum(toUInt128(prompt_tokens)) AS prompt_tokens,
    sum(toUInt128(completion_tokens)) AS completion_tokens,
    ifNull(sumIf(cost_usd, is_byok = 0), 0) AS amount_usd
FROM {traces}
WHERE created_at >= {start:DateTime64(6, 'UTC')} AND created_at < {end:DateTime64(6, 'UTC')}
