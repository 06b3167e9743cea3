"""Tables that somebody else made with narrower columns, and with a live writer at work.

Two hours of PostgreSQL, and what became of them later, are loaded into tables of several shapes.
What a table holds then is what a query of its own reads out of PostgreSQL, as far as the types of
the table can hold it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any
from uuid import uuid4

import pytest

from llm_trace_pipeline.batches.erasures import record_erasure
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.clickhouse.cluster import loader_of
from llm_trace_pipeline.clickhouse.held import NotHeldError
from llm_trace_pipeline.clickhouse.rollup import compare_rollup, roll_up
from llm_trace_pipeline.errors import ClickHouseError
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.reports.invoice import write_invoice
from llm_trace_pipeline.reports.spend import Days, figures_of
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.source.postgres import Source
from llm_trace_pipeline.upkeep.erase import remove_from_batches, remove_from_clickhouse
from llm_trace_pipeline.upkeep.reconcile import compare_table
from llm_trace_pipeline.upkeep.retention import apply_retention
from tests.harness.operational import Operational, fresh_database, trace
from tests.harness.pipeline import extract
from tests.harness.rows import DAY, T0, TABLE, Row, erasure, make_rows
from tests.harness.shapes import ALL_NULLABLE, COLUMNS, SHAPES, Shape
from tests.harness.statements import another_writer
from tests.harness.warehouse import Warehouse, fresh_warehouse, left_over_tables

CALLS = 20  # an hour
HOURS = (T0, T0 + HOUR)
NOT_LOADED = T0 + 2 * HOUR
MICROSECOND = timedelta(microseconds=1)

narrow = pytest.mark.parametrize(
    "shape", [pytest.param(each, id=id_) for id_, each in SHAPES.items()]
)

# What PostgreSQL has

EXPECTED = f"""
SELECT
    substr(t.id, length('provider_trace-') + 1) AS id,
    t.organization_id,
    coalesce(s.project_id, '') AS project_id,
    coalesce(t.agent_id, '') AS agent_id,
    coalesce(array(SELECT json_array_elements_text(t.agent_tags)), '{{}}') AS agent_tags,
    coalesce(t.step_id, '') AS step_id,
    coalesce(t.call_type, 'unknown') AS call_type,
    octet_length(t.request_json::text) AS request_size_bytes,
    (t.response_json #>> '{{usage,prompt_tokens}}')::bigint AS prompt_tokens,
    (t.response_json #>> '{{usage,completion_tokens}}')::bigint AS completion_tokens,
    (t.response_json #>> '{{usage,total_tokens}}')::bigint AS total_tokens,
    (t.response_json #>> '{{usage,prompt_tokens_details,cached_tokens}}')::bigint
        AS cached_input_tokens,
    coalesce(round(m.llm_request_ns / 1000000.0), 0)::bigint AS latency_ms,
    t.request_json::text AS request_json,
    t.response_json::text AS response_json,
    t.created_at
FROM provider_traces AS t
LEFT JOIN steps AS s ON s.id = t.step_id
LEFT JOIN step_metrics AS m ON m.id = t.step_id
WHERE NOT t.is_deleted AND t.created_at < '{NOT_LOADED.isoformat()}'
ORDER BY t.created_at, t.id
"""


def calls_of(hour: datetime) -> Iterator[Row]:
    """Return traces, the last of them on the hour's last microsecond."""
    for number in range(CALLS):
        cached = f', "prompt_tokens_details": {{"cached_tokens": {number}}}' if number % 2 else ""
        yield trace(
            hour + (HOUR - MICROSECOND if number == CALLS - 1 else number * HOUR / (CALLS + 0.7)),
            id=f"provider_trace-{uuid4()}",
            organization_id=f"org-{number % 3}",
            agent_id=f"agent-{number % 4}" if number % 5 else None,
            agent_tags='["a", "ß"]' if number % 3 else None,
            step_id=f"step-{hour:%H}-{number}" if number % 4 else None,
            call_type="agent_step" if number % 2 else None,
            request_json=f'{{"model": "gpt-4o", "messages":  ["{number} 🦉"]}}',
            response_json=f'{{"model": "gpt-4o", "usage": {{"prompt_tokens": {1000 + number}, '
            f'"completion_tokens": 5, "total_tokens": {1005 + number}{cached}}}}}',
        )


@dataclass(frozen=True)
class Version:
    """The batches of two hours, and the rows that PostgreSQL had when they were made."""

    batches: Path
    rows: list[Row]


@pytest.fixture(scope="module")
def versions(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Version, Version]]:
    """Two hours as they were first, and as they were later."""
    with fresh_database(postgres_url) as url:
        operational = Operational(url)
        traces = [row for hour in HOURS for row in calls_of(hour)]
        steps = [row for row in traces if row["step_id"]]
        operational.insert("provider_traces", *traces)
        operational.insert(
            "steps",
            *({"id": row["step_id"], "project_id": "project", "created_at": T0} for row in steps),
        )
        operational.insert(
            "step_metrics",
            *(
                {"id": row["step_id"], "llm_request_ns": number * 10**6 + 500_000}
                for number, row in enumerate(steps)
            ),
        )

        def version(name: str) -> Version:
            folder = tmp_path_factory.mktemp(name)
            store = BatchStore.of(Settings.from_environment({"TRACE_BATCH_URI": str(folder)}))
            for hour in HOURS:
                extract(Source(url, connections=1), store, hour)
            return Version(folder, operational.rows(EXPECTED))

        first = version("first")
        operational.execute(
            f"""
            UPDATE provider_traces SET is_deleted = true WHERE id = '{traces[3]["id"]}';
            UPDATE provider_traces SET created_at = created_at + interval '1 hour 1.2345 s'
            WHERE id = '{traces[4]["id"]}';
            """
        )
        operational.insert("provider_traces", trace(T0 + 7 * MICROSECOND))
        yield first, version("later")


def as_held(rows: list[Row], unit: timedelta) -> list[Row]:
    """Return rows as a table holds them whose times have this unit."""
    held = [row | {"created_at": T0 + (row["created_at"] - T0) // unit * unit} for row in rows]
    return sorted(held, key=lambda row: (row["created_at"], row["id"]))


class Table:
    """A table of some shape, and what is done to it."""

    def __init__(self, warehouse: Warehouse, shape: Shape) -> None:
        self.warehouse, self.shape = warehouse, shape
        self.store = warehouse.store
        self.database.execute(shape.ddl)

    @property
    def database(self) -> Database:
        return self.warehouse.database

    def use(self, version: Version) -> None:
        """Make these the batches."""
        folder = Path(self.warehouse.settings.trace_batch_uri)
        rmtree(folder, ignore_errors=True)
        copytree(version.batches, folder)

    def write_live(self, ids: Sequence[str], hour: datetime) -> None:
        """Insert rows as the live writer does, which knows little of a call."""
        rows = ", ".join(
            f"('{trace_id}', 'org-1', NULL, 'agent-1', NULL, 7, NULL, toDateTime64("
            f"'{hour + number * timedelta(minutes=2):%Y-%m-%d %H:%M:%S}', 6, 'UTC'))"
            for number, trace_id in enumerate(ids)
        )
        self.database.execute(
            f"INSERT INTO {TABLE} (id, organization_id, project_id, agent_id, model, total_tokens, "
            f"cached_input_tokens, created_at) VALUES {rows}"
        )

    def rows(self, columns: str = ", ".join(COLUMNS)) -> list[Row]:
        """Return all rows, with their ids as text."""
        of_text = columns.replace("id", "toString(id) AS id", 1)
        return sorted(self.database.rows(f"SELECT {of_text} FROM {TABLE}"), key=_place)

    def check(self, version: Version, *hours: datetime) -> None:
        """Compare the rows of the first hours with PostgreSQL's, by value."""
        found = self.rows(", ".join(version.rows[0]))
        assert _before(hours[-1] + HOUR, found) == _before(
            hours[-1] + HOUR, as_held(version.rows, self.shape.unit)
        )
        assert left_over_tables(self.database) == []

    def load(self, *hours: datetime) -> list[bool]:
        """Load hours; return which of them were written."""
        results = loader_of(self.database, self.store).load(hours, frozenset(HOURS))
        assert [(each.differences, each.repaired_hours) for each in results] == [
            ((), ()) for _ in hours
        ]
        return [result.was_written for result in results]


def _place(row: Row) -> tuple[datetime, str]:
    return row["created_at"], row["id"]


def _before(end: datetime, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["created_at"] < end]


def _from(start: datetime, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["created_at"] >= start]


@pytest.fixture
def table(tmp_path: Path, shape: Shape) -> Iterator[Table]:
    """A fresh table of a shape."""
    with fresh_warehouse(tmp_path / shape.folder) as warehouse:
        yield Table(warehouse, shape)


@narrow
def test_loaded_hours_are_postgresqls_and_others_the_live_writers(
    versions: tuple[Version, Version], table: Table
) -> None:
    first, later = versions
    ids, others = [row["id"] for row in first.rows], [str(uuid4()) for _ in range(5)]
    table.use(first)
    table.write_live(ids[:4], T0)
    table.write_live(ids[CALLS : CALLS + 4], HOURS[1])
    table.write_live(others[:3], NOT_LOADED)
    live = table.rows()
    with another_writer(lambda: table.write_live(ids[2:6], T0), before="RENAME TABLE"):
        assert table.load(T0) == [True]
    table.check(first, T0)
    assert _from(HOURS[1], table.rows()) == _from(HOURS[1], live)
    assert table.load(HOURS[1]) == [True]
    table.check(first, *HOURS)
    assert table.load(*HOURS) == [False, False]
    table.use(later)
    table.write_live(ids[:3], T0)
    with another_writer(lambda: table.write_live(others[3:], NOT_LOADED), before="RENAME TABLE"):
        assert table.load(*HOURS) == [True, True]
    table.check(later, *HOURS)
    assert table.load(*HOURS) == [False, False]
    kept = [row["id"] for row in _from(NOT_LOADED, table.rows())]
    assert sorted(kept) == sorted(others)


@narrow
def test_loaded_hours_are_rolled_up_reconciled_erased_and_dropped(
    versions: tuple[Version, Version], table: Table
) -> None:
    _, version = versions
    database, store, settings = table.database, table.store, table.warehouse.settings
    table.use(version)
    table.load(*HOURS)
    table.write_live([str(uuid4())], NOT_LOADED)

    for was_written in (True, False):
        rolled_up = roll_up(database, store, HOURS)
        assert [each.differences for each in rolled_up] == [(), ()]
        assert [each.was_written for each in rolled_up] == [was_written] * 2
    assert database.rows(
        "SELECT organization_id, sum(total_tokens) AS tokens, sum(request_size_bytes) AS octets, "
        "round(quantileBFloat16Merge(1)(latency_ms)) AS slowest FROM llm_usage_hourly "
        "GROUP BY organization_id ORDER BY organization_id"
    ) == [
        {
            "organization_id": name,
            "tokens": sum(row["total_tokens"] for row in of_name),
            "octets": sum(row["request_size_bytes"] for row in of_name),
            "slowest": max(row["latency_ms"] for row in of_name),
        }
        for name in ("org-0", "org-1", "org-2")
        if (of_name := [row for row in version.rows if row["organization_id"] == name])
    ]

    manifests = [manifest for hour in HOURS if (manifest := store.manifest(hour))]
    assert compare_table(database, store, manifests) == {}
    assert compare_rollup(database, store, HOURS) == {}
    lost = "agent_id = 'agent-1' AND created_at < {end:DateTime('UTC')}"
    damage = f"ALTER TABLE {TABLE} DELETE WHERE {lost}"
    database.execute(damage, {"end": HOURS[1]}, {"mutations_sync": 2})
    assert list(compare_table(database, store, manifests)) == [T0]
    assert table.load(*HOURS) == [True, False]
    table.check(version, *HOURS)

    gone = erasure("org-1", NOT_LOADED)
    record_erasure(store.files, gone)
    remove_from_batches(store, gone)
    assert remove_from_clickhouse(database, store, gone) == list(HOURS)
    left = [row for row in version.rows if row["organization_id"] != "org-1"]
    table.check(Version(version.batches, left), *HOURS)

    kept_a_day = settings.model_copy(update={"retention_days": 1})
    assert apply_retention(database, store, kept_a_day, T0 + 40 * DAY).partitions
    assert table.rows() == []


@pytest.mark.parametrize("shape", [SHAPES[ALL_NULLABLE]], ids=[""])
def test_a_lost_table_is_restored_and_the_live_writers_rows_are_reported_and_invoiced_with_it(
    versions: tuple[Version, Version], table: Table
) -> None:
    _, version = versions
    table.use(version)
    table.load(*HOURS)
    table.database.execute(f"DROP TABLE {TABLE} SYNC")
    table.database.execute(table.shape.ddl)
    assert table.load(*HOURS) == [True, True]
    table.check(version, *HOURS)
    own = "tokens = prompt_tokens + 1 AND seen > '2020-01-01' AND note IS NULL"
    [computed] = table.database.rows(f"SELECT countIf({own}) AS rows FROM {TABLE}")
    assert computed["rows"] == len(version.rows)
    table.write_live([str(uuid4())], NOT_LOADED)
    day = T0.date()
    figures = figures_of(table.database, table.store, Days(day, day))
    assert figures.headline["calls"] == len(version.rows) + 1
    assert figures.headline["organizations"] == 3
    assert {row["name"] for row in figures.tables["model"]} == {"gpt-4o", ""}
    table.warehouse.close()
    settings = table.warehouse.settings
    invoice = write_invoice(
        settings,
        f"{day:%Y-%m}",
        settings.state_dir / "invoice",
        first_hour=T0,
        now=NOT_LOADED + HOUR,
    )
    table.warehouse.reopen()
    assert invoice.holes == {NOT_LOADED: ("no batch",)}


# What a column cannot hold

LIMITED = Shape(
    {
        "id": "UUID",
        "prompt_tokens": "UInt32",
        "latency_ms": "Nullable(Int32)",
        "reasoning_tokens": "UInt64",
        "created_at": "DateTime64(3, 'UTC')",
    },
    "MergeTree PARTITION BY toYYYYMM(created_at) ORDER BY (organization_id, created_at)",
)


# A value by its column, and what the message says of it.
TOO_MUCH: dict[str, tuple[Any, str]] = {
    "latency_ms": (2**31, "is Nullable(Int32), which cannot hold 2147483648"),
    "reasoning_tokens": (None, "is UInt64, which cannot hold NULL"),
    "id": ("trace-1", "is UUID, which cannot hold 'trace-1'"),
    # Last, since the sums of tokens are what other loads compare of this hour.
    "prompt_tokens": (2**32, "is UInt32, which cannot hold 4294967296"),
}
MOST: Row = {"prompt_tokens": 2**32 - 1, "latency_ms": 2**31 - 1, "reasoning_tokens": 7}


@pytest.mark.parametrize("shape", [LIMITED], ids=[""])
def test_a_value_that_a_column_cannot_hold_is_one_line_and_the_hour_stays_as_it_was(
    table: Table,
) -> None:
    warehouse = table.warehouse
    rows = [row | MOST for row in make_rows(T0, 5)]
    assert warehouse.load(T0, rows).was_written
    before = table.rows()
    repairs = []
    for column, (value, said) in TOO_MUCH.items():
        too_much = [*rows[:3], rows[3] | {column: value}, rows[4]]
        warehouse.publish(T0, too_much)
        with pytest.raises(NotHeldError) as refused:
            warehouse.load_hours(T0)
        assert str(refused.value).startswith(
            f"hour 2026-03-01-09:00: `{warehouse.database.name}`.`{TABLE}`: column {column} {said} "
            f"of row {too_much[3]['id']}; the hour stays as it was; ALTER TABLE "
        )
        assert table.rows() == before
        repairs.append(refused.value.repair.partition(";")[0])

    # Its neighbours are loaded all the same.
    other = [row | MOST for row in make_rows(T0 + HOUR, 5)]
    assert warehouse.load(T0 + HOUR, other).repaired_hours == ()
    for repair in repairs:
        warehouse.database.execute(repair)
    rows[3] |= {column: value for column, (value, _) in TOO_MUCH.items()}
    assert warehouse.load(T0, rows).was_written
    found = _before(T0 + HOUR, table.rows())
    assert [{name: row[name] for name in TOO_MUCH} for row in found] == [
        {name: row[name] for name in TOO_MUCH} for row in rows
    ]


@pytest.mark.parametrize("shape", [LIMITED], ids=[""])
def test_a_uuid_written_otherwise_is_the_same_uuid(table: Table) -> None:
    rows = [row | MOST for row in make_rows(T0, 4)]
    ids = [row["id"] for row in rows]
    rows[1] |= {"id": ids[1].upper()}
    rows[2] |= {"id": ids[2].replace("-", "")}
    for was_written in (True, False):
        assert table.warehouse.load(T0, rows).was_written == was_written
    assert [row["id"] for row in table.rows()] == ids


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(Shape({"total_tokens": kind}, "MergeTree ORDER BY id"), id=kind)
        for kind in ("Float64", "UInt64 MATERIALIZED prompt_tokens + completion_tokens")
    ],
)
def test_a_column_of_another_kind_is_refused_with_the_statement_that_mends_it(
    table: Table,
) -> None:
    manifest = table.warehouse.publish(T0, 5)
    with pytest.raises(ClickHouseError, match="not UInt64: no hour can be loaded") as refused:
        table.warehouse.load_batch(manifest)
    table.database.execute(refused.value.repair.partition(";")[0])
    table.warehouse.load_batch(manifest)
    table.warehouse.check()


@pytest.mark.parametrize("shape", [LIMITED], ids=[""])
def test_a_column_that_no_upgrade_adds_is_named(table: Table) -> None:
    table.database.execute(f"ALTER TABLE {TABLE} DROP COLUMN is_byok, DROP COLUMN step_id")
    table.warehouse.publish(T0, 5)
    with pytest.raises(ClickHouseError, match="has no column step_id, is_byok; make preflight has"):
        table.warehouse.load_hours(T0)
