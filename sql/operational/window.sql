-- That a row is of the window. No statement, but a condition in several of them.
t.created_at >= {start}
AND t.created_at < {end}
