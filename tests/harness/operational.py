"""An operational database with the agent server's tables, and rows for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import uuid4

import pyarrow as pa
from adbc_driver_postgresql import dbapi

from llm_trace_pipeline.sql import read_sql
from tests.harness.rows import DAY, T0

# What preflight prints where no index leads to an hour.
CREATE_INDEX = "CREATE INDEX CONCURRENTLY ON public.provider_traces (created_at);"


class Operational:
    """An operational database with the agent server's tables, which are made where they lack."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.execute(read_sql("demo/schema.sql"))

    def execute(self, sql: str) -> None:
        """Execute statements, and commit."""
        execute(self.url, sql)

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """Return the rows of a query."""
        with dbapi.connect(self.url, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            rows: list[dict[str, Any]] = cursor.fetch_arrow_table().to_pylist()
            return rows

    def insert(self, table: str, *rows: dict[str, Any]) -> None:
        """Insert rows. A column that a row lacks takes its default; JSON goes in as text."""
        with dbapi.connect(self.url) as connection, connection.cursor() as cursor:
            for names in {tuple(row): None for row in rows}:
                alike = [row for row in rows if tuple(row) == names]
                columns = {name: pa.array([row[name] for row in alike]) for name in names}
                if table == "steps":  # whose counts are 4 bytes wide
                    columns = {
                        name: column.cast(pa.int32()) if column.type == pa.int64() else column
                        for name, column in columns.items()
                    }
                cursor.adbc_ingest(table, pa.table(columns), mode="append")
            connection.commit()


def execute(url: str, sql: str) -> None:
    """Execute statements, and commit."""
    with dbapi.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.adbc_statement.set_sql_query(sql)
        cursor.adbc_statement.execute_update()


@contextmanager
def fresh_database(server_url: str) -> Iterator[str]:
    """Return the URL of a new, empty database of a server; drop it at the end of the block."""
    name = f"test_{uuid4().hex}"
    execute(server_url, f"CREATE DATABASE {name}")
    yield server_url.replace("/postgres?", f"/{name}?", 1)
    execute(server_url, f"DROP DATABASE {name} WITH (FORCE)")


def trace(at: datetime = T0, /, **values: Any) -> dict[str, Any]:
    """Return a row of ``provider_traces``, valid without any value; values replace its own."""
    return {
        "id": f"provider_trace-{uuid4()}",
        "organization_id": "org-1",
        "request_json": '{"model": "gpt-4o", "messages": []}',
        "response_json": '{"model": "gpt-4o", "usage": {"prompt_tokens": 10, '
        '"completion_tokens": 5, "total_tokens": 15}}',
        "llm_config": '{"model": "gpt-4o", "model_endpoint_type": "openai"}',
        "created_at": at,
        "updated_at": at,
        "is_deleted": False,
        **values,
    }


def billing(organization: str, plan: str, valid_from: datetime) -> dict[str, Any]:
    """Return a row of ``organization_billing_details``: a plan and the moment when it began."""
    return {
        "organization_id": organization,
        "plan_type": plan,
        "cost_source": "quota",
        "stripe_customer_id": f"cus_{organization}",
        "created_at": T0 - 100 * DAY,
        "updated_at": valid_from,
    }
