-- The roll-up: what llm_traces adds up to, by hour and by who called what and who pays for it.
-- {table} is the table's quoted name, {engine} its engine. An hour is computed anew from llm_traces and
-- put in place by the upsert. One partition a day, so that the load of an hour and the retention touch a
-- day and no month. The table's comment is put on it afterwards, by comment.sql. Counts of tokens and
-- octets have 128 bits: a sum of 64 bits wraps without an error.
-- Of 30 days in 700,000 rows, an organization's use by model takes 17 to 28 ms and all by plan 24;
-- ordered by (organization_id, hour) 32 to 54 and 27; in one partition a month 3 to 10 and 13.
-- latency_ms counts the latencies by their first 8 significant bits: a quantile of any rows merged is
-- the quantile of the calls, less than 0.8 % below it. Of 720,000 latencies in hours of 123
-- organizations quantileBFloat16 was at most 0.76 % off, with 2.3 MB; quantileTDigest 1.4 %, with
-- 2.9 MB; quantileDD(0.01) 1.0 %, but 98 % where calls are few, since it takes another one of them; and
-- quantileExactWeighted, which is exact, takes 3.0 MB, and nothing bounds its size.
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
    prompt_tokens UInt128 COMMENT 'All input tokens, cached and cache-written included.',
    completion_tokens UInt128 COMMENT 'All billed output tokens, reasoning included.',
    total_tokens UInt128 COMMENT 'The reported totals, else prompt + completion.',
    cached_input_tokens UInt128 COMMENT 'Of the prompts, as far as reported.',
    cache_write_tokens UInt128 COMMENT 'Of the prompts, as far as reported.',
    reasoning_tokens UInt128 COMMENT 'Of the completions, as far as reported.',
    request_size_bytes UInt128 COMMENT 'Octets of the requests\' JSON text.',
    response_size_bytes UInt128 COMMENT 'Octets of the responses\' JSON text.',
    latency_ms AggregateFunction(quantilesBFloat16(0.5, 0.95), UInt64)
        COMMENT 'Latencies that were measured: quantilesBFloat16Merge(0.5, 0.95)(latency_ms).',
    cost_usd Decimal(38, 18) COMMENT 'What the calls cost, as far as it is known.',
    input_cost_usd Decimal(38, 18)
        COMMENT 'Of cost_usd, all input: uncached, cached and cache-written.',
    cached_input_cost_usd Decimal(38, 18)
        COMMENT 'Of input_cost_usd, what came from the cache.',
    cache_write_cost_usd Decimal(38, 18)
        COMMENT 'Of input_cost_usd, what was written to the cache.',
    output_cost_usd Decimal(38, 18) COMMENT 'Of cost_usd, all output.',
    unpriced_calls UInt64 COMMENT 'Calls whose cost is not known.',
    other_cost_usd Decimal(38, 18)
        COMMENT 'Of cost_usd, fees, and reported costs without their parts.',
    unmetered_calls UInt64 COMMENT 'Of unpriced_calls, those that answered and whose usage is not known.'
)
ENGINE = {engine}
PARTITION BY toDate(hour)
ORDER BY (organization_id, project_id, agent_id, model, hour)
SETTINGS min_age_to_force_merge_seconds = 86400,
    min_age_to_force_merge_on_partition_only = 1
