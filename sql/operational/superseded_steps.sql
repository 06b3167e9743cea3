-- The metadata-only traces of a window that another trace of their step keeps from its usage: of the
-- traces of a step, the latest of call type 'agent_step' has it, and where none is of that type, the
-- latest at all, whatever the hour. The server compacts under the id of the step before, so the latest
-- trace of a step is often not the call that its usage is of. One row per trace: id.
-- {start} and {end} are the bounds of the window.
SELECT t.id
FROM all_traces AS t
WHERE t.origin = 2
    AND t.created_at >= {start}
    AND t.created_at < {end}
    AND EXISTS (
        SELECT 1
        FROM all_traces AS other
        WHERE other.step_id = t.step_id
            AND NOT other.is_deleted
            AND ((other.call_type = 'agent_step') IS TRUE, other.created_at, other.id)
                > ((t.call_type = 'agent_step') IS TRUE, t.created_at, t.id)
    )
