-- A page of an agent's calls, latest first. '' and [] filter nothing, and errors_only is 0 or 1; of
-- several tags a call must have all. Both ends of the range are included. The id in the order keeps
-- calls of one moment from moving between pages.
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
WHERE agent_id = {agent_id:String}
    AND organization_id = {organization_id:String}
    AND created_at >= {start:DateTime64(6, 'UTC')}
    AND created_at <= {end:DateTime64(6, 'UTC')}
    AND ({model:String} = '' OR model = {model:String})
    AND ({provider:String} = '' OR provider = {provider:String})
    AND ({call_type:String} = '' OR call_type = {call_type:String})
    AND ({errors_only:UInt8} = 0 OR is_error = 1)
    AND hasAll(agent_tags, {tags:Array(String)})
ORDER BY created_at DESC, id DESC
LIMIT {limit:UInt32} OFFSET {offset:UInt32}
