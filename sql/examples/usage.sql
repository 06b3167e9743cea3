-- What an organization used, by model, agent_id, call_type or provider. Both ends of the range are
-- included.
SELECT
    {group_by:Identifier},
    count() AS request_count,
    sum(toUInt128(total_tokens)) AS total_tokens,
    sum(toUInt128(prompt_tokens)) AS prompt_tokens,
    sum(toUInt128(completion_tokens)) AS completion_tokens,
    avg(latency_ms) AS avg_latency_ms,
    sum(toUInt128(request_size_bytes)) AS total_request_bytes,
    sum(toUInt128(response_size_bytes)) AS total_response_bytes,
    countIf(is_error = 1) AS error_count
FROM llm_traces
WHERE organization_id = {organization_id:String}
    AND created_at >= {start:DateTime64(6, 'UTC')}
    AND created_at <= {end:DateTime64(6, 'UTC')}
GROUP BY {group_by:Identifier}
ORDER BY total_tokens DESC
