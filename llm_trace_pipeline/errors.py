"""The errors an operator sees: each says what happened, to which hour, and what to do."""

import logging
import traceback

_log = logging.getLogger(__name__)


class PipelineError(Exception):
    """Something that an operator has to act on; the message is complete without a traceback."""


class SettingsError(PipelineError):
    """A configuration variable has a wrong value; the message names it."""


class SourceError(PipelineError):
    """The operational database lacks something, or cannot be read."""

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        """Say what happened, with PostgreSQL's code where it gave one."""
        super().__init__(message)
        self.sqlstate = sqlstate


class LostTracesError(SourceError):
    """The source lacks traces that it once had; trying again brings none of them back."""


class RecoveryConflictError(SourceError):
    """A standby gave up a query, since its replay had to remove rows that the query could see.

    A later snapshot does not see them.
    """


class BatchError(PipelineError):
    """A Parquet batch is missing, damaged, or being written by another process."""


class ClickHouseError(PipelineError):
    """ClickHouse refused a statement, or its rows are not what the batch says."""

    def __init__(self, message: str, repair: str = "", name: str = "") -> None:
        """Say what happened, what to do where that is known, and how the engine names the error."""
        super().__init__(f"{message}; {repair}" if repair else message)
        self.message = message
        self.repair = repair
        self.name = name


class TransientClickHouseError(ClickHouseError):
    """What may be gone in a moment: a lost connection, a server that restarts or is overloaded.

    Whether the statement took effect is not known.
    """


def unexpected(hour: str, error: Exception) -> PipelineError:
    """Return what says that one hour failed in a way that nobody foresaw; log its traceback.

    Args:
        hour: the key of the hour's partition.
        error: what went wrong, a fault of this program or of something that it uses.
    """
    # As text: Dagster's log of a run keeps no exception beside a message.
    _log.error("hour %s: %s", hour, "".join(traceback.format_exception(error)))
    kind, said = type(error).__name__, " ".join(str(error).split())
    return PipelineError(f"hour {hour}: unexpected {kind}: {said}; its traceback is in the log")
