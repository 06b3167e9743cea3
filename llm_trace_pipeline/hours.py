"""Hours: what a partition, a batch and a swap stand for. They are whole, and always UTC."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Self

HOUR = timedelta(hours=1)
HOURS_PER_RUN = 24  # a run costs seconds of start-up, so a day of hours shares one

BEGINNING = datetime.min.replace(tzinfo=UTC)  # no hour lies before it

_KEY_FORMAT = "%Y-%m-%d-%H:%M"  # Dagster's own of hourly partitions


@dataclass(frozen=True)
class Window:
    """Contiguous hours, half-open: ``start`` belongs to the window, ``end`` does not."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        """Refuse bounds that lie within an hour, or the wrong way round."""
        if not floor(self.start) == self.start <= floor(self.end) == self.end:
            raise ValueError(f"no window of whole hours: {self.start} to {self.end}")

    @classmethod
    def of(cls, hours: Sequence[datetime]) -> Self:
        """Return the window from the first hour to the end of the last hour."""
        return cls(hours[0], hours[-1] + HOUR)

    @property
    def last(self) -> datetime:
        """The start of the last hour."""
        return self.end - HOUR

    @property
    def hours(self) -> list[datetime]:
        """The start of every hour, in their order."""
        first = self.start.astimezone(UTC)
        return [first + HOUR * n for n in range((self.end - self.start) // HOUR)]

    @property
    def parameters(self) -> dict[str, datetime]:
        """The values of ``{start:…}`` and ``{end:…}`` in a statement for ClickHouse."""
        return {"start": self.start, "end": self.end}


def floor(at: datetime) -> datetime:
    """Return the start of the UTC hour in which a moment lies."""
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def midnight(at: datetime) -> datetime:
    """Return the start of the UTC day in which a moment lies."""
    return floor(at).replace(hour=0)


def closed_hours(first: datetime, span: timedelta, now: datetime) -> list[datetime]:
    """Return the hours that ended within a span before now, none before the first hour."""
    this_hour = floor(now)
    return Window(min(max(first, this_hour - span), this_hour), this_hour).hours


def key_of(hour: datetime) -> str:
    """Return the key of an hour's partition, such as ``2026-03-01-09:00``."""
    return f"{hour.astimezone(UTC):{_KEY_FORMAT}}"


def parse_hour(text: str) -> datetime:
    """Return the start of the hour that a partition's key names.

    Raises:
        ValueError: the text is no key such as ``2026-03-01-09:00``.
    """
    try:
        hour = datetime.strptime(text, _KEY_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        hour = None
    if hour is None or hour.minute:
        raise ValueError(f"must be an hour such as 2026-03-01-09:00 (UTC), not {text!r}")
    return hour


def by_day(hours: Iterable[datetime]) -> list[list[datetime]]:
    """Split sorted hours into one list a UTC day."""
    return [list(of_day) for _, of_day in groupby(hours, midnight)]


def ranges(
    wanted: Iterable[datetime],
    coverable: Collection[datetime] = (),
    *,
    gap: int = HOURS_PER_RUN,
) -> list[Window]:
    """Merge hours into windows of at most ``HOURS_PER_RUN`` hours.

    Args:
        wanted: the hours that the windows must cover.
        coverable: hours that a window may cover besides, where they join two wanted hours.
        gap: how many coverable hours may lie between two wanted hours.
    """
    merged: list[Window] = []
    for hour in sorted(wanted):
        if merged:
            joined = Window(merged[-1].start, hour + HOUR)
            between = Window(merged[-1].end, hour).hours
            if (
                len(joined.hours) <= HOURS_PER_RUN
                and len(between) <= gap
                and all(each in coverable for each in between)
            ):
                merged[-1] = joined
                continue
        merged.append(Window.of([hour]))
    return merged
