-- The roll-up as schema 2 made it: recorded, not to be edited.
CREATE TABLE IF NOT EXISTS {table}
(
    hour DateTime('UTC') COMMENT 'Start of the hour, UTC.',
    organization_id String COMMENT 'Organization of the calls.',
    project_id String COMMENT 'Project of the steps.',
    agent_id String COMMENT 'Agent that made the calls.',
    provider LowCardinality(String) COMMENT 'Provider\'s endpoint type.',
    model LowCardinality(String) COMMENT 'Model that was asked for.',
    call_type LowCardinality(String) COMMENT 'Purpose of the calls, or \'unknown\'.',
    billing_plan_type LowCardinality(String) COMMENT 'Plan of the organization.',
    billing_cost_source LowCardinality(String) COMMENT 'What pays: \'quota\' or \'credits\'.',
    billing_customer_id String COMMENT 'Stripe customer id.',
    is_byok UInt8 COMMENT 'The organization brought its own key.',
    calls UInt64 COMMENT 'Calls.',
    errors UInt64 COMMENT 'Calls that failed.',
    prompt_tokens UInt64 COMMENT 'All input tokens, cached and cache-written included.',
    completion_tokens UInt64 COMMENT 'All billed output tokens, reasoning included.',
    total_tokens UInt64 COMMENT 'The reported totals, else prompt + completion.',
    cached_input_tokens UInt64 COMMENT 'Of the prompts, as far as reported.',
    cache_write_tokens UInt64 COMMENT 'Of the prompts, as far as reported.',
    reasoning_tokens UInt64 COMMENT 'Of the completions, as far as reported.',
    request_size_bytes UInt64 COMMENT 'Octets of the requests\' JSON text.',
    response_size_bytes UInt64 COMMENT 'Octets of the responses\' JSON text.',
    latency_ms AggregateFunction(quantilesBFloat16(0.5, 0.95), UInt64)
        COMMENT 'Latencies that were measured: quantilesBFloat16Merge(0.5, 0.95)(latency_ms).',
    cost_usd Decimal(38, 18) COMMENT 'List price of the calls that have one.',
    input_cost_usd Decimal(38, 18)
        COMMENT 'Of cost_usd, all input: uncached, cached and cache-written.',
    cached_input_cost_usd Decimal(38, 18)
        COMMENT 'Of input_cost_usd, what came from the cache.',
    cache_write_cost_usd Decimal(38, 18)
        COMMENT 'Of input_cost_usd, what was written to the cache.',
    output_cost_usd Decimal(38, 18) COMMENT 'Of cost_usd, all output.',
    unpriced_calls UInt64 COMMENT 'Calls whose cost is not known.'
)
ENGINE = MergeTree
PARTITION BY toDate(hour)
ORDER BY (organization_id, project_id, agent_id, model, hour)
SETTINGS min_age_to_force_merge_seconds = 86400,
    min_age_to_force_merge_on_partition_only = 1
COMMENT 'Usage by hour (llm_trace_pipeline schema 2).'
