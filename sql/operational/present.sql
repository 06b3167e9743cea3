-- Which of some traces the source still has, in whatever hour, soft-deleted ones included.
-- One row each: trace_key. The ids come as a JSON list, with and without their prefix.
SELECT DISTINCT trace_key
FROM all_traces
WHERE id IN (
    SELECT asked.id
    FROM json_array_elements_text(current_setting('llm_traces.ids')::json) AS asked (id)
)
