-- Deletes the rows of {table} that meet {condition}, also from the disk: a mutation writes their parts
-- anew.
ALTER TABLE {table} DELETE WHERE {condition}
