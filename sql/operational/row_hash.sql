-- The hash of a stored row without its payloads: of every other column that a load reads, those of its
-- step and its metrics included. Two versions of a row have two hashes. No statement, but an expression
-- in two of them.
hash_record_extended(ROW(
    t.origin, t.id, t.created_at, t.updated_at, t.is_deleted, t.organization_id, t.agent_id,
    t.run_id, t.step_id, t.call_type, t.agent_tags, t.billing_context, t.user_id,
    v.id IS NOT NULL,
    s.project_id, s.trace_id, s.provider_name, s.provider_category, s.model,
    s.prompt_tokens, s.completion_tokens, s.total_tokens, s.cached_input_tokens,
    s.cache_write_tokens, s.reasoning_tokens, s.status, s.stop_reason, s.error_type, s.error_data,
    s.model_handle, m.llm_request_ns
), 0)
