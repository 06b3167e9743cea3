-- Whether the server can read an object by itself, with the role in {credentials} if there is one:
-- an error where it cannot. No byte of it is read.
SELECT count() FROM s3({place:String}, One{credentials})
