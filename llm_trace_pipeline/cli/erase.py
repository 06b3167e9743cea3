"""``erase``: the traces of an organization, or of one of its agents, are removed for good."""

from collections.abc import Iterable
from datetime import UTC, datetime

import click

from llm_trace_pipeline.batches.erasures import Erasure
from llm_trace_pipeline.errors import SettingsError
from llm_trace_pipeline.hours import parse_hour
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.upkeep.erase import KEPT, OUT_OF_REACH, erase, find


def erase_traces(
    organization: str, agent: str | None, before: str | None, *, dry_run: bool
) -> None:
    """Erase what is named, and say what was done."""
    for name, value in (("organization", organization), ("agent", agent)):
        if value == "":
            raise SettingsError(f"--{name}: is empty")
    now = datetime.now(UTC).replace(microsecond=0)
    erasure = Erasure(
        organization_id=organization,
        agent_id=agent,
        before=_before(before, now) if before is not None else now,
        recorded_at=now,
    )
    settings = Settings.from_environment()
    of_agent = f"agent {agent} of " if agent is not None else ""
    click.echo(
        f"Traces of {of_agent}organization {organization} made before "
        f"{erasure.before:%Y-%m-%d %H:%M:%S} UTC"
    )
    click.echo(f"in {settings.trace_batch_uri} and {settings.clickhouse_endpoint}")
    found = find(settings, erasure)
    _say_all("Found:", found.describe())
    if found.is_nothing:
        click.echo("Nothing that is loaded is covered: is the id right?")
    if dry_run:
        click.echo("Dry run: nothing was changed.")
    else:
        _erase(settings, erasure)


def _erase(settings: Settings, erasure: Erasure) -> None:
    done = erase(settings, erasure)
    click.echo("Recorded: loads and backfills leave these traces out from now on.")
    click.echo(f"Batches: {len(done.written)} hours written anew without them.")
    click.echo(
        f"ClickHouse: deleted; {len(done.compared)} hours were compared, and equal their batches."
    )
    _say_all("Left:", done.left.describe())
    searched = done.searched
    click.echo(
        f"Searched: {searched.file_bytes:,} bytes of {searched.files} files without those traces, "
        f"and {searched.decoded_bytes:,} bytes of their text, for the id "
        f"{erasure.agent_id or erasure.organization_id}: "
        + ("it occurs" if searched.occurrences else "it does not occur")
    )
    if searched.occurrences:
        _say_all("Those are rows made later, or others' rows that name it:", searched.occurrences)
    _say_all("Kept on purpose:", KEPT)
    _say_all("Out of reach of this command:", OUT_OF_REACH)


def _before(text: str, now: datetime) -> datetime:
    try:
        before = parse_hour(text if len(text) > len("2026-03-01") else f"{text}-00:00")
    except ValueError:
        raise SettingsError(
            f"--before: must be a day such as 2026-03-01 or an hour such as 2026-03-01-09:00 "
            f"(UTC), not {text!r}"
        ) from None
    if before > now:
        raise SettingsError(
            f"--before: {text} lies ahead; traces not made yet would be left out of every load"
        )
    return before


def _say_all(title: str, lines: Iterable[str]) -> None:
    click.echo(title)
    for line in lines:
        click.echo(f"  {line}")
