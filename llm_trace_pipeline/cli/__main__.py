"""The command ``llm-traces``: its subcommands and their arguments, and how a command ends.

What a subcommand does is imported when it is called: ``llm-traces --help`` is answered without
Dagster, Arrow and the engines, whose imports take seconds.
"""

import sys
from errno import ENOSPC

import click

from llm_trace_pipeline.cli.terminal import printable
from llm_trace_pipeline.errors import PipelineError

_NAME = "llm-traces"


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Variables of the environment configure it; with none set, it runs embedded engines on "
    "made-up traffic, and keeps all it makes in ./.data (LLM_TRACES_STATE). Where a message names "
    "a make target, the command of that name does the same.",
)
@click.pass_context
def llm_traces(context: click.Context) -> None:
    """Load LLM traces from PostgreSQL into ClickHouse, exact enough for an invoice."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@llm_traces.command()
def run() -> None:
    """Load the last 24 full hours, and print a report.

    The hours are loaded through Dagster. Where no database is configured, demo traffic is made
    first.
    """
    from llm_trace_pipeline.cli.run import load_last_hours

    load_last_hours()


@llm_traces.command()
@click.option(
    "--port", metavar="PORT", default="3000", show_default=True, help="Port of the UI here."
)
def dev(port: str) -> None:
    """Serve the Dagster UI, with the hourly schedule running."""
    from llm_trace_pipeline.cli.dev import serve_dagster

    serve_dagster(port)


@llm_traces.command()
@click.argument("first", metavar="FROM")
@click.argument("last", metavar="TO")
def backfill(first: str, last: str) -> None:
    """Load a range of hours.

    FROM and TO are hours in UTC, such as 2026-03-01-00:00, both included.
    """
    from llm_trace_pipeline.cli.backfill import load_range

    load_range(first, last)


@llm_traces.command()
@click.argument("first", metavar="FROM")
@click.argument("last", metavar="TO")
def restore(first: str, last: str) -> None:
    """Rebuild ClickHouse from the Parquet batches alone.

    FROM and TO are hours in UTC, such as 2026-03-01-00:00, both included. The operational database
    is not read.
    """
    from llm_trace_pipeline.cli.backfill import restore_range

    restore_range(first, last)


@llm_traces.command()
@click.argument("statement")
@click.option("--write", is_flag=True, help="Allow a statement that changes something.")
def sql(statement: str, *, write: bool) -> None:
    """Print the result of a statement on ClickHouse.

    It waits its turn while Dagster loads.
    """
    from llm_trace_pipeline.cli.sql import print_result

    print_result(statement, may_write=write)


@llm_traces.command()
@click.argument("first", metavar="[FROM]", default="")
@click.argument("last", metavar="[TO]", default="")
@click.option("--out", metavar="FILE", default="", help="The page; else in LLM_TRACES_STATE.")
def report(first: str, last: str, out: str) -> None:
    """Write what some days cost, and whom, as an HTML page.

    FROM and TO are days in UTC, such as 2026-03-01, both included; without them it is the last
    seven full days, and of today what is loaded.
    """
    from llm_trace_pipeline.cli.report import write_report

    write_report(first, last, out)


@llm_traces.command()
@click.argument("month")
@click.option("--out", metavar="FOLDER", default="", help="The files; else in LLM_TRACES_STATE.")
def invoice(month: str, out: str) -> None:
    """Write a month as files for Stripe, by customer.

    They hold what each customer used, and is to pay. MONTH is a calendar month in UTC, such as
    2026-03.
    """
    from llm_trace_pipeline.cli.invoice import write_files

    write_files(month, out)


@llm_traces.command()
def preflight() -> None:
    """Say what is missing at either end, with the exact repair."""
    from llm_trace_pipeline.cli.preflight import check_both_ends

    check_both_ends()


@llm_traces.command()
@click.option("--organization", metavar="ID", required=True, help="Whose traces are erased.")
@click.option("--agent", metavar="ID", help="Only the traces of this agent.")
@click.option(
    "--before",
    metavar="DATE",
    help="Only what was made before: YYYY-MM-DD or YYYY-MM-DD-HH:00, UTC; else all until now.",
)
@click.option("--dry-run", is_flag=True, help="Count, and change nothing.")
def erase(organization: str, agent: str | None, before: str | None, *, dry_run: bool) -> None:
    """Erase the traces of an organization.

    They are removed from every batch and from ClickHouse, and stay away.
    """
    from llm_trace_pipeline.cli.erase import erase_traces

    erase_traces(organization, agent, before, dry_run=dry_run)


def main() -> None:
    """Run the command. An error that an operator can act on is one line, and exit status 2."""
    try:
        llm_traces(prog_name=_NAME, standalone_mode=False)
    except PipelineError as error:
        sys.exit(_ended_by(str(error)))
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        if not place and error.errno != ENOSPC:  # nothing that another place would mend
            raise
        sys.exit(
            _ended_by(
                f"{place}{error.strerror}; name another place, by LLM_TRACES_STATE, "
                "TRACE_BATCH_URI or the command's OUT"
            )
        )
    except click.UsageError as error:
        usage = error.ctx.get_usage() if error.ctx else ""
        sys.exit(_ended_by(" ".join(f"{error.format_message()} {usage}".split())))
    except click.Abort:  # by Ctrl-C
        sys.exit(130)


def _ended_by(line: str) -> int:
    click.echo(printable(line), err=True)
    return 2


if __name__ == "__main__":
    main()
