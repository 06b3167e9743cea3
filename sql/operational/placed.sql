-- That a row is of the window: window.sql where no index finds it in provider_traces, but places.sql
-- told where its hour lies. Metadata has an index of its own.
--
-- The time is hidden in a CASE from the planner, which takes it and the place for independent of each
-- other: it would expect a row or two of an hour, and read whatever it joins anew for each that comes.
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
