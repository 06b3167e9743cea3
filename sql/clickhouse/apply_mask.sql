-- Takes the rows of one partition of {table} that a lightweight DELETE masked from the disk.
ALTER TABLE {table} APPLY DELETED MASK IN PARTITION ID {partition:String}
