-- Gives the table {table} the comment {comment}, which tells the version of its schema.
ALTER TABLE {table}
    MODIFY COMMENT {comment}
