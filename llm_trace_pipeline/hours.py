"""Hours: the partitions' keys, always UTC."""

from datetime import UTC, datetime, timedelta

HOUR = timedelta(hours=1)
HOUR_FORMAT = "%Y-%m-%d-%H:%M"  # Dagster's own key format of hourly partitions


def parse_hour(text: str) -> datetime:
    """Read an hour's key, such as ``2026-03-01-09:00``, as the start of that hour in UTC.

    Raises:
        ValueError: the text is no such key.
    """
    try:
        hour = datetime.strptime(text, HOUR_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        hour = None
    if hour is None or hour.minute:
        raise ValueError(f"must be an hour such as 2026-03-01-09:00 (UTC), not {text!r}")
    return hour
