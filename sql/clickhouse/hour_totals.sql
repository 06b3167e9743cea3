-- What {table} holds, hour by hour, within {filter}. One row per hour that has any; it reads no payload.
-- Counts are summed in 128 bits, in every statement: a sum of 64 bits wraps without an error.
-- {content_hash} is the sum of the rows' hashes (see trace/hashes.py), or 0 where it is not asked for.
SELECT
    toStartOfHour(created_at, 'UTC') AS hour,
    count() AS rows,
    uniqExact(xxh3(id)) AS distinct_ids,  -- 8 bytes an id, as the manifest counts them
    sum(toUInt128(prompt_tokens)) AS sum_prompt_tokens,
    sum(toUInt128(completion_tokens)) AS sum_completion_tokens,
    sum(toUInt128(total_tokens)) AS sum_total_tokens,
    ifNull(sum(toUInt128(cached_input_tokens)), 0) AS sum_cached_input_tokens,
    ifNull(sum(toUInt128(cache_write_tokens)), 0) AS sum_cache_write_tokens,
    ifNull(sum(toUInt128(reasoning_tokens)), 0) AS sum_reasoning_tokens,
    ifNull(sum(cost_usd), 0) AS sum_cost_usd,
    {content_hash} AS content_hash
FROM {table}
WHERE {filter}
GROUP BY hour
ORDER BY hour
