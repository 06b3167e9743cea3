"""A process that loads hours until it is killed, and who starts it."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import Database, connect
from llm_trace_pipeline.clickhouse.cluster import loader_of
from llm_trace_pipeline.clickhouse.loads import describe_differences
from llm_trace_pipeline.clickhouse.tables import IN_WINDOW, has_table
from llm_trace_pipeline.clickhouse.traces import Traces
from llm_trace_pipeline.hours import HOUR, Window
from llm_trace_pipeline.settings import Settings
from tests.harness.rows import DAY, MIDNIGHT, TABLE, make_rows, publish
from tests.harness.statements import small_blocks
from tests.harness.warehouse import Warehouse, environment_of, left_over_tables

READY = f"{TABLE}__ready"
KILLED_HOURS = [MIDNIGHT + number * HOUR for number in (0, 1, 2, 12, 22, 23)]
# Rows of an hour without a batch, in the same partition: only the journal keeps them exact.
UNLOADED_HOUR = MIDNIGHT + 6 * HOUR
UNLOADED_ROWS = 25
ROOT = Path(__file__).parents[2]


@contextmanager
def loading(
    warehouse: Warehouse, seed: int, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Let a process load hours; it is killed in the end."""
    with start(warehouse, seed, environment) as child:
        try:
            yield child
        finally:
            child.kill()


def fill_day(warehouse: Warehouse) -> None:
    """Load the hours that are going to be loaded again, and insert rows of one that is not."""
    with small_blocks():
        for hour in KILLED_HOURS:
            warehouse.load(hour, 40)
    warehouse.expected[UNLOADED_HOUR] = make_rows(UNLOADED_HOUR, UNLOADED_ROWS)
    warehouse.insert(warehouse.expected[UNLOADED_HOUR])


def start(
    warehouse: Warehouse, seed: int, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a process that loads hours as soon as it is told to."""
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(warehouse.settings.state_dir), str(seed)],
        cwd=ROOT,
        env=os.environ | (environment or {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def report_of(child: subprocess.Popen[str]) -> dict[str, Any]:
    """Tell a process to begin, and return what it found and what its first load did."""
    assert child.stdin
    assert child.stdout
    child.stdin.write("begin\n")
    child.stdin.flush()
    line = child.stdout.readline()
    assert line, "the loading process ended; its error is above"
    report: dict[str, Any] = json.loads(line)
    return report


def differing_hours(database: Database, store: BatchStore) -> list[str]:
    """Return which of the day's hours the table does not hold exactly, and what differs."""
    contents, day = Traces(database, store), Window(MIDNIGHT, MIDNIGHT + DAY)
    found = contents.found(day)
    unloaded = database.rows(
        f"SELECT * FROM {TABLE} WHERE {IN_WINDOW} ORDER BY created_at, id",
        {"start": UNLOADED_HOUR, "end": UNLOADED_HOUR + HOUR},
    )
    is_kept = unloaded == make_rows(UNLOADED_HOUR, UNLOADED_ROWS)
    return ([] if is_kept else [f"{UNLOADED_HOUR} holds {len(unloaded)} rows"]) + [
        f"{each.hour} {differences}"
        for each in contents.expected_around(day.hours)
        if (differences := describe_differences(each.figures, found[each.hour], {}))
    ]


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def load_until_killed(state: str, seed: int) -> None:
    """Load hours again and again; say so before each REPLACE PARTITION.

    First report, as one line of JSON, what the process before has left behind, and whether one
    load of any hour made every hour of the partition exact again.
    """
    settings = Settings.from_environment(environment_of(Path(state)))
    store = BatchStore.of(settings)
    chance = random.Random(seed)  # noqa: S311 -- test data
    sys.stdin.readline()
    with connect(settings) as database, small_blocks():
        loader = loader_of(database, store)
        report: dict[str, Any] = {
            "journal": has_table(database, READY),
            "doubled": database.rows(f"SELECT count() - uniqExact(id) AS rows FROM {TABLE}")[0][
                "rows"
            ],
        }
        manifest = store.manifest(chance.choice(KILLED_HOURS))
        assert manifest
        # As it is after a kill, an hour is mostly as its batch says already.
        [result] = loader.load([manifest.hour], force=chance.random() < 0.5)
        report["repaired"] = len(result.repaired_hours)
        report["wrong"] = differing_hours(database, store)
        report["left_over"] = left_over_tables(database)
        _say(json.dumps(report))

        execute = Database.execute

        def announce(self: Database, sql: str, *arguments: Any) -> None:
            if "REPLACE PARTITION" in sql:
                _say("about to replace")
            execute(self, sql, *arguments)

        with patch.object(Database, "execute", announce):
            while True:
                first = chance.randrange(len(KILLED_HOURS))
                hours = KILLED_HOURS[first : first + chance.randint(1, 3)]
                for hour in hours:
                    count = chance.choice((0, 1, 20, 30, 40, 50, 60, 70))
                    publish(store, hour, make_rows(hour, count, chance.randint(1, 9)))
                loader.load(hours)


if __name__ == "__main__":
    load_until_killed(sys.argv[1], int(sys.argv[2]))
