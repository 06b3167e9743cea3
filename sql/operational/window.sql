-- The condition that a row is of a window. No statement, but a part of several.
-- {start} and {end} are the bounds of the window.
t.created_at >= {start}
AND t.created_at < {end}
