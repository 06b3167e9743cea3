"""What a command says of runs that fail as a whole, before any hour has its turn."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_trace_pipeline.cli.hours import ErrorsOnce
from llm_trace_pipeline.hours import HOUR, key_of
from tests.harness.operational import Operational, trace
from tests.harness.rows import T0


@pytest.mark.usefixtures("settings")
def test_what_fails_for_all_hours_is_said_once_with_the_hours(
    operational: Operational, tmp_path: Path
) -> None:
    operational.insert("provider_traces", trace(id="a"))
    operational.execute("DROP TABLE organization_billing_details")
    first, last = key_of(T0), key_of(T0 + HOUR)
    done = subprocess.run(
        [sys.executable, "-m", "llm_trace_pipeline.cli", "backfill", first, last],
        env={**os.environ, "DAGSTER_HOME": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    said = f"{first} to {last}: the operational database has no table organization_billing_details"
    assert done.stdout.count(said) == 1, done.stdout
    assert f"what failed is said above and in the Dagster UI: {first} to {last} (run" in done.stderr


def test_an_error_of_several_runs_is_printed_once() -> None:
    once = ErrorsOnce()
    info, error, other = (
        logging.LogRecord("", level, "", 0, "%s: %s", ("hour", text), None)
        for level, text in ((logging.INFO, "a"), (logging.ERROR, "a"), (logging.ERROR, "b"))
    )
    printed = [once.filter(record) for record in (info, info, error, other, error, other)]
    assert printed == [True, True, True, True, False, False]
