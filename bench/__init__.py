"""The benchmark: the pipeline beside other ways to move the same hour. Not part of the package."""
