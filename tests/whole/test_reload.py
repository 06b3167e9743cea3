"""Loading again: what is unchanged, lost, re-enriched, restored, or loaded by two at once."""

import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest

from llm_trace_pipeline.batches.enrich import enrich_hour, is_stale
from llm_trace_pipeline.batches.history import capture_billing, read_history
from llm_trace_pipeline.batches.rules import Rules
from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.errors import BatchError, SourceError
from llm_trace_pipeline.hours import HOUR, key_of
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.source.session import Session
from llm_trace_pipeline.sql import without_comments
from tests.harness.operational import Operational, billing, trace
from tests.harness.pipeline import Pipeline
from tests.harness.rows import T0
from tests.harness.statements import recording
from tests.harness.warehouse import ENDPOINT, drop_database


def kinds_of(made: list[tuple[str, Any]]) -> set[str]:
    """Return the first words of statements; rows that are sent are an INSERT."""
    return {
        without_comments(sql).split()[0] if name == "execute" else "INSERT" for name, (sql,) in made
    }


def test_an_unchanged_hour_keeps_its_batch_and_writes_nothing(
    operational: Operational, pipeline: Pipeline
) -> None:
    operational.insert("provider_traces", trace(id="a"), trace(T0 + HOUR, id="b"))
    first = pipeline.load()
    pipeline.load(T0 + HOUR)
    # The source says that something changed; the content did not.
    operational.execute("UPDATE provider_traces SET updated_at = now()")
    again = pipeline.extract()
    assert (again.batch_id, again.parts) == (first.batch_id, first.parts)
    assert again.source_hash != first.source_hash

    with recording() as made:
        assert not pipeline.load_batch().was_written
    assert not {"INSERT", "RENAME", "DELETE"} & kinds_of(made)
    with recording() as made:
        assert pipeline.load_batch(force=True).was_written
    assert "INSERT" in kinds_of(made)


@pytest.mark.parametrize(
    "damage",
    [
        "ALTER TABLE llm_traces DELETE WHERE id = 'a'",
        "INSERT INTO llm_traces SELECT * FROM llm_traces WHERE id = 'a'",
        "ALTER TABLE llm_traces UPDATE model = 'other' WHERE id = 'a'",
    ],
)
def test_an_hour_that_no_longer_equals_its_batch_is_loaded(
    operational: Operational, pipeline: Pipeline, damage: str
) -> None:
    operational.insert("provider_traces", trace(id="a"), trace(id="b"))
    manifest = pipeline.load()
    before = pipeline.rows()
    pipeline.database.execute(damage, settings={"mutations_sync": 2})
    assert pipeline.rows() != before
    assert pipeline.load_batch(manifest.hour).was_written
    assert pipeline.rows() == before


def test_a_damaged_batch_is_replaced_although_the_content_is_the_same(
    operational: Operational, pipeline: Pipeline
) -> None:
    operational.insert("provider_traces", trace(id="a"))
    old = pipeline.extract()
    Path(str(pipeline.store.part_paths(old)[0])).write_bytes(b"no parquet")
    new = pipeline.extract()
    assert new.batch_id != old.batch_id
    assert pipeline.store.is_intact(new)


def test_only_changed_reads_no_payload_of_an_unchanged_hour(
    operational: Operational, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    operational.insert("provider_traces", trace(id="a", step_id="step-1"))
    first = pipeline.extract(only_changed=True)

    def refuse(*_: object) -> None:
        raise AssertionError("payloads were read")

    with monkeypatch.context() as patch:
        patch.setattr(Session, "batches", refuse)
        assert pipeline.extract(only_changed=True) == first
    operational.insert("steps", {"id": "step-1", "project_id": "project-1"})
    assert pipeline.extract(only_changed=True).batch_id != first.batch_id


@pytest.mark.parametrize("how", ["some rows", "all rows"])
def test_rows_that_the_source_lost_are_not_given_up(
    operational: Operational, pipeline: Pipeline, how: str
) -> None:
    operational.insert(
        "provider_traces",
        trace(T0 - HOUR),
        *(trace(id=f"provider_trace-{n}") for n in range(5)),
        trace(id="unprefixed"),
    )
    manifest = pipeline.load()
    before = pipeline.rows()
    gone = "id IN ('provider_trace-1', 'provider_trace-3')" if how == "some rows" else "true"
    operational.execute(f"DELETE FROM provider_traces WHERE {gone}")
    # As many rows as before: ids count, not numbers.
    operational.insert("provider_traces", trace(id="late-1"), trace(id="late-2"))
    lost, left = (2, 6) if how == "some rows" else (6, 2)
    with pytest.raises(
        SourceError,
        match=rf"hour 2026-03-01-09:00: the source has {left} traces, the batch 6, and {lost} of "
        r".* such as [01], .*accept_loss: true",
    ):
        pipeline.extract()
    assert pipeline.store.manifest(T0) == manifest
    assert pipeline.rows() == before
    assert pipeline.load(accept_loss=True).rows == left
    assert len(pipeline.rows()) == left


def test_rows_that_the_source_lost_are_not_given_up_for_a_damaged_part(
    operational: Operational, pipeline: Pipeline
) -> None:
    operational.insert("provider_traces", *(trace(id=f"{n}") for n in range(10)))
    operational.insert(
        "provider_traces", *(trace(id=f"deleted-{n}", is_deleted=True) for n in range(5))
    )
    [part] = pipeline.store.part_paths(pipeline.load())
    path = Path(str(part))
    path.write_bytes(path.read_bytes()[:-1])
    operational.execute("DELETE FROM provider_traces WHERE id IN ('0', '1', '2', '3', '4')")
    with pytest.raises(SourceError, match=r"the batch 10, and 5 of the batch's are gone"):
        pipeline.extract()
    assert len(pipeline.rows()) == 10


def test_soft_deleted_moved_and_folded_rows_are_not_lost(
    operational: Operational, pipeline: Pipeline
) -> None:
    operational.insert("provider_traces", *(trace(id=f"provider_trace-{n}") for n in range(4)))
    pipeline.load()
    operational.execute("UPDATE provider_traces SET is_deleted = true WHERE id LIKE '%-0'")
    operational.execute(
        "UPDATE provider_traces SET created_at = created_at + interval '1 hour' WHERE id LIKE '%-1'"
    )
    operational.execute("UPDATE provider_traces SET id = '2' WHERE id LIKE '%-2'")
    pipeline.load()
    pipeline.load(T0 + HOUR)
    rows = pipeline.rows("id, created_at")
    assert [(row["id"], row["created_at"]) for row in rows] == [
        ("2", T0),
        ("3", T0),
        ("1", T0 + HOUR),
    ]


def test_enriching_changes_billing_and_nothing_else(
    operational: Operational, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """basic, then max from the middle of the hour, then restated from last week."""
    half = T0 + timedelta(minutes=30)
    operational.insert("organization_billing_details", billing("org-1", "basic", T0 - 99 * HOUR))
    operational.insert(
        "provider_traces",
        trace(T0, id="a"),
        trace(half, id="b"),
        trace(half, id="c", billing_context='{"plan_type": "contract"}'),
    )
    pipeline.load()
    untouched = "* EXCEPT (billing_plan_type, billing_cost_source, billing_customer_id)"
    before = pipeline.rows(untouched)

    def plans() -> dict[str, tuple[str, str]]:
        return {
            row["id"]: (row["billing_plan_type"], row["billing_match"]) for row in pipeline.rows()
        }

    own = ("contract", "request")
    assert plans() == {"a": ("basic", "as_of"), "b": ("basic", "as_of"), "c": own}
    for plan, valid_from, first in (
        ("max", half, "basic"),
        ("restated", T0 - timedelta(days=7), "basic"),
    ):
        operational.insert("organization_billing_details", billing("org-1", plan, valid_from))
        history = capture_billing(pipeline.source, pipeline.store.files).history
        current = pipeline.store.manifest(T0)
        assert current is not None
        stale = is_stale(pipeline.store, current, Rules(history))
        assert stale == (plan == "max")  # an older version holds until the next one begins
        with monkeypatch.context() as patch:
            patch.setattr(Session, "__init__", None)  # the operational database is not read
            manifest = enrich_hour(pipeline.store, Rules(history), T0)
        assert manifest.is_complete
        pipeline.load_batch(manifest.hour)
        assert plans() == {"a": (first, "as_of"), "b": ("max", "as_of"), "c": own}
        assert pipeline.rows(untouched) == before
    # Restated for good: the versions that said otherwise are corrected where they stand.
    operational.execute("UPDATE organization_billing_details SET plan_type = 'restated'")
    history = capture_billing(pipeline.source, pipeline.store.files).history
    manifest = enrich_hour(pipeline.store, Rules(history), T0)
    pipeline.load_batch(manifest.hour)
    assert plans() == {"a": ("restated", "as_of"), "b": ("restated", "as_of"), "c": own}
    assert pipeline.rows(untouched) == before
    payloads = [
        pq.read_table(str(path), columns=["id", "request_json", "payload_hash"]).to_pylist()
        for path in pipeline.store.part_paths(manifest)
    ]
    assert sum(map(len, payloads)) == 3


def test_an_hour_without_batch_cannot_be_enriched(pipeline: Pipeline) -> None:
    with pytest.raises(BatchError, match="hour 2026-03-01-09:00 has no batch to enrich"):
        enrich_hour(pipeline.store, Rules(read_history(pipeline.store.files)), T0)


HOURLY_JOB = """
import sys
from datetime import datetime, timedelta
from llm_trace_pipeline.cli.hours import load_hours
from llm_trace_pipeline.hours import parse_hour
from llm_trace_pipeline.settings import Settings
hours = [parse_hour(key) for key in sys.argv[2:]]
load_hours(Settings.from_environment(), hours, "test", [*filter(None, sys.argv[1].split(","))])
"""


def start_load(state: Path, asset: str, *hours: Any) -> subprocess.Popen[str]:
    """Start a process that loads hours in a Dagster instance of its own: no common pool."""
    home = state / "dagster" / str(abs(hash((asset, hours))))
    home.mkdir(parents=True)
    return subprocess.Popen(
        [sys.executable, "-c", HOURLY_JOB, asset, *(key_of(hour) for hour in hours)],
        env={**os.environ, "DAGSTER_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_processes_without_a_common_pool_end_exact(
    operational: Operational, settings: Settings, tmp_path: Path
) -> None:
    hours = [T0 + n * HOUR for n in range(4)]
    operational.insert(
        "provider_traces", *(trace(hour, id=f"{hour:%H}-{n}") for hour in hours for n in range(9))
    )
    processes = [
        start_load(tmp_path, "", *hours[:3]),  # overlapping: the same hours, and others of one day
        start_load(tmp_path, "", *hours[1:]),
    ]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    with connect(settings) as database:
        rows = database.rows("SELECT id FROM llm_traces ORDER BY id")
        left = database.rows("SHOW TABLES LIKE 'llm_traces\\_\\_%'")
    assert [row["id"] for row in rows] == sorted(
        f"{hour:%H}-{n}" for hour in hours for n in range(9)
    )
    assert left == []


def test_a_fresh_clickhouse_is_restored_from_the_batches_alone(
    operational: Operational, source: Any, store: Any, settings: Settings, tmp_path: Path
) -> None:
    hours = [T0, T0 + HOUR, T0 + 30 * HOUR]
    operational.insert("provider_traces", *(trace(hour, id=f"{hour}") for hour in hours))
    with connect(settings) as database:
        pipeline = Pipeline(source, store, database)
        for hour in hours:
            pipeline.load(hour)
        before = pipeline.rows()
    if ENDPOINT:
        drop_database(settings)
    else:
        shutil.rmtree(urlsplit(settings.clickhouse_endpoint).path)
    operational.execute("DROP TABLE provider_traces")
    done = subprocess.run(
        [sys.executable, "-m", "llm_trace_pipeline.cli", "restore"]
        + [key_of(hour) for hour in (hours[0], hours[-1])],
        env={**os.environ, "DAGSTER_HOME": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("3 of 31 hours have a batch\n")
    for hour in hours:  # of two runs
        assert done.stdout.count(f"llm_traces: hour {key_of(hour)}: 1 rows") == 1
    with connect(settings) as database:
        assert Pipeline(source, store, database).rows() == before


def test_a_pruned_hour_keeps_no_other_hour_of_the_command_from_clickhouse(
    operational: Operational, settings: Settings, tmp_path: Path
) -> None:
    hours = [T0 + n * HOUR for n in range(4)]
    operational.insert("provider_traces", *(trace(hour, id=f"{hour:%H}") for hour in hours))
    loaded = start_load(tmp_path / "first", "", *hours)
    output, _ = loaded.communicate(timeout=300)
    assert loaded.returncode == 0, output
    operational.execute("DELETE FROM provider_traces WHERE id = '10'")
    operational.insert("provider_traces", *(trace(hour, id=f"{hour:%H} late") for hour in hours))
    loaded = start_load(tmp_path / "second", "", *hours)
    output, _ = loaded.communicate(timeout=300)
    assert loaded.returncode == 0, output  # a pruned hour is a warning
    assert "hour 2026-03-01-10:00: the source has 1 traces, the batch 1, and 1 of" in output
    with connect(settings) as database:
        rows = database.rows("SELECT id FROM llm_traces ORDER BY id")
    late = ["09 late", "11 late", "12 late"]
    assert [row["id"] for row in rows] == sorted(["09", "10", "11", "12", *late])
