-- Whether the Distributed table sends the rows of some organizations to this shard, as {is_own} says.
SELECT arrayJoin({organizations:Array(String)}) AS organization_id, {is_own} AS is_own
