-- Why a call costs what it costs: whose amount it is, by which entry of which prices, for which units,
-- and what each part of it is. {id:String} is the call's id.
SELECT
    cost_usd,
    multiIf(
        cost_basis = 'reported', 'the response says what was charged',
        cost_basis = 'file', 'your price file',
        cost_basis = 'list' AND usage_source = 'none', 'a failed call without usage costs nothing',
        cost_basis = 'list', 'the list price on its day',
        usage_source = 'none', 'not known: nobody reported the usage',
        'not known: no price, or counts that contradict each other'
    ) AS whose,
    price_entry,
    price_version,
    served_by,
    model,
    served_model,
    service_tier,
    usage_source,
    prompt_tokens - ifNull(cached_input_tokens, 0) - ifNull(cache_write_tokens, 0) AS uncached_tokens,
    cached_input_tokens,
    cache_write_tokens,
    completion_tokens,
    reasoning_tokens,
    usage_details,
    input_cost_usd - cached_input_cost_usd - cache_write_cost_usd AS uncached_cost_usd,
    cached_input_cost_usd,
    cache_write_cost_usd,
    output_cost_usd,
    other_cost_usd
FROM llm_traces
WHERE id = {id:String}
