"""``make docs``: write the parts of the pages that the code declares.

A generated part stands between two markers, ``<!-- generated: NAME -->`` and
``<!-- end of generated -->``. The text around the markers is written by hand.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from dagster import AssetCheckSpec
from pydantic import SecretStr

from llm_trace_pipeline.cli.__main__ import llm_traces
from llm_trace_pipeline.clickhouse.client import Database, connect
from llm_trace_pipeline.clickhouse.pins import PINS, SHARED_PINS, Pins
from llm_trace_pipeline.clickhouse.rollup import DIMENSIONS
from llm_trace_pipeline.clickhouse.tables import ROLLUP, TABLE, define_table
from llm_trace_pipeline.defs.assets import ExtractConfig, LoadConfig
from llm_trace_pipeline.defs.checks import (
    BATCH_CHECKS,
    RECONCILIATION_CHECKS,
    ROLLUP_CHECKS,
    TABLE_CHECKS,
)
from llm_trace_pipeline.defs.freshness import FRESHNESS_CHECKS
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.trace.columns import COLUMNS

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "deploy" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
# What README shows; docs/configuration.md has all.
COMMON_VARIABLES = (
    *("OPERATIONAL_DATABASE_URL", "LLM_TRACES_START", "TRACE_BATCH_URI", "CLICKHOUSE_ENDPOINT"),
    *("CLICKHOUSE_USERNAME", "CLICKHOUSE_PASSWORD", "CLICKHOUSE_DATABASE", "LLM_TRACES_PAYLOADS"),
)

_PART = re.compile(r"(?<=<!-- generated: )(.+?)( -->\n).*?(?=<!-- end of generated -->)", re.DOTALL)


def parts(database: Database) -> dict[str, str]:
    """Return the generated parts by their names.

    Args:
        database: an empty database, in which the tables are made: their types are the engine's.
    """
    makers: dict[str, Callable[[], str]] = {
        "common variables": lambda: variables(COMMON_VARIABLES),
        "variables": variables,
        "columns of llm_traces": lambda: columns_of_traces(database),
        "columns of llm_usage_hourly": lambda: columns_of_rollup(database),
        "run config": run_config,
        "checks": checks,
        "commands": commands,
        "pinned settings": lambda: pinned_settings(PINS),
        "pinned settings of shared storage": lambda: pinned_settings(SHARED_PINS),
    }
    return {name: make() for name, make in makers.items()}


def filled(page: str, written: dict[str, str]) -> str:
    """Return a page with its generated parts as they are now.

    Raises:
        KeyError: a marker names a part that nobody generates.
    """
    return _PART.sub(lambda found: f"{found[1]}{found[2]}{written[found[1]]}", page)


def table(header: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table of Markdown."""
    first, *others = (f"| {' | '.join(cells)} |\n" for cells in (header, *rows))
    return first + "|---" * len(header) + "|\n" + "".join(others)


def code(text: str) -> str:
    """Return a text set as code."""
    return f"`{text}`"


def variables(names: Iterable[str] = ()) -> str:
    """Return the environment variables, in the order of the settings; none named: all."""
    settings = Settings.from_environment({})

    def default(name: str) -> str:
        value = getattr(settings, name)
        if value in (None, ()) or isinstance(value, SecretStr):
            return "unset"
        text = str(value).lower() if isinstance(value, bool) else str(value)
        here = str(Path.cwd())
        return code(text.replace(f"chdb://{here}", "chdb://…").replace(here, "…"))

    wanted = set(names)
    return table(
        ("variable", "default", "meaning"),
        (
            (code(str(field.alias)), default(name), str(field.description))
            for name, field in Settings.model_fields.items()
            if not wanted or field.alias in wanted
        ),
    )


def columns_of_traces(database: Database) -> str:
    """Return the columns of ``llm_traces``."""
    types = {name: kind for name, kind, _ in _columns(database, TABLE)}
    return table(
        ("column", "type", "meaning"),
        ((code(column.name), code(types[column.name]), column.description) for column in COLUMNS),
    )


def columns_of_rollup(database: Database) -> str:
    """Return the columns of ``llm_usage_hourly``: its dimensions, then what they add up to."""

    def role(name: str) -> str:
        if name in ("hour", *DIMENSIONS):
            return "dimension"
        return "histogram" if name == "latency_ms" else "sum"

    return table(
        ("column", "type", "role", "meaning"),
        (
            (code(name), code(kind), role(name), comment)
            for name, kind, comment in _columns(database, ROLLUP)
        ),
    )


def _columns(database: Database, name: str) -> list[tuple[str, str, str]]:
    define_table(database, name)
    found = database.rows(
        "SELECT name, type, comment FROM system.columns "
        "WHERE database = currentDatabase() AND table = {table:String} ORDER BY position",
        {"table": name},
    )
    return [(row["name"], row["type"], row["comment"]) for row in found]


def run_config() -> str:
    """Return the options of the assets."""
    return table(
        ("option", "of", "default", "effect"),
        (
            (code(name), code(asset), code(str(field.default).lower()), str(field.description))
            for asset, config in (("trace_batches", ExtractConfig), ("llm_traces", LoadConfig))
            for name, field in config.model_fields.items()
        ),
    )


def checks() -> str:
    """Return the asset checks: of an hour, of all hours, of the newest one."""

    def row(spec: AssetCheckSpec, scope: str) -> tuple[str, ...]:
        blocking = "yes" if spec.blocking else "no"
        asset = code(spec.asset_key.to_user_string())
        return code(spec.name), asset, scope, blocking, str(spec.description)

    return table(
        ("check", "asset", "of", "blocking", "claim"),
        (
            *(row(spec, "an hour") for spec in (*BATCH_CHECKS, *TABLE_CHECKS, *ROLLUP_CHECKS)),
            *(row(spec, "all hours") for spec in RECONCILIATION_CHECKS),
            *(row(spec, "the newest hour or day") for spec in FRESHNESS_CHECKS),
        ),
    )


def commands() -> str:
    """Return the subcommands of ``llm-traces``, with their arguments."""

    def row(command: click.Command) -> tuple[str, str]:
        context = click.Context(command)
        words = ["llm-traces", str(command.name)]
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                value = "" if parameter.is_flag else f" {parameter.make_metavar(context)}"
                option = f"{parameter.opts[0]}{value}"
                words.append(option if parameter.required else f"[{option}]")
            else:
                words.append(parameter.make_metavar(context))
        return code(" ".join(words)), command.get_short_help_str(limit=200)

    return table(("command", "what it does"), map(row, llm_traces.commands.values()))


def pinned_settings(pins: Iterable[Pins]) -> str:
    """Return settings that every statement carries, by their reasons."""
    return table(
        ("settings", "reason"),
        (
            (", ".join(code(f"{name}={value}") for name, value in each.values.items()), each.reason)
            for each in pins
        ),
    )


def main() -> None:
    """Write the generated parts into the pages."""
    with TemporaryDirectory() as folder:
        settings = Settings.from_environment({"CLICKHOUSE_ENDPOINT": f"chdb://{folder}"})
        with connect(settings) as database:
            written = parts(database)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        page.write_text(filled(text, written), encoding="utf-8")


if __name__ == "__main__":
    main()
