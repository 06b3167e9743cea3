-- Adds the rows of one Parquet file that meet {filter} to {table}. {values} are the columns of the
-- file, in the order of {columns}, and '' for a payload that is not kept; {function} reads the file,
-- with the role in {credentials} if there is one.
INSERT INTO {table} ({columns})
SELECT {values}
FROM {function}({place:String}, Parquet, {structure:String}{credentials})
WHERE {filter}
