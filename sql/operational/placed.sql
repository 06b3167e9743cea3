-- The condition that a row is of an hour, where no index finds the hour in provider_traces, but
-- places.sql told its places. Metadata has an index of its own. {start} and {end} are the bounds of the
-- window, {first} and {last} the places of the hour.
--
-- A CASE hides the time from the planner. The planner would take time and place for independent, expect
-- a row or two, and read the joined tables anew for every row that comes.
(
    t.origin = 2
    AND t.created_at >= {start}
    AND t.created_at < {end}
    OR t.origin = 1
    AND t.place >= {first}
    AND t.place <= {last}
    AND CASE
        WHEN t.created_at >= {start}
            AND t.created_at < {end}
            THEN true
    END
)
