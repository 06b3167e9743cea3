"""The charts of the report: Vega-Lite, drawn as SVG that takes its colours from the page's CSS."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from markupsafe import Markup

from llm_trace_pipeline.errors import PipelineError
from llm_trace_pipeline.hours import Window

SERIES = 9  # colours of the page: eight of their own, and that of all others

_FONT = "system-ui, sans-serif"
_WIDTH, _HEIGHT = 960, 240
# The top of an axis, of five steps or so, from which on its labels need no cents, or no less.
_WHOLE_DOLLARS_FROM, _CENTS_FROM = Decimal(10), Decimal("0.1")
_CONFIG = {
    "background": None,
    "font": _FONT,
    "aria": False,  # a table with the same figures stands below each chart
    "view": {"stroke": None},
    "axis": {
        "domainColor": "var(--line)",
        "gridColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelColor": "var(--muted)",
        "labelFontSize": 13,
        "labelPadding": 6,
        "title": None,
    },
}


def stacked_bars(rows: Sequence[Mapping[str, Any]], window: Window, step: timedelta) -> Markup:
    """Draw US dollars over time, a bar for each step, the series on top of each other.

    Args:
        rows: ``bucket``, the start of a step; ``series``, 1 to ``SERIES``; ``spend_usd``.
        window: the axis of time.
        step: an hour or a day.

    Raises:
        PipelineError: the extra that draws is not installed.
    """
    try:
        import vl_convert  # noqa: PLC0415 -- an extra
    except ImportError:
        raise PipelineError(
            "the report's charts need the extra: pip install 'llm-trace-pipeline[report]'"
        ) from None
    steps = [window.start + step * n for n in range((window.end - window.start) // step)]
    totals: dict[datetime, Decimal] = defaultdict(Decimal)
    for row in rows:
        totals[row["bucket"]] += row["spend_usd"]
    spec = {
        "width": _WIDTH,
        "height": _HEIGHT,
        "padding": 4,
        "data": {
            "values": [
                {
                    "bucket": _milliseconds(row["bucket"]),
                    "series": row["series"],
                    "usd": float(row["spend_usd"]),
                }
                for row in rows
            ]
        },
        "mark": "bar",
        "encoding": {
            "x": {
                "field": "bucket",
                "type": "ordinal",  # a place for each step, also where nothing was spent
                "scale": {"domain": list(map(_milliseconds, steps)), "paddingInner": 0.2},
                "axis": {
                    "labelAngle": 0,
                    "labelExpr": "utcFormat(datum.value, utchours(datum.value) "
                    "? '%H:%M' : '%-d %b')",
                    "labelOverlap": True,
                    "ticks": False,
                    "values": [_milliseconds(step) for step in steps if step.hour % 6 == 0],
                },
            },
            "y": {
                "field": "usd",
                "type": "quantitative",
                "stack": "zero",
                "axis": {
                    "format": _axis_format(max(totals.values())),
                    "domain": False,
                    "ticks": False,
                    "tickCount": 5,
                },
            },
            "color": {
                "field": "series",
                "type": "nominal",
                "scale": {
                    "domain": list(range(1, SERIES + 1)),
                    "range": [f"var(--series-{number})" for number in range(1, SERIES + 1)],
                },
                "legend": None,
            },
            "order": {"field": "series"},
        },
    }
    # Nothing of the spec is a text from outside, and the spec reads nothing from anywhere.
    svg: str = vl_convert.vegalite_to_svg(spec, config=_CONFIG, allowed_base_urls=[])
    return Markup(svg)  # noqa: S704 -- drawn from numbers alone


def _axis_format(top: Decimal) -> str:
    """Return whole dollars, or cents, or less, as the steps of the axis need."""
    if top >= _WHOLE_DOLLARS_FROM:
        return "$,.0f"
    return "$,.2f" if top >= _CENTS_FROM else "$,.4f"


def _milliseconds(time: datetime) -> int:
    return int(time.timestamp() * 1000)
