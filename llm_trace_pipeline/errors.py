"""The errors an operator sees: each says what happened, to which hour, and what to do."""


class PipelineError(Exception):
    """Something that an operator has to act on; the message is complete without a traceback."""


class SettingsError(PipelineError):
    """A configuration variable has a wrong value; the message names it."""


class SourceError(PipelineError):
    """The operational database lacks something, or cannot be read."""


class BatchError(PipelineError):
    """A Parquet batch is missing, damaged, or being written by another process."""


class ClickHouseError(PipelineError):
    """ClickHouse refused a statement, or its rows are not what the batch says."""
