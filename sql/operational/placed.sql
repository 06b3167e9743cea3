-- That a row is of the window: window.sql where no index finds it in provider_traces, but places.sql
-- told where its hour lies. Metadata has an index of its own.
--
-- The time is hidden in a CASE from the planner, which takes it and the place for independent of each
-- other: it would expect a row or two of an hour, and read whatever it joins anew for each that comes.
(
    t.origin = 2
    AND t.created_at >= current_setting('llm_traces.start')::timestamptz
    AND t.created_at < current_setting('llm_traces.end')::timestamptz
    OR t.origin = 1
    AND t.place >= current_setting('llm_traces.first')::tid
    AND t.place <= current_setting('llm_traces.last')::tid
    AND CASE
        WHEN t.created_at >= current_setting('llm_traces.start')::timestamptz
            AND t.created_at < current_setting('llm_traces.end')::timestamptz
            THEN true
    END
)
