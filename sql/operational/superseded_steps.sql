-- The metadata-only traces of a window whose step a later trace shares. The step's usage belongs to the
-- latest trace alone, also where that trace lies in another hour. One row per trace: id.
-- {start} and {end} are the bounds of the window.
SELECT t.id
FROM all_traces AS t
WHERE t.origin = 2
    AND t.created_at >= {start}
    AND t.created_at < {end}
    AND EXISTS (
        SELECT 1
        FROM all_traces AS later
        WHERE later.step_id = t.step_id
            AND NOT later.is_deleted
            AND (later.created_at, later.id) > (t.created_at, t.id)
    )
