-- Brings the older roll-up {table} up to date in place. Its rows stay, with 0 in the columns that are
-- new: an hour that this makes differ from llm_traces is found and rolled up again as any other. The
-- table's comment is put on it afterwards, by comment.sql.
ALTER TABLE {table}
    MODIFY COLUMN prompt_tokens UInt128 COMMENT 'All input tokens, cached and cache-written included.',
    MODIFY COLUMN completion_tokens UInt128 COMMENT 'All billed output tokens, reasoning included.',
    MODIFY COLUMN total_tokens UInt128 COMMENT 'The reported totals, else prompt + completion.',
    MODIFY COLUMN cached_input_tokens UInt128 COMMENT 'Of the prompts, as far as reported.',
    MODIFY COLUMN cache_write_tokens UInt128 COMMENT 'Of the prompts, as far as reported.',
    MODIFY COLUMN reasoning_tokens UInt128 COMMENT 'Of the completions, as far as reported.',
    MODIFY COLUMN request_size_bytes UInt128 COMMENT 'Octets of the requests\' JSON text.',
    MODIFY COLUMN response_size_bytes UInt128 COMMENT 'Octets of the responses\' JSON text.',
    MODIFY COLUMN cost_usd Decimal(38, 18) COMMENT 'What the calls cost, as far as it is known.',
    ADD COLUMN IF NOT EXISTS other_cost_usd Decimal(38, 18)
        COMMENT 'Of cost_usd, fees, and reported costs without their parts.' AFTER unpriced_calls,
    ADD COLUMN IF NOT EXISTS unmetered_calls UInt64
        COMMENT 'Of unpriced_calls, those that answered and whose usage is not known.' AFTER other_cost_usd
