"""``sql``: one statement on the configured ClickHouse, also while Dagster loads."""

import re

import click

from llm_trace_pipeline.cli.terminal import printable
from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.errors import ClickHouseError, SettingsError
from llm_trace_pipeline.settings import Settings

# What is quoted, and comments: a semicolon there ends no statement.
_NO_CODE = re.compile(
    r"""'(\\.|[^'\\])*'|"(\\.|[^"\\])*"|`(\\.|[^`\\])*`|--[^\n]*|/\*.*?\*/""", re.DOTALL
)


def print_result(statement: str, *, may_write: bool) -> None:
    """Print the result of a statement as a table. It may change something only if told so."""
    if not statement.strip():
        raise SettingsError(
            'Q: a statement is needed; usage: make sql Q="SELECT count() FROM llm_traces"'
        )
    if ";" in _NO_CODE.sub("", statement).strip().rstrip(";"):
        raise SettingsError("Q: one statement at a time, please: there is text after a semicolon")
    with connect(Settings.from_environment()) as database:
        try:
            click.echo(printable(database.pretty(statement, is_read_only=not may_write)))
        except ClickHouseError as error:
            if may_write or "(READONLY)" not in error.message:
                raise
            raise SettingsError(
                "Q: the statement changes something, and this command only reads; make sql "
                "WRITE=1, or llm-traces sql --write, lets it"
            ) from None
