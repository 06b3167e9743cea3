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
        COMMENT 'What the call cost: input, output and all else; NULL: not known.'
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
    ADD COLUMN IF NOT EXISTS served_by LowCardinality(String)
        COMMENT 'Provider or host that served the call.' AFTER price_version,
    ADD COLUMN IF NOT EXISTS served_model LowCardinality(String)
        COMMENT 'Model that the response states, \'\' if none.' AFTER served_by,
    ADD COLUMN IF NOT EXISTS service_tier LowCardinality(String)
        COMMENT 'Tier that served the call; \'\': standard.' AFTER served_model,
    ADD COLUMN IF NOT EXISTS cost_basis LowCardinality(String)
        COMMENT 'Whose cost it is: \'reported\' by the provider, \'file\', \'list\', \'\' not known.'
        AFTER service_tier,
    ADD COLUMN IF NOT EXISTS usage_source LowCardinality(String)
        COMMENT 'Where the tokens came from: \'response\', \'step\' or \'none\'.' AFTER cost_basis,
    ADD COLUMN IF NOT EXISTS model_handle String
        COMMENT 'Handle of the model in the agent server.' AFTER usage_source,
    ADD COLUMN IF NOT EXISTS stop_reason LowCardinality(String)
        COMMENT 'Why the step ended.' AFTER model_handle,
    ADD COLUMN IF NOT EXISTS user_id String
        COMMENT 'User of the call.' AFTER stop_reason,
    ADD COLUMN IF NOT EXISTS other_cost_usd Nullable(Decimal(38, 18))
        COMMENT 'Of cost_usd, what is neither: fees, and a reported cost without its parts.'
        AFTER user_id,
    ADD COLUMN IF NOT EXISTS price_entry LowCardinality(String)
        COMMENT 'Entry of the prices that was used, \'\' if none.' AFTER other_cost_usd,
    ADD COLUMN IF NOT EXISTS usage_details String
        COMMENT 'Whatever else decides the cost, as a JSON object; \'\' if nothing does.'
        AFTER price_entry,
    MODIFY COMMENT 'One row per LLM call (llm_trace_pipeline schema 3).'
