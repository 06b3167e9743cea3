-- The provider trace of a step, as the agent server shows it: the latest one.
SELECT
    created_at,
    id,
    step_id,
    request_json,
    response_json
FROM llm_traces
WHERE step_id = {step_id:String}
    AND organization_id = {organization_id:String}
ORDER BY created_at DESC
LIMIT 1
