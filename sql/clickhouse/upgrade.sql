-- Brings a table of an older schema, or from before this project, up to date in place: its rows and
-- its own layout stay. The comment of a table tells its schema.
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
    MODIFY COMMENT 'One row per LLM call (llm_trace_pipeline schema 1).'
