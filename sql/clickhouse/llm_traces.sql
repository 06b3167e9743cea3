-- The target: one row per LLM call, exact without FINAL. {table} is the table's quoted name, {engine}
-- its engine, of which a cluster has a replicated one.
-- One partition a day: an hour is replaced by cloning its day and swapping it (see clickhouse/upsert.py).
-- Hourly partitions would swap directly, but reading 30 days took 205 ms against 11 ms.
-- An agent resends its context with every call: its calls lie side by side, and payloads are packed in
-- blocks of 4 MB, which are many calls. 4,000 calls of 65 KB then take 0.037 of their text, merged: in
-- blocks of 8 MB 0.035, where a call is read in a fifth more time, in the default blocks 0.053, and by
-- organization and time alone 0.046 in these and 0.117 in the default blocks.
CREATE TABLE IF NOT EXISTS {table}
(
    id String COMMENT 'Trace id: a uuid, without the "provider_trace-" prefix.',
    organization_id String COMMENT 'Organization of the call.',
    project_id String COMMENT 'Project of the step.',
    agent_id String COMMENT 'Agent that made the call.',
    agent_tags Array(String) COMMENT 'Tags of the agent.',
    run_id String COMMENT 'Run that the call was part of.',
    step_id String COMMENT 'Step that the call was part of.',
    trace_id String COMMENT 'OpenTelemetry trace id of the step.',
    call_type LowCardinality(String) COMMENT 'Purpose of the call, or \'unknown\'.',
    provider LowCardinality(String) COMMENT 'Provider\'s endpoint type.',
    model LowCardinality(String) COMMENT 'Model that was asked for.',
    is_byok UInt8 COMMENT 'The organization brought its own key.',
    request_size_bytes UInt64 COMMENT 'Octets of the request\'s JSON text.',
    response_size_bytes UInt64 COMMENT 'Octets of the response\'s JSON text.',
    prompt_tokens UInt64 COMMENT 'All input tokens, cached and cache-written included.',
    completion_tokens UInt64 COMMENT 'All billed output tokens, reasoning included.',
    total_tokens UInt64 COMMENT 'The reported total, else prompt + completion.',
    cached_input_tokens Nullable(UInt64) COMMENT 'Of the prompt; NULL: not reported.',
    cache_write_tokens Nullable(UInt64) COMMENT 'Of the prompt; NULL: not reported.',
    reasoning_tokens Nullable(UInt64) COMMENT 'Of the completion; NULL: not reported.',
    latency_ms UInt64 COMMENT 'Milliseconds from request to response; 0: not measured.',
    is_error UInt8 COMMENT 'The call failed.',
    error_type LowCardinality(String) COMMENT 'Kind of the error, \'\' if none.',
    error_message String COMMENT 'First 1,000 code points of the message.',
    request_json String COMMENT 'Raw request, \'\' if not kept.' CODEC(ZSTD(3))
        SETTINGS (min_compress_block_size = 4194304, max_compress_block_size = 4194304),
    response_json String COMMENT 'Raw response, \'\' if not kept.' CODEC(ZSTD(3))
        SETTINGS (min_compress_block_size = 4194304, max_compress_block_size = 4194304),
    llm_config_json String COMMENT 'Configuration of the call.' CODEC(ZSTD(1)),
    billing_plan_type LowCardinality(String) COMMENT 'Plan of the organization.',
    billing_cost_source LowCardinality(String) COMMENT 'What pays: \'quota\' or \'credits\'.',
    billing_customer_id String COMMENT 'Stripe customer id.',
    created_at DateTime64(6, 'UTC') COMMENT 'When the trace was stored, UTC, microseconds.',
    billing_match LowCardinality(String)
        COMMENT 'Where billing came from: \'request\', \'as_of\', \'first_known\' or \'none\'.',
    payload_hash UInt64 COMMENT 'xxh3 of request_json followed by response_json.',
    cost_usd Nullable(Decimal(38, 18))
        COMMENT 'What the call cost: input, output and all else; NULL: not known.',
    input_cost_usd Nullable(Decimal(38, 18))
        COMMENT 'Of cost_usd, all input: uncached, cached and cache-written.',
    cached_input_cost_usd Nullable(Decimal(38, 18))
        COMMENT 'Of input_cost_usd, what came from the cache.',
    cache_write_cost_usd Nullable(Decimal(38, 18))
        COMMENT 'Of input_cost_usd, what was written to the cache.',
    output_cost_usd Nullable(Decimal(38, 18)) COMMENT 'Of cost_usd, all output.',
    price_version LowCardinality(String)
        COMMENT 'Prices that the costs were computed with, \'\' if none.',
    served_by LowCardinality(String) COMMENT 'Provider or host that served the call.',
    served_model LowCardinality(String)
        COMMENT 'Model that the response states, \'\' if none.',
    service_tier LowCardinality(String) COMMENT 'Tier that served the call; \'\': standard.',
    cost_basis LowCardinality(String)
        COMMENT 'Whose cost it is: \'reported\' by the provider, \'file\', \'list\', \'\' not known.',
    usage_source LowCardinality(String)
        COMMENT 'Where the tokens came from: \'response\', \'step\' or \'none\'.',
    model_handle String COMMENT 'Handle of the model in the agent server.',
    stop_reason LowCardinality(String) COMMENT 'Why the step ended.',
    user_id String COMMENT 'User of the call.',
    other_cost_usd Nullable(Decimal(38, 18))
        COMMENT 'Of cost_usd, what is neither: fees, and a reported cost without its parts.',
    price_entry LowCardinality(String)
        COMMENT 'Entry of the prices that was used, \'\' if none.',
    usage_details String
        COMMENT 'Whatever else decides the cost, as a JSON object; \'\' if nothing does.',
    INDEX by_id id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_step_id step_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_agent_id agent_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_run_id run_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_trace_id trace_id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = {engine}
PARTITION BY toDate(created_at)
ORDER BY (organization_id, agent_id, created_at, id)
-- Merge column by column, always: a merge of wide rows then holds one payload column at a time.
-- A day that nobody wrote to for a day becomes one part: of 30 days in four parts each, an
-- organization's usage took 122 ms and its last 20 calls 84 ms; in one part each, 38 and 27 ms.
SETTINGS vertical_merge_algorithm_min_rows_to_activate = 1,
    vertical_merge_algorithm_min_columns_to_activate = 1,
    min_age_to_force_merge_seconds = 86400,
    min_age_to_force_merge_on_partition_only = 1
COMMENT 'One row per LLM call (llm_trace_pipeline schema 3).'
