"""A source without an index on created_at: a run's hours are read by one scan, and are the same."""

from pathlib import Path
from random import Random

import pytest

from llm_trace_pipeline.batches import extract as extraction
from llm_trace_pipeline.batches.files import LocalFiles
from llm_trace_pipeline.batches.manifest import Manifest
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.errors import SourceError
from llm_trace_pipeline.hours import HOUR, Window
from llm_trace_pipeline.source.postgres import Source, SourceOfHours
from tests.harness.operational import Operational, trace
from tests.harness.pipeline import extract
from tests.harness.rows import T0

HOURS = [T0 + number * HOUR for number in range(6)]
DROP_INDEX = "DROP INDEX ix_provider_traces_created_at"
OF_THE_FILES = {"batch_id", "written_at", "parts"}


@pytest.fixture
def run(source: Source) -> SourceOfHours:
    return SourceOfHours(source, Window.of(HOURS))


def rows_scanned(operational: Operational) -> int:
    [found] = operational.rows(
        "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'provider_traces'"
    )
    return int(found["seq_tup_read"])


def test_hours_are_the_same_with_and_without_an_index(
    operational: Operational,
    run: SourceOfHours,
    source: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(extraction, "ROWS_PER_STREAM", 30)  # some hours by both connections
    rng = Random(1)  # noqa: S311 -- the same rows every time
    rows = []
    for number in range(300):
        # Rows of the hours around the run lie between those of the run.
        hour = rng.choice([T0 - HOUR, *HOURS[:-2], HOURS[-1] + HOUR])
        rows.append(
            trace(hour + rng.random() * HOUR, id=str(number), is_deleted=rng.random() < 0.1)
        )
        if rng.random() < 0.1:  # another row of the same id, maybe in another hour
            prefixed = rows[-1] | {"id": f"provider_trace-{number}", "request_json": "1"}
            rows.append(prefixed | {"created_at": rng.choice(rows)["created_at"]})
    operational.insert("provider_traces", *rows)
    # Updated rows lie elsewhere, some of them in another hour than they did.
    operational.execute("""
        UPDATE provider_traces SET created_at = created_at + interval '1 hour'
        WHERE hashtext(id) % 10 = 0;
        INSERT INTO provider_trace_metadata (id, step_id, organization_id, created_at)
        SELECT id || 'm', 'step-' || hashtext(id) % 5, 'org-1', created_at FROM provider_traces
        WHERE hashtext(id) % 10 = 1;
        INSERT INTO steps (id, total_tokens) SELECT 'step-' || number, 7
        FROM generate_series(-4, 4) AS number
    """)

    def of_all(source: Source, name: str) -> list[Manifest]:
        store = BatchStore(LocalFiles(tmp_path / name))
        return [extract(source, store, hour) for hour in HOURS]

    by_index = of_all(run, "by index")
    operational.execute(DROP_INDEX)
    by_one_scan = of_all(SourceOfHours(source, Window.of(HOURS)), "by one scan")
    by_scans = of_all(source, "by a scan for each statement")
    for manifests in (by_one_scan, by_scans):
        for found, expected in zip(manifests, by_index, strict=True):
            assert found.model_dump(exclude=OF_THE_FILES) == expected.model_dump(
                exclude=OF_THE_FILES
            )
    assert [manifest.rows > 0 for manifest in by_index] == [True, True, True, True, True, False]
    assert sum(manifest.source_folded for manifest in by_index) > 0
    assert sum(manifest.source_deleted for manifest in by_index) > 0


def test_a_run_scans_the_table_once(
    operational: Operational, run: SourceOfHours, source: Source, store: BatchStore
) -> None:
    operational.execute(DROP_INDEX)
    operational.insert("provider_traces", *(trace(hour) for hour in HOURS for _ in range(100)))
    operational.execute("ANALYZE provider_traces")
    before = rows_scanned(operational)
    for hour in HOURS:
        assert extract(run, store, hour).rows == 100
    run.close()
    by_one_scan = rows_scanned(operational) - before
    for hour in HOURS:
        assert extract(source, store, hour).rows == 100
    by_scans = rows_scanned(operational) - before - by_one_scan
    # Besides the scan, each hour's count and each hour's traces read the hour.
    assert 3 * 600 <= by_one_scan < 4 * 600
    assert by_scans > 2 * 6 * 600


def test_all_hours_of_a_run_are_of_one_moment_until_one_fails(
    operational: Operational, run: SourceOfHours, store: BatchStore
) -> None:
    operational.execute(DROP_INDEX)
    operational.insert("provider_traces", *(trace(hour) for hour in HOURS[:3]))
    operational.execute(
        f"INSERT INTO steps (id, created_at) VALUES ('without trace', '{HOURS[3]}')"
    )
    assert extract(run, store, HOURS[0]).rows == 1
    operational.insert("provider_traces", *(trace(hour) for hour in HOURS[:3]))
    assert extract(run, store, HOURS[1]).rows == 1
    with pytest.raises(SourceError, match="1 steps of this hour have no trace"):
        extract(run, store, HOURS[3])
    assert extract(run, store, HOURS[2]).rows == 2
    run.close()


def test_what_another_process_loaded_meanwhile_does_not_give_way(
    operational: Operational, run: SourceOfHours, source: Source, store: BatchStore
) -> None:
    operational.execute(DROP_INDEX)
    operational.insert("provider_traces", *(trace(hour) for hour in HOURS))
    assert extract(run, store, HOURS[0]).rows == 1
    operational.insert("provider_traces", trace(HOURS[1]))
    loaded = extract(source, store, HOURS[1])
    assert extract(run, store, HOURS[1]) == loaded
    assert loaded.rows == 2
    run.close()


def test_a_view_is_read_as_it_is(
    operational: Operational, run: SourceOfHours, store: BatchStore
) -> None:
    operational.insert("provider_traces", *(trace(hour) for hour in HOURS))
    operational.execute("""
        ALTER TABLE provider_traces RENAME TO stored_traces;
        CREATE VIEW provider_traces AS SELECT * FROM stored_traces
    """)
    assert [extract(run, store, hour).rows for hour in HOURS] == [1] * len(HOURS)
