"""``sql``: one statement on the configured ClickHouse, also while Dagster loads."""

import click

from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.errors import SettingsError
from llm_trace_pipeline.settings import Settings


def print_result(statement: str) -> None:
    """Print the result of a statement as a table."""
    if not statement.strip():
        raise SettingsError(
            'Q: a statement is needed; usage: make sql Q="SELECT count() FROM llm_traces"'
        )
    with connect(Settings.from_environment()) as database:
        click.echo(database.pretty(statement))
