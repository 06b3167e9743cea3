"""``invoice``: the files of a month for Stripe are written, and what they hold is said."""

from datetime import UTC, datetime
from itertools import chain, groupby
from pathlib import Path

import click

from llm_trace_pipeline.demo.traffic import first_hour_of
from llm_trace_pipeline.errors import PipelineError, SettingsError
from llm_trace_pipeline.hours import key_of, ranges
from llm_trace_pipeline.reports.invoice import USAGE, Invoice, write_invoice
from llm_trace_pipeline.settings import Settings


def write_files(month: str, out: str) -> None:
    """Write the files of a month, and print what they hold.

    An invoice with holes is written, and the command fails: nothing that runs after it sends it.
    """
    if not month:
        raise SettingsError(f"MONTH: a month is needed; {USAGE}")
    settings = Settings.from_environment()
    folder = Path(out) if out else settings.state_dir / "invoices"
    invoice = write_invoice(
        settings, month, folder, first_hour=first_hour_of(settings), now=datetime.now(UTC)
    )
    print_invoice(invoice)
    if invoice.holes:
        raise PipelineError(
            f"the invoice of {invoice.month} has holes: {len(invoice.holes)} hours are not in "
            "ClickHouse as their batches have them; make backfill, or make restore, then make "
            "invoice again"
        )


def print_invoice(invoice: Invoice) -> None:
    """Print what the files of an invoice hold, and what they lack."""
    month, first_hour = invoice.month, invoice.first_hour
    click.echo(f"{month} (UTC), from llm_traces")
    for line in chain(invoice.totals.describe(), invoice.paths):
        click.echo(line)
    if first_hour > month.start:
        click.echo(f"not before {key_of(first_hour)}, the first hour (LLM_TRACES_START)")
    if invoice.made_at < month.end:
        click.echo(f"not final: {month} ends {key_of(month.end)} UTC")
    for reasons, hours in groupby(sorted(invoice.holes), key=lambda hour: invoice.holes[hour]):
        for window in ranges(hours):
            first, last = key_of(window.start), key_of(window.last)
            click.echo(f"hole: {first} to {last}: {', '.join(reasons)}")
