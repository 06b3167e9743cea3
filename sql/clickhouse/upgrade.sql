-- Brings the older table {table}, such as the live writer's, up to date in place: its rows and its own
-- layout stay. The comment of a table tells the version of its schema.
ALTER TABLE {table}
    ADD COLUMN IF NOT EXISTS billing_plan_type LowCardinality(String)
        COMMENT 'Plan of the organization.' AFTER llm_config_json,
    ADD COLUMN IF NOT EXISTS billing_cost_source LowCardinality(String)
        COMMENT 'What pays: \'quota\' or \'credits\'.' AFTER billing_plan_type,
    ADD COLUMN IF NOT EXISTS billing_customer_id String
        COMMENT 'Stripe customer id.' AFTER billing_cost_source,
    ADD COLUMN IF NOT EXISTS billing_match LowCardinality(String)
        COMMENT 'Where billing came from: \'request\', \'as_of\', \'first_known\' or \'none\'.'
        AFTER created_at,
    ADD COLUMN IF NOT EXISTS payload_hash UInt64
        COMMENT 'xxh3 of request_json followed by response_json.' AFTER billing_match,
    ADD COLUMN IF NOT EXISTS cost_usd Nullable(Decimal(38, 18))
        COMMENT 'List price of the call: input, output and any fee; NULL: not known.'
        AFTER payload_hash,
    ADD COLUMN IF NOT EXISTS input_cost_usd Nullable(Decimal(38, 18))
        COMMENT 'Of cost_usd, all input: uncached, cached and cache-written.' AFTER cost_usd,
    ADD COLUMN IF NOT EXISTS cached_input_cost_usd Nullable(Decimal(38, 18))
        COMMENT 'Of input_cost_usd, what came from the cache.' AFTER input_cost_usd,
    ADD COLUMN IF NOT EXISTS cache_write_cost_usd Nullable(Decimal(38, 18))
        COMMENT 'Of input_cost_usd, what was written to the cache.' AFTER cached_input_cost_usd,
    ADD COLUMN IF NOT EXISTS output_cost_usd Nullable(Decimal(38, 18))
        COMMENT 'Of cost_usd, all output.' AFTER cache_write_cost_usd,
    ADD COLUMN IF NOT EXISTS price_version LowCardinality(String)
        COMMENT 'Prices that the costs were computed with, \'\' if none.' AFTER output_cost_usd,
    MODIFY COMMENT 'One row per LLM call (llm_trace_pipeline schema 2).'
