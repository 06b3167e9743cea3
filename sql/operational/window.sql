-- That a row is of the window. No statement, but a condition in several of them.
t.created_at >= current_setting('llm_traces.start')::timestamptz
AND t.created_at < current_setting('llm_traces.end')::timestamptz
