-- The traces that the source still has, in whatever hour, of those asked for; soft-deleted traces count.
-- One row per trace: trace_key. The setting llm_traces.ids is a JSON list of the ids asked for, with and
-- without their prefix.
SELECT DISTINCT trace_key
FROM all_traces
WHERE id IN (
    SELECT asked.id
    FROM json_array_elements_text(current_setting('llm_traces.ids')::json) AS asked (id)
)
