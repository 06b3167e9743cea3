-- The call of a step. A step may have several, such as an error and its repetition: the latest one.
SELECT
    id, organization_id, project_id, agent_id, agent_tags, run_id, step_id, trace_id,
    call_type, provider, model, is_byok,
    request_size_bytes, response_size_bytes,
    prompt_tokens, completion_tokens, total_tokens,
    cached_input_tokens, cache_write_tokens, reasoning_tokens,
    latency_ms,
    is_error, error_type, error_message,
    request_json, response_json, llm_config_json,
    billing_plan_type, billing_cost_source, billing_customer_id,
    created_at
FROM llm_traces
WHERE step_id = {step_id:String}
    AND organization_id = {organization_id:String}
ORDER BY created_at DESC
LIMIT 1
