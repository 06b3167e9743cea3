"""What an index on created_at is worth: ``python -m bench.hours`` extracts 24 hours in one run.

With the index, without it by scans of the whole table for each hour, and without it by one scan for
the run, which is what the pipeline does. The rows are those of ``bench.ledger``.
"""

import argparse
import shutil
import time
from contextlib import closing
from datetime import timedelta
from statistics import median

from bench.__main__ import DATA, say
from bench.data import execute, start_server
from bench.ledger import DAYS, START, TRACES, ensure_rows
from llm_trace_pipeline.batches.extract import extract_hour
from llm_trace_pipeline.batches.files import LocalFiles
from llm_trace_pipeline.batches.history import capture_billing
from llm_trace_pipeline.batches.rules import Rules
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.hours import Window
from llm_trace_pipeline.source.postgres import Source, SourceOfHours
from llm_trace_pipeline.sql import read_sql

MIDDLE = Window(START + timedelta(days=DAYS // 2), START + timedelta(days=DAYS // 2 + 1))
RUNS = 3  # after one that warms up


def main() -> None:
    """Make the rows where they are missing, measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.hours")
    parser.add_argument("--scale", type=float, default=1.0, help="a trial: less data")
    traces = round(TRACES * parser.parse_args().scale)
    url = ensure_rows(start_server(DATA / "ledger"), traces)
    source = Source(url, connections=2)
    execute(url, read_sql("demo/schema.sql"))  # makes the index that an earlier run dropped
    say(f"24 hours of {traces:,} traces")
    _measure("index on created_at", source)
    execute(url, "DROP INDEX ix_provider_traces_created_at")
    _measure("no index, scans for each hour", source)
    with closing(SourceOfHours(source, MIDDLE)) as run:
        _measure("no index, one scan for the run", run)


def _measure(title: str, source: Source) -> None:
    seconds = []
    for _ in range(RUNS + 1):
        folder = DATA / "hours"
        shutil.rmtree(folder, ignore_errors=True)
        store = BatchStore(LocalFiles(folder))
        history = capture_billing(source, store.files).history
        started = time.perf_counter()
        rows = sum(extract_hour(source, store, Rules(history), hour).rows for hour in MIDDLE.hours)
        if isinstance(source, SourceOfHours):
            source.close()
        seconds.append(time.perf_counter() - started)
    runs = ", ".join(f"{each:.2f}" for each in seconds[1:])
    say(f"{title:32} {rows:,} rows   median {median(seconds[1:]):.2f} s: {runs}")


if __name__ == "__main__":
    main()
