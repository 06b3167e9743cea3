"""The demo's traffic: when it begins, and how it comes into the operational database.

The rows of an hour are always the same, so the newest trace in the database tells what is missing.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from adbc_driver_postgresql import dbapi
from filelock import FileLock

from llm_trace_pipeline.demo.rows import billing_details, rows_of_hour
from llm_trace_pipeline.hours import HOUR, floor
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.sql import read_sql


def first_hour_of(settings: Settings) -> datetime:
    """Return the first hour that can be loaded: ``LLM_TRACES_START``, or the demo's."""
    return settings.first_hour or first_hour(settings.state_dir)


def first_hour(data_dir: Path) -> datetime:
    """Return the first hour of the demo's traffic.

    The first call fixes it, 48 hours before the current hour, in ``data_dir/demo.json``.
    """
    path = data_dir / "demo.json"
    with FileLock(data_dir / "demo.lock"):
        if not path.exists():
            hour = floor(datetime.now(UTC)) - 48 * HOUR
            new = path.with_suffix(".new")
            new.write_text(json.dumps({"first_hour": hour.isoformat()}), encoding="utf-8")
            new.replace(path)
    return datetime.fromisoformat(json.loads(path.read_text(encoding="utf-8"))["first_hour"])


def add_traffic(
    url: str, start: datetime, until: datetime, report: Callable[[str], None] = lambda _line: None
) -> int:
    """Add the traffic of [start, until) that the database does not have yet.

    Args:
        url: the libpq URL of the demo's database, whose tables are made where they are missing.
        start: the demo's first hour.
        until: the end of the traffic; it may lie within an hour.
        report: called with a line of progress for every hour.

    Returns:
        The number of traces added.
    """
    added = 0
    with dbapi.connect(url) as connection, connection.cursor() as cursor:
        # The session holds the lock, a number that nothing else here uses: a second process waits,
        # and then finds nothing to add.
        _fetch_value(cursor, "SELECT pg_advisory_lock(7021944113)")
        cursor.execute("SET synchronous_commit = off")
        cursor.executescript(read_sql("demo/schema.sql"))
        if not _fetch_value(cursor, "SELECT count(*) FROM organization_billing_details"):
            insert(connection, "organization_billing_details", billing_details(start))
        newest = max(
            _fetch_value(cursor, f"SELECT max(created_at) FROM {table}") or start
            for table in ("provider_traces", "provider_trace_metadata")
        )
        connection.commit()
        begin = floor(newest)
        hours = [begin + n * HOUR for n in range(-((begin - until) // HOUR))]
        for number, hour in enumerate(hours, start=1):
            report(f"hour {number} of {len(hours)}")
            for table, rows in rows_of_hour(hour).items():
                new_rows = [row for row in rows if newest < row["created_at"] < until]
                insert(connection, table, new_rows)
                added += len(new_rows) if table.startswith("provider_trace") else 0
            connection.commit()
        if added:
            # Without statistics the first hours are planned as if the tables were empty.
            cursor.executescript("ANALYZE")
            connection.commit()
    return added


def insert(connection: dbapi.Connection, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to a table; a column that no row names gets its default."""
    if not rows:
        return
    named = {column for row in rows for column in row}
    schema = connection.adbc_get_table_schema(table)
    columns = pa.schema([field for field in schema if field.name in named])
    with connection.cursor() as cursor:
        cursor.adbc_ingest(table, pa.Table.from_pylist(rows, columns), "append")


def _fetch_value(cursor: dbapi.Cursor, query: str) -> Any:  # noqa: ANN401 -- a value of SQL
    cursor.execute(query)
    row = cursor.fetchone()
    return row[0] if row else None
