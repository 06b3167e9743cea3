"""Whether the operational database is still written to."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from llm_trace_pipeline.hours import HOUR, Window, floor
from llm_trace_pipeline.source.postgres import Source

_SPAN = timedelta(days=1)


@dataclass(frozen=True)
class Newest:
    """What the source has of the last day."""

    rows: int  # that are not deleted
    at: datetime | None  # of the newest trace; None: there is none
    lag: timedelta | None  # from the newest trace to now


def newest_of(source: Source) -> Newest:
    """Ask the source for its newest trace and the traces of the last day; no payload is read.

    Raises:
        SourceError: the database cannot be read.
    """
    now = datetime.now(UTC)
    with source.snapshot() as snapshot:
        [row] = snapshot.rows_in("newest", Window(floor(now) - _SPAN, floor(now) + HOUR))
    return Newest(row["rows"], row["newest"], now - row["newest"] if row["newest"] else None)
