"""Batches without a source database, and a process that loads them until it is killed."""

import json
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import NAMESPACE_OID, uuid5

import pyarrow as pa
from xxhash import xxh3_64_intdigest

from llm_trace_pipeline.batches.store import BatchStore, Manifest
from llm_trace_pipeline.clickhouse.client import IN_WINDOW, Database, HourTotals, connect
from llm_trace_pipeline.clickhouse.upsert import HourLoader, describe_differences
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.trace.columns import ARROW_SCHEMA, TOKEN_COLUMNS
from llm_trace_pipeline.trace.tally import tally_of
from tests.target import environment_of

TABLE = "llm_traces"
READY = "llm_traces__ready"
T0 = datetime(2026, 3, 1, tzinfo=UTC)
KILLED_HOURS = [T0 + number * HOUR for number in (0, 1, 2, 12, 22, 23)]
# Rows of an hour without a batch, in the same partition: only the journal keeps them exact.
UNLOADED_HOUR = T0 + 6 * HOUR
UNLOADED_ROWS = 25
NOTHING = HourTotals(0, 0, dict.fromkeys(TOKEN_COLUMNS, 0), f"{0:016x}")

# Blocks of a few rows, so that an hour becomes several parts, as a large one does.
_BLOCK_ROWS = 24
_SMALL_BLOCKS = {
    "min_insert_block_size_bytes": 1,
    "input_format_parquet_max_block_size": _BLOCK_ROWS,
}

Row = dict[str, Any]


def make_rows(hour: datetime, count: int, version: int = 1) -> list[Row]:
    """Return rows of an hour, sorted as the tests read them back.

    The first lies on the hour's first microsecond and the last on its last one. Another version
    keeps the ids and the times, and differs in all that a changed hour can differ in.
    """
    rows: list[Row] = []
    for number in range(count):
        request = f'{{"messages": ["ünïcode 🦉 \\u0000 {number} {version}"]}}'
        response = "" if number % 5 == 4 else f'{{"version": {version}}}'
        last = number == count - 1 and count > 1
        price = None if number % 4 == 3 else Decimal(f"{version}.{number:017}1")
        rows.append(
            {
                "id": str(uuid5(NAMESPACE_OID, f"{hour} {number}")),
                "organization_id": f"org-{number % 3}",
                "project_id": "" if number % 2 else "project",
                "agent_id": f"agent-{number % 7}",
                "agent_tags": [[], ["a"], ["a", "b\x1e", "ß"]][(number + version) % 3],
                "run_id": f"run-{number // 4}",
                "step_id": f"step-{number}",
                "trace_id": "",
                "call_type": "unknown",
                "provider": ("openai", "anthropic")[number % 2],
                "model": f"model-{version}",
                "is_byok": number % 2,
                "request_size_bytes": len(request.encode()),
                "response_size_bytes": len(response.encode()),
                "prompt_tokens": 10 * version + number,
                "completion_tokens": version,
                "total_tokens": 11 * version + number,
                "cached_input_tokens": (None, 0, 7 + version)[number % 3],
                "cache_write_tokens": None,
                "reasoning_tokens": version if number % 2 else None,
                "latency_ms": number * version,
                "is_error": int(number % 5 == 4),
                "error_type": "timeout" if number % 5 == 4 else "",
                "error_message": "no 'answer'\n" if number % 5 == 4 else "",
                "request_json": request,
                "response_json": response,
                "llm_config_json": '{"model": "model"}' if number % 2 else "{}",
                "billing_plan_type": f"plan-{version}",
                "billing_cost_source": ("quota", "credits")[number % 2],
                "billing_customer_id": f"cus_{number % 3}",
                "created_at": hour
                + (HOUR - timedelta(microseconds=1) if last else number * HOUR / max(count, 1)),
                "billing_match": "as_of",
                "payload_hash": xxh3_64_intdigest((request + response).encode()),
                "cost_usd": price,
                "input_cost_usd": price and 3 * price,
                "cached_input_cost_usd": price and price * 0,
                "cache_write_cost_usd": price and 10**18 * price,
                "output_cost_usd": price and price + 20,
                "price_version": f"prices {version}" if price else "",
            }
        )
    return sorted(rows, key=lambda row: (row["created_at"], row["id"]))


def publish(store: BatchStore, hour: datetime, rows: list[Row]) -> Manifest:
    """Make the rows the batch of the hour, in two part files where there are enough of them."""
    batch = pa.RecordBatch.from_pylist(rows, ARROW_SCHEMA)
    half = len(rows) // 2
    with store.writing(hour) as writer:
        parts = []
        for stream, piece in enumerate((batch[:half], batch[half:])):
            with writer.part_writer(stream) as part_writer:
                if piece.num_rows:
                    part_writer.write(piece)
            parts += part_writer.parts
        manifest = Manifest(
            hour=hour,
            batch_id=writer.batch_id,
            written_at=datetime.now(UTC),
            parts=tuple(parts),
            source_rows=len(rows),
            source_deleted=0,
            source_folded=0,
            source_hash="0",
            source_newest_change=None,
            **tally_of(batch).figures(),
        )
        return writer.publish(manifest)


@contextmanager
def small_blocks() -> Iterator[None]:
    """Insert in blocks of a few rows."""
    execute, insert_arrow = Database.execute, Database._insert_arrow  # noqa: SLF001

    def inserting(self: Database, sql: str, *arguments: Any) -> None:
        if sql.startswith("INSERT INTO"):
            parameters, settings = arguments
            arguments = (parameters, {**settings, **_SMALL_BLOCKS})
        execute(self, sql, *arguments)

    def inserting_arrow(self: Database, table: str, rows: pa.Table) -> None:
        for start in range(0, rows.num_rows, _BLOCK_ROWS):
            insert_arrow(self, table, rows[start : start + _BLOCK_ROWS])

    with (
        patch.object(Database, "execute", inserting),
        patch.object(Database, "_insert_arrow", inserting_arrow),
    ):
        yield


def differing_hours(database: Database, store: BatchStore) -> list[str]:
    """Return which of the day's hours the table does not hold exactly, and what differs."""
    found = database.hour_totals(
        TABLE, IN_WINDOW, {"start": T0, "end": T0 + 24 * HOUR}, with_content_hash=True
    )
    unloaded = database.rows(
        f"SELECT * FROM {TABLE} WHERE {IN_WINDOW} ORDER BY created_at, id",
        {"start": UNLOADED_HOUR, "end": UNLOADED_HOUR + HOUR},
    )
    is_kept = unloaded == make_rows(UNLOADED_HOUR, UNLOADED_ROWS)
    return ([] if is_kept else [f"{UNLOADED_HOUR} holds {len(unloaded)} rows"]) + [
        f"{hour} {differences}"
        for hour in (T0 + number * HOUR for number in range(24))
        if (manifest := store.manifest(hour))
        and (differences := describe_differences(manifest, found.get(hour, NOTHING)))
    ]


def left_over_tables(database: Database) -> list[str]:
    """Return the tables of an upsert that are still there."""
    tables = database.rows(
        "SELECT name FROM system.tables WHERE database = {database:String} "
        "AND name LIKE {name:String}",
        {"database": database.name, "name": f"{TABLE}\\_\\_%"},
    )
    return [table["name"] for table in tables]


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
        loader = HourLoader(database, store)
        report: dict[str, Any] = {
            "journal": database.has_table(READY),
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
