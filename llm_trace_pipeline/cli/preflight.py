"""``preflight``: both ends are checked, and what is missing is said with its repair."""

from collections.abc import Sequence
from datetime import UTC, datetime

import click

from llm_trace_pipeline.defs.stores import source_of
from llm_trace_pipeline.errors import PipelineError
from llm_trace_pipeline.hours import Window, floor
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.upkeep.preflight_source import check_source
from llm_trace_pipeline.upkeep.preflight_target import check_batches, check_target, kind_of_target
from llm_trace_pipeline.upkeep.problems import Problem


def check_both_ends() -> None:
    """Check both ends, and print how they are; what must be mended ends the command."""
    settings = Settings.from_environment()
    found: list[Problem] = []
    if settings.is_demo and not (settings.state_dir / "postgres").exists():
        click.echo("operational database: not checked, it is the demo's, which make run makes")
    else:
        this_hour = floor(datetime.now(UTC))
        found += _announced("operational database", check_source(source_of(settings), this_hour))
    if settings.is_in_bucket:
        found += _announced("batches", check_batches(settings))
    if of_target := check_target(settings):
        found += _announced("ClickHouse", of_target)
    else:
        click.echo(f"ClickHouse: OK, {kind_of_target(settings)}")
    _report(found)


def check_before_restore(settings: Settings) -> None:
    """Check where batches are and where rows go, as ``check_before_first_load`` does."""
    _report([*check_batches(settings), *check_target(settings)])


def check_before_first_load(settings: Settings, hours: Sequence[datetime]) -> None:
    """Check both ends; print only what should be mended, and end where something must be."""
    _report(
        [
            *check_source(source_of(settings), Window.of(hours).end),
            *check_batches(settings),
            *check_target(settings),
        ]
    )


def _announced(end: str, problems: list[Problem]) -> list[Problem]:
    click.echo(f"{end}: {'see below' if problems else 'OK'}")
    return problems


def _report(problems: Sequence[Problem]) -> None:
    for problem in problems:
        if not problem.is_fatal:
            click.echo(problem)
    if fatal := [str(problem) for problem in problems if problem.is_fatal]:
        raise PipelineError("\n".join(fatal))
