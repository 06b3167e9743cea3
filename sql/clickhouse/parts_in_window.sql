-- The parts of {table} that hold rows of a window, which {in_window} tells; is_inside: a part holds no
-- other rows.
SELECT _part AS name, countIf({in_window}) = count() AS is_inside
FROM {table}
GROUP BY _part
HAVING countIf({in_window}) > 0
