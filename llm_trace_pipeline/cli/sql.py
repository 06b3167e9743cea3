"""``make sql Q="…"``: one statement on the configured ClickHouse, also while Dagster loads."""

import sys

from llm_trace_pipeline.cli.commands import run_command, say
from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.errors import SettingsError
from llm_trace_pipeline.settings import Settings


def main() -> None:
    """Print the result of the statement that the one argument holds."""
    if len(sys.argv) != 2 or not sys.argv[1].strip():  # noqa: PLR2004 -- the statement
        raise SettingsError(
            'Q: a statement is needed; usage: make sql Q="SELECT count() FROM llm_traces"'
        )
    with connect(Settings.from_environment()) as database:
        say(database.pretty(sys.argv[1]))


if __name__ == "__main__":
    run_command(main)
