"""The command line: ``python -m bench [data set …] [--runs N]`` measures, prints and writes."""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from bench.data import DATA_SETS, DataSet, ensure_database, start_server

ROOT = Path(__file__).parents[1]
DATA = ROOT / ".data" / "bench"
RESULTS = Path(__file__).with_name("results.json")

COMPARED = ("limit", "pull", "dlt", "extract", "load", "end_to_end")
# Figures of each run of a contender.
Runs = dict[str, list[dict[str, float]]]


def main() -> None:
    """Measure the data sets that are named, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("data_sets", nargs="*", metavar="data set", help=", ".join(DATA_SETS))
    parser.add_argument(
        "--runs", type=int, help="of each contender; default: 5, of huge and heavy 3, of giant 2"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="a trial: less data, no file")
    arguments = parser.parse_args()
    if unknown := set(arguments.data_sets) - set(DATA_SETS):
        parser.error(f"no such data set: {', '.join(sorted(unknown))}")
    server = start_server(DATA)
    results: dict[str, Any] = {"machine": machine()}
    for name in arguments.data_sets or DATA_SETS:
        data_set = DATA_SETS[name].scaled(arguments.scale)
        say(f"\n{name}: making {data_set.traces:,} traces, unless they are there")
        url = ensure_database(server, data_set)
        runs = _measure(data_set, url, arguments.runs or data_set.runs)
        results[name] = _summary(runs)
        _print_table(name, runs, results[name])
    if arguments.scale == 1:
        known = json.loads(RESULTS.read_text(encoding="utf-8"))  # of the other data sets
        RESULTS.write_text(json.dumps(known | results, indent=2) + "\n", encoding="utf-8")
        say(f"\nwritten to {RESULTS.relative_to(ROOT)}")


def _measure(data_set: DataSet, url: str, count: int) -> Runs:
    """Run the contenders in turn, so that what else the machine does meets all of them alike."""
    is_large = DATA_SETS[data_set.name].is_large
    contenders = [*COMPARED]
    if data_set.name == "wide":
        contenders += ["extract_1", "extract_4"]
    measured: Runs = defaultdict(list)
    for number in range(count + 1):  # the first one warms up
        for contender in contenders:
            # Minutes a run: the one that reads it all has to do as the warm-up of a large hour.
            if is_large and number == 0 and contender != "limit":
                continue
            if is_large and number > 1 and contender == "dlt":
                say(f"run {number}: dlt is left out, one run of a large hour shows where it stands")
                continue
            figures = _run(contender, data_set.name, url)
            if figures["rows"] != data_set.traces:
                raise SystemExit(f"{contender} moved {figures['rows']} of {data_set.traces} rows")
            say(
                f"{f'run {number}' if number else 'warm-up'}: {contender} "
                f"{figures['seconds']:.2f} s, {figures['peak_rss_mb']:.0f} MB"
            )
            if number:
                measured[contender].append(figures)
    measured["zstd"].append(_run("zstd", data_set.name, url))
    shutil.rmtree(DATA / "work")
    return measured


def _run(contender: str, data_set: str, url: str) -> dict[str, float]:
    """Run a contender once, in a process of its own; what others wrote is on the disk by then."""
    os.sync()
    done = subprocess.run(
        [sys.executable, "-m", "bench.contenders", contender, data_set, url, DATA / "work"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _summary(runs: Runs) -> dict[str, Any]:
    """Return what is known of a data set: ratios of medians, peaks, and what is behind them."""
    seconds = {
        contender: [figures["seconds"] for figures in of_contender]
        for contender, of_contender in runs.items()
        if contender != "zstd"
    }
    middle = {contender: median(each) for contender, each in seconds.items()}
    peak = {
        contender: max(figures["peak_rss_mb"] for figures in runs[contender])
        for contender in seconds
        if contender != "limit"  # which psql does, and keeps nothing
    }
    batch = runs["extract"][-1]
    by_connections = {"1": "extract_1", "2": "extract", "4": "extract_4"}
    return {
        "rows": batch["rows"],
        "json_mb": round(batch["json_bytes"] / 1e6, 1),
        "extract_over_limit": round(middle["extract"] / middle["limit"], 3),
        "dlt_over_extract": round(middle["dlt"] / middle["extract"], 3),
        "pull_over_end_to_end": round(middle["pull"] / middle["end_to_end"], 3),
        "extract_peak_rss_mb": peak["extract"],
        "load_peak_rss_mb": peak["load"],
        "parquet_over_json": round(batch["parquet_bytes"] / batch["json_bytes"], 4),
        "parquet_payload_over_json": round(
            runs["zstd"][0]["payload_bytes"] / batch["json_bytes"], 4
        ),
        "zstd1_over_json": round(runs["zstd"][0]["zstd1_bytes"] / batch["json_bytes"], 4),
        "extract_seconds_by_connections": {
            connections: round(middle[contender], 3)
            for connections, contender in by_connections.items()
            if contender in middle
        },
        "median_s": {contender: round(each, 3) for contender, each in middle.items()},
        "peak_rss_mb": peak,
        "runs_s": {
            contender: [round(second, 3) for second in each] for contender, each in seconds.items()
        },
    }


def _print_table(name: str, runs: Runs, summary: dict[str, Any]) -> None:
    say(f"\n{name}: {summary['rows']:,} traces, {summary['json_mb']:,} MB of JSON")
    say(f"  {'':12}{'runs':>5}{'min s':>9}{'median s':>10}{'max s':>9}{'peak MB':>10}")
    for contender, seconds in summary["runs_s"].items():
        peak = summary["peak_rss_mb"].get(contender, "")
        say(
            f"  {contender:12}{len(runs[contender]):5}{min(seconds):9.2f}{median(seconds):10.2f}"
            f"{max(seconds):9.2f}{peak:>10}"
        )
    for key in (
        "extract_over_limit",
        "dlt_over_extract",
        "pull_over_end_to_end",
        "parquet_over_json",
        "parquet_payload_over_json",
        "zstd1_over_json",
    ):
        say(f"  {key:24}{summary[key]:8.3f}")
    for connections, seconds in summary["extract_seconds_by_connections"].items():
        say(f"  extract, connections: {connections:2}{seconds:8.2f} s")


def say(text: str) -> None:
    """Print a line at once; a process that imports more would lend its size to its children."""
    print(text, flush=True)  # noqa: T201 -- a command's output


def machine() -> dict[str, Any]:
    """Return what the figures depend on besides the code."""
    packages = ("adbc-driver-postgresql", "chdb", "connectorx", "dlt", "pyarrow")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
    }


if __name__ == "__main__":
    main()
