-- The traces of a window whose JSON does not fit into one message of PostgreSQL, which is limited to
-- 1 GB: no statement can return such a row whole. One row per trace: id. The statement reads every
-- payload, so it runs only where reading the hour failed. {window} is the condition of the window.
SELECT id
FROM all_traces AS t
WHERE {window}
    AND coalesce(octet_length(request_json::text), 0)::bigint
        + coalesce(octet_length(response_json::text), 0)
        + coalesce(octet_length(llm_config::text), 0)
        + coalesce(octet_length(agent_tags), 0)
        + coalesce(octet_length(billing_context), 0)
        > 1073741824 - 1048576  -- leaves 1 MB for the columns that are no JSON
