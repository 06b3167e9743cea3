"""The usage report: what some days cost and whom, as one HTML page, from ClickHouse alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, localcontext
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from llm_trace_pipeline.batches.files import Files
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.clickhouse.cluster import repaired_for_reading
from llm_trace_pipeline.clickhouse.held import Held
from llm_trace_pipeline.clickhouse.tables import TABLE
from llm_trace_pipeline.errors import PipelineError
from llm_trace_pipeline.hours import HOUR, Window
from llm_trace_pipeline.reports.charts import SERIES, stacked_bars
from llm_trace_pipeline.sql import quote_identifier, render
from llm_trace_pipeline.trace.columns import EXACT_DIGITS

_TEMPLATE = Path(__file__).with_name("spend.html")
_DAY = timedelta(days=1)
_MOST_DAYS_BY_HOUR = 3
_TABLES = (
    *("organizations", "cache", "errors", "latency"),
    *("unpriced_models", "unmetered_models", "organizations_without_billing"),
)
_DIMENSIONS = {
    "model": "model",
    "plan": "billing_plan_type",
    "cost_source": "billing_cost_source",
}
_OVER_TIME = ("model", "plan")

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Days:
    """Whole days, UTC, both included."""

    first: date
    last: date

    @property
    def window(self) -> Window:
        """The hours of the days."""
        return Window(
            datetime.combine(self.first, time(), UTC),
            datetime.combine(self.last, time(), UTC) + _DAY,
        )

    @property
    def step(self) -> timedelta:
        """What a bar of a chart over time stands for."""
        return HOUR if (self.last - self.first).days < _MOST_DAYS_BY_HOUR else _DAY


@dataclass(frozen=True)
class Figures:
    """All that the report says, as ClickHouse answered it."""

    days: Days
    headline: dict[str, Any]
    tables: dict[str, Rows]
    over_time: dict[str, Rows]  # bucket, series, spend_usd


def figures_of(database: Database, store: BatchStore, days: Days) -> Figures:
    """Read the figures of some days, from small columns alone, while nobody loads.

    Raises:
        BatchError: another process loads and did not finish in time.
        ClickHouseError: the table cannot be read.
        PipelineError: there is no such table.
    """
    # This writes where a swap was cut, which shows rows twice, or where the table is an older one.
    with repaired_for_reading(database, store) as exists:
        if not exists:
            raise PipelineError(
                f"ClickHouse has no {TABLE} yet: load hours first, such as by make run"
            )
        return _read(database, days)


def _read(database: Database, days: Days) -> Figures:
    window = days.window.parameters
    traces = Held(database, TABLE).rows
    tables = {
        name: database.rows(render(f"report/{name}.sql", traces=traces), window) for name in _TABLES
    }
    for name, column in _DIMENSIONS.items():
        tables[name] = database.rows(_of_dimension("spend_by", traces, column), window)
    return Figures(
        days=days,
        headline=database.rows(render("report/headline.sql", traces=traces), window)[0],
        tables=tables,
        over_time={
            name: _over_time(database, traces, days, _DIMENSIONS[name], tables[name])
            for name in _OVER_TIME
        },
    )


def _over_time(database: Database, traces: str, days: Days, column: str, series: Rows) -> Rows:
    named = [row["name"] for row in series if row["series"] < SERIES]
    rows = database.rows(
        _of_dimension("spend_over_time", traces, column),
        {**days.window.parameters, "seconds": int(days.step.total_seconds()), "names": named},
    )
    return [
        {
            "bucket": row["bucket"],
            "series": row["place"] or SERIES,
            "spend_usd": row["spend_usd"],
        }
        for row in rows
    ]


def _of_dimension(name: str, traces: str, column: str) -> str:
    return render(f"report/{name}.sql", traces=traces, dimension=quote_identifier(column))


def page_of(figures: Figures, made_at: datetime) -> str:
    """Return the page: one file, which needs no network and runs no script."""
    window = figures.days.window
    with localcontext(prec=EXACT_DIGITS):
        charts = {
            name: stacked_bars(rows, window, figures.days.step)
            for name, rows in figures.over_time.items()
            if any(row["spend_usd"] for row in rows)
        }
        return _template().render(
            days=figures.days,
            headline=figures.headline,
            tables=figures.tables,
            over_time={
                name: _by_bucket(rows, figures.tables[name])
                for name, rows in figures.over_time.items()
            },
            charts=charts,
            is_hourly=figures.days.step == HOUR,
            hours=len(window.hours),
            made_at=made_at,
        )


def _by_bucket(rows: Rows, series: Rows) -> list[tuple[datetime, list[Decimal]]]:
    """Return a row of amounts for each step of time that has any, a column for each series."""
    found = {(row["bucket"], row["series"]): row["spend_usd"] for row in rows}
    return [
        (bucket, [found.get((bucket, each["series"]), Decimal(0)) for each in series])
        for bucket in dict.fromkeys(row["bucket"] for row in rows)
    ]


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE.parent),
        autoescape=True,  # ids, models and messages are anybody's texts
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "usd": _usd,
        "exact": _exact,
        "count": "{:,}".format,
        "short": _short,
        "share": _share,
        "share_width": _share_width,
        "seconds": _seconds,
        "price_entries": _price_entries,
    }
    return environment.get_template(_TEMPLATE.name)


def _usd(amount: Decimal) -> str:
    """Return whole cents; of less than half a cent, that it is more than nothing."""
    sign = "-" if amount < 0 else ""
    size = abs(amount)
    if 0 < size < Decimal("0.005"):
        return f"{sign}< $0.01"
    return f"{sign}${size:,.2f}"


def _exact(value: Decimal | int) -> str:
    """Return all digits, for what reads the page's tables by program."""
    return f"{value.normalize():f}" if isinstance(value, Decimal) else str(value)


def _short(number: int) -> str:
    """Return three digits or so, with the unit that a reader says: 12.3 million."""
    for size, unit in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:,}"


def _share(part: Decimal | int, whole: Decimal | int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _share_width(part: Decimal | int, whole: Decimal | int) -> str:
    return f"{100 * part / whole:.2f}%" if whole else "0"


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds / 1000:.2f} s"


def _price_entries(models: Sequence[Mapping[str, Any]]) -> str:
    """Return what to add to the price file; a text of JSON is one of TOML too."""
    return "\n\n".join(
        "[[prices]]\n"
        f"provider = {json.dumps(row['provider'])}\n"
        f"model = {json.dumps(row['model'])}\n"
        "input = \noutput = "
        for row in models
        if row["calls"] > row["contradictory"]
    )


def keep_report(files: Files, day: date, page: str) -> str:
    """Keep the report of a day in place of an earlier one, and return where it lies."""
    files.switch(key := f"reports/{day}.html", page.encode())
    return files.location(key)
