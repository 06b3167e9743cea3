"""A month of hours by one backfill, as the UI launches it: ``python -m bench.backfill``.

720 hours of 1,000 traces each, twice: the first load, and again when 1 % of the rows of every hour
have changed. All that runs is what ``make dev`` starts.
"""

import argparse
import http.client
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from dagster import AssetKey, DagsterEventType, DagsterInstance, RunsFilter
from dagster._core.execution.backfill import BulkActionStatus

from bench.__main__ import DATA, ROOT, machine, say
from bench.data import START, DataSet, ensure_database, execute, start_server
from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.hours import Window, key_of
from llm_trace_pipeline.settings import Settings

RESULTS = Path(__file__).with_name("backfill.json")
PLOT = ROOT / "docs" / "backfill.svg"
FIRST = datetime(2026, 3, 1, tzinfo=UTC)
DAYS = 30
TRACES_PER_HOUR = 1_000
ASSETS = ("trace_batches", "llm_traces")
LIMIT_SECONDS, LIMIT_RATIO = 240, 1.5
_PATIENCE_SECONDS = 1800.0

_LAUNCH = """mutation ($backfill: LaunchBackfillParams!) {
    launchPartitionBackfill(backfillParams: $backfill) { __typename
        ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
_LOCATIONS = "{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }"


def main() -> None:
    """Measure, print, and write the figures and the plot."""
    parser = argparse.ArgumentParser(prog="python -m bench.backfill")
    parser.add_argument("--days", type=int, default=DAYS, help="a trial: less data, no file")
    arguments = parser.parse_args()
    hours = Window(FIRST, FIRST + timedelta(days=arguments.days)).hours
    say(f"making {len(hours) * TRACES_PER_HOUR:,} traces")
    url = _fresh_month(len(hours))
    environment = fresh_state("backfill") | {
        "OPERATIONAL_DATABASE_URL": url,
        "LLM_TRACES_START": key_of(FIRST),
    }
    os.environ.update(environment)
    results: dict[str, Any] = {"machine": machine(), "hours": len(hours)}
    results["load_average_before"] = round(os.getloadavg()[0], 1)  # of what others do here
    costs: dict[str, list[float]] = {}
    with serving(environment) as port, DagsterInstance.get() as instance:
        for load in ("first load", "reload"):
            if load == "reload":
                _change_one_row_in_a_hundred(url)
            results[load], costs[load] = _measure(instance, port, hours)
            _print(load, results[load])
    _verify(hours)
    results["reload_over_first_load"] = round(
        results["reload"]["seconds"] / results["first load"]["seconds"], 2
    )
    say(
        f"\nfirst load {results['first load']['seconds']} s (at most {LIMIT_SECONDS}), "
        f"reload / first load {results['reload_over_first_load']} (at most {LIMIT_RATIO})"
    )
    if arguments.days == DAYS:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        PLOT.write_text(_plot(costs), encoding="utf-8")


# ---- the data


def _fresh_month(hours: int) -> str:
    """Make the month's database anew: one hour's data set, its times stretched over the hours."""
    server = start_server(DATA)
    template = DataSet("month", hours * TRACES_PER_HOUR, 1_400, 300)
    ensure_database(server, template)
    execute(
        server,
        "DROP DATABASE IF EXISTS month_backfill WITH (FORCE)",
        f"CREATE DATABASE month_backfill TEMPLATE {template.database} STRATEGY FILE_COPY",
    )
    url = server.replace("/postgres?", "/month_backfill?", 1)
    at = f"timestamptz '{FIRST}' + (created_at - timestamptz '{START}') * {hours}"
    for table in ("provider_traces", "steps", "step_metrics"):
        execute(url, f"UPDATE {table} SET created_at = {at}, updated_at = {at}")
    execute(url, "VACUUM FULL ANALYZE", "CHECKPOINT")
    return url


def _change_one_row_in_a_hundred(url: str) -> None:
    """Change ten traces of every hour: they lie 3.6 s apart, and one every six minutes is taken."""
    execute(
        url,
        "UPDATE provider_traces SET call_type = 'changed', updated_at = now() "
        "WHERE (extract(epoch FROM created_at) * 10)::bigint % 3600 = 0",
    )


def _verify(hours: Sequence[datetime]) -> None:
    """Compare ClickHouse with what was made, hour by hour."""
    with connect(Settings.from_environment()) as database:
        found = database.rows(
            "SELECT toUnixTimestamp(toStartOfHour(created_at)) AS hour, count() AS rows, "
            "uniqExact(id) AS ids, countIf(call_type = 'changed') AS changed "
            "FROM llm_traces GROUP BY hour ORDER BY hour"
        )
    counted = {"rows": TRACES_PER_HOUR, "ids": TRACES_PER_HOUR, "changed": TRACES_PER_HOUR // 100}
    expected = [{"hour": int(hour.timestamp()), **counted} for hour in hours]
    if found != expected:
        wrong = [each for each in found if each not in expected]
        raise SystemExit(f"{len(found)} hours in ClickHouse; not as they should be: {wrong[:5]}")
    say(f"\nevery one of {len(hours)} hours has its rows, each once, with the changes")


# ---- Dagster


def fresh_state(name: str) -> dict[str, str]:
    """Return an environment with a new state folder, and nothing of ours from outside."""
    ours = ("LLM_TRACES_", "CLICKHOUSE_", "TRACE_BATCH_", "OPERATIONAL_", "DAGSTER_")
    for key in [key for key in os.environ if key.startswith(ours)]:
        del os.environ[key]
    state = DATA / name
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    shutil.copy(ROOT / "dagster.yaml", state)
    return {"LLM_TRACES_STATE": str(state), "DAGSTER_HOME": str(state)}


@contextmanager
def serving(environment: Mapping[str, str]) -> Iterator[int]:
    """Run what ``make dev`` runs; yield the port once the code location is loaded."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    log = Path(environment["LLM_TRACES_STATE"]) / "dev.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "llm_trace_pipeline.cli", "dev", "--port", str(port)],
            cwd=ROOT,
            env={**os.environ, **environment, "DAGSTER_DISABLE_TELEMETRY": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        while not _is_up(port):
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.5)  # a server says by answering that it is up
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _is_up(port: int) -> bool:
    with suppress(OSError, http.client.HTTPException):
        return bool(query(port, _LOCATIONS)["repositoriesOrError"].get("nodes"))
    return False


def query(port: int, text: str, **variables: object) -> Any:  # noqa: ANN401 -- JSON
    """Return what the instance's GraphQL answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_SECONDS)
    body = json.dumps({"query": text, "variables": variables})
    connection.request("POST", "/graphql", body, {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    if "errors" in answer:
        raise SystemExit(str(answer))
    return answer["data"]


def launch_backfill(port: int, hours: Sequence[datetime]) -> str:
    """Launch a backfill of both assets as the UI does; return its id."""
    backfill = {
        "assetSelection": [{"path": [asset]} for asset in ASSETS],
        "partitionNames": [key_of(hour) for hour in hours],
    }
    launched = query(port, _LAUNCH, backfill=backfill)["launchPartitionBackfill"]
    if launched["__typename"] != "LaunchBackfillSuccess":
        raise SystemExit(str(launched))
    return str(launched["backfillId"])


# ---- the figures


def _measure(
    instance: DagsterInstance, port: int, hours: Sequence[datetime]
) -> tuple[dict[str, Any], list[float]]:
    """Run a backfill of the hours; return its figures, and the seconds that each hour took."""
    began = time.time()
    backfill = launch_backfill(port, hours)
    while (status := _status(instance, backfill)) is BulkActionStatus.REQUESTED:
        if time.time() > began + _PATIENCE_SECONDS:
            raise SystemExit("the backfill does not end")
        time.sleep(0.5)  # Dagster tells nobody that a backfill ended
    ended = time.time()
    if status is not BulkActionStatus.COMPLETED_SUCCESS:
        raise SystemExit(f"the backfill ended as {status}")
    records = instance.get_run_records(RunsFilter(tags={"dagster/backfill": backfill}))
    created = [record.create_timestamp.timestamp() for record in records]
    seconds = {asset: _seconds_by_hour(instance, asset, hours) for asset in ASSETS}
    spent: defaultdict[str, float] = defaultdict(float)
    for record in records:
        for name, each in _spent(instance, record).items():
            spent[name] += each
        costs = [sum(each) for each in zip(*seconds.values(), strict=True)]
    spent["hours"] = math.fsum(costs)
    spent["rest of steps"] = spent["steps"] - spent["hours"]
    days = [round(median(costs[n : n + 24]), 3) for n in range(0, len(costs), 24)]
    last_end = max(record.end_time or 0.0 for record in records)
    return {
        "seconds": round(ended - began, 1),
        "runs": len(records),
        "runs_that_failed": sum(not record.dagster_run.is_success for record in records),
        "until_first_run_s": round(min(created) - began, 1),
        "after_last_run_s": round(ended - last_end, 1),
        # Of all runs together; as many as dagster.yaml allows go on at a time.
        "spent_in_runs_s": {name: round(each, 1) for name, each in spent.items()},
        "median_s_per_hour": {asset: round(median(each), 3) for asset, each in seconds.items()},
        "median_s_per_hour_by_day": days,
        "last_5_days_over_first_5": round(median(days[-5:]) / median(days[:5]), 2),
    }, costs


def _status(instance: DagsterInstance, backfill: str) -> BulkActionStatus:
    found = instance.get_backfill(backfill)
    assert found is not None
    return found.status


def _seconds_by_hour(
    instance: DagsterInstance, asset: str, hours: Sequence[datetime]
) -> list[float]:
    """Return the newest durations that the asset's materializations tell."""
    seconds: dict[str, float] = {}
    # Newest first.
    for record in instance.fetch_materializations(AssetKey(asset), limit=len(hours)).records:
        assert record.partition_key is not None
        assert record.asset_materialization is not None
        said = record.asset_materialization.metadata
        if "seconds" in said:
            seconds[record.partition_key] = float(str(said["seconds"].value))
        else:  # its share of what the hours took that were loaded together
            together = float(str(said["seconds of hours together"].value))
            seconds[record.partition_key] = together / int(str(said["hours together"].value))
    return [seconds[key_of(hour)] for hour in hours]


def _spent(instance: DagsterInstance, record: Any) -> dict[str, float]:  # noqa: ANN401 -- untyped
    """Return where the time of one run went."""
    run = record.dagster_run.run_id
    starting = instance.all_logs(run, of_type=DagsterEventType.PIPELINE_STARTING)[0].timestamp
    stats = instance.get_run_step_stats(run)
    steps = [(each.start_time or 0.0, each.end_time or 0.0) for each in stats]
    busy, ended = sum(end - start for start, end in steps), max(end for _, end in steps)
    return {
        "queued": starting - record.create_timestamp.timestamp(),
        "start-up": record.start_time - starting,
        "waiting for pools": ended - record.start_time - busy,
        "steps": busy,
        "ending": record.end_time - ended,
    }


def _print(load: str, figures: Mapping[str, Any]) -> None:
    say(f"\n{load}: {figures['seconds']} s, {figures['runs']} runs")
    for name, value in figures.items():
        if name not in {"seconds", "runs"}:
            say(f"  {name:26}{value}")


def _plot(costs: Mapping[str, Sequence[float]]) -> str:
    """Draw the seconds of every hour, in the order of the hours."""
    width, height, left, bottom = 720, 240, 50, 40
    top = max(max(each) for each in costs.values())
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + left + 20} '
            f'{height + bottom + 30}" font-family="sans-serif" font-size="12">'
        ),
        '<rect width="100%" height="100%" fill="white"/>',
        f'<g transform="translate({left},20)" fill="none">',
        f'<path d="M0 0V{height}H{width}" stroke="black"/>',
    ]
    for number, (load, seconds) in enumerate(costs.items()):
        color = ("#1f77b4", "#d62728")[number]
        points = " ".join(
            f"{n * width / len(seconds):.0f},{height * (1 - each / top):.1f}"
            for n, each in enumerate(seconds)
        )
        parts += [
            f'<polyline points="{points}" stroke="{color}" stroke-width="0.7"/>',
            (
                f'<text x="{10 + number * 200}" y="-5" fill="{color}">{load}: '
                f"median {median(seconds):.2f} s</text>"
            ),
        ]
    for part in range(5):
        y = height * (1 - part / 4)
        parts.append(
            f'<text x="-8" y="{y + 4:.0f}" fill="black" text-anchor="end">'
            f"{top * part / 4:.2f}</text>"
        )
    for day in range(0, DAYS + 1, 5):
        parts.append(
            f'<text x="{day * width / DAYS:.0f}" y="{height + 16}" fill="black" '
            f'text-anchor="middle">{day}</text>'
        )
    parts += [
        (
            f'<text x="{width / 2}" y="{height + 34}" fill="black" text-anchor="middle">'
            "day of the backfill (a point an hour of 1,000 traces; seconds, both assets)</text>"
        ),
        "</g></svg>\n",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
