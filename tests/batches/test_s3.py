"""Batches in a bucket: whole hours on real engines and a real S3 protocol server."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llm_trace_pipeline.batches.enrich import enrich_hour
from llm_trace_pipeline.batches.files import LocalFiles, S3Files
from llm_trace_pipeline.batches.history import capture_billing, read_history
from llm_trace_pipeline.batches.rules import Rules
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.cli.preflight import check_both_ends
from llm_trace_pipeline.clickhouse.client import Database, connect
from llm_trace_pipeline.clickhouse.cluster import loader_of
from llm_trace_pipeline.clickhouse.traces import insert_parquet
from llm_trace_pipeline.errors import BatchError, ClickHouseError, PipelineError
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.source.postgres import Source
from llm_trace_pipeline.upkeep.erase import erase
from llm_trace_pipeline.upkeep.preflight_target import check_batches
from llm_trace_pipeline.upkeep.reconcile import (
    Reconciliation,
    read_reconciliation,
    record_reconciliation,
)
from llm_trace_pipeline.upkeep.retention import apply_retention
from tests.harness.bucket import Bucket
from tests.harness.operational import Operational, trace
from tests.harness.pipeline import Pipeline
from tests.harness.rows import T0, erasure

H1 = T0 + HOUR
SECRET = "hunter2"  # noqa: S105 -- nobody's


@pytest.fixture
def store(s3_settings: Settings) -> BatchStore:
    """An empty batch store in the bucket."""
    return BatchStore.of(s3_settings)


def test_an_hour_goes_through_the_bucket_and_comes_out_the_same(
    operational: Operational,
    pipeline: Pipeline,
    bucket: Bucket,
    settings: Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    operational.insert(
        "provider_traces", *(trace(T0 + n * HOUR / 6_000, id=f"{n}") for n in range(6_000))
    )
    operational.insert(
        "organization_billing_details",
        {"organization_id": "org-1", "plan_type": "pro", "created_at": T0 - HOUR},
    )
    manifest = pipeline.load()
    assert len(manifest.parts) == 2
    assert bucket.keys("llm_traces/2026-03-01/09/") == {
        "_manifest.json",
        *(part.name for part in manifest.parts),
    }
    assert bucket.is_one_put("llm_traces/2026-03-01/09/_manifest.json")
    assert not Path(settings.trace_batch_uri).exists()
    # The same hour by way of a folder, into a ClickHouse of its own.
    rows = pipeline.rows()
    assert {row["id"] for row in rows} == {f"{n}" for n in range(6_000)}
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    other = settings.model_copy(
        update={"trace_batch_uri": str(elsewhere), "clickhouse_database": "other"}
    )
    local = BatchStore(LocalFiles(other.trace_batch_uri))
    pipeline.database.execute("RENAME TABLE llm_traces TO by_bucket")
    Pipeline(pipeline.source, local, pipeline.database).load()
    assert pipeline.rows() == rows


def test_a_second_run_changes_nothing_and_a_changed_hour_is_replaced(
    operational: Operational, pipeline: Pipeline, bucket: Bucket
) -> None:
    operational.insert("provider_traces", trace(id="a"), trace(H1, id="later"))
    first, later = pipeline.load(), pipeline.load(H1)
    before = bucket.keys()
    assert pipeline.load() == first
    assert not pipeline.load_batch().was_written
    assert bucket.keys() == before
    operational.insert("provider_traces", trace(id="b"))
    second = pipeline.load()
    assert second.batch_id != first.batch_id
    assert pipeline.ids() == ["a", "b", "later"]
    assert bucket.keys("llm_traces/") == {
        f"2026-03-01/{hour:%H}/{name}"
        for hour, manifest in ((T0, second), (H1, later))
        for name in ("_manifest.json", *(part.name for part in manifest.parts))
    }
    assert pipeline.store.hours() == [T0, H1]
    pipeline.database.execute("DROP TABLE llm_traces")
    # Restored from the bucket alone.
    loader_of(pipeline.database, pipeline.store).load(pipeline.store.hours())
    assert pipeline.ids() == ["a", "b", "later"]


def test_clickhouse_reads_the_bucket_without_being_told_a_secret(
    operational: Operational,
    pipeline: Pipeline,
    bucket: Bucket,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a server does too, for which the embedded engine stands in here."""
    operational.insert("provider_traces", trace(id="a"))
    pipeline.extract()
    said: list[str] = []
    execute = Database.execute

    def listen(self: Database, sql: str, *arguments: Any) -> None:
        said.append(f"{sql} {arguments}")
        execute(self, sql, *arguments)

    monkeypatch.setattr(Database, "execute", listen)
    client = pipeline.database._client  # noqa: SLF001 -- to say what stands behind it
    server = Database(client, settings.clickhouse_database, is_embedded=False)
    [result] = loader_of(server, pipeline.store).load([T0])
    assert result.was_written
    assert pipeline.ids() == ["a"]
    [reading] = [text for text in said if "INSERT INTO" in text and "FROM s3(" in text]
    assert bucket.server.endpoint in reading
    for word in (bucket.server.key_id, bucket.server.secret):
        assert word not in " ".join(said)


def test_billing_is_renewed_and_reconciliations_are_kept(
    operational: Operational, pipeline: Pipeline
) -> None:
    operational.insert("provider_traces", trace(id="a"))
    pipeline.load()
    operational.insert(
        "organization_billing_details", {"organization_id": "org-1", "plan_type": "pro"}
    )
    history = capture_billing(pipeline.source, pipeline.store.files).history
    assert read_history(pipeline.store.files) == history
    enrich_hour(pipeline.store, Rules(history), T0)
    pipeline.load_batch()
    assert pipeline.rows("id, billing_plan_type") == [{"id": "a", "billing_plan_type": "pro"}]
    for number in range(2):
        result = Reconciliation(id=f"{number}", at=T0, drifted=(T0,))
        record_reconciliation(pipeline.store.files, result)
        assert read_reconciliation(pipeline.store.files) == result


def test_an_erased_organization_is_gone_from_the_bucket(
    operational: Operational,
    source: Source,
    s3_settings: Settings,
    bucket: Bucket,
) -> None:
    operational.insert(
        "provider_traces",
        trace(id="kept"),
        trace(id="gone", organization_id="org-secret"),
        trace(H1, id="alone", organization_id="org-secret"),
    )
    store = BatchStore.of(s3_settings)
    with connect(s3_settings) as database:
        for hour in (T0, H1):
            Pipeline(source, store, database).load(hour)
    erased = erase(s3_settings, erasure("org-secret", before=datetime.now(UTC)))
    assert erased.searched.occurrences == []
    for key in bucket.keys("llm_traces/"):
        assert b"org-secret" not in bucket.read(f"llm_traces/{key}")
    with connect(s3_settings) as database:
        pipeline = Pipeline(source, store, database)
        for hour in (T0, H1):
            pipeline.load(hour)
        assert pipeline.ids() == ["kept"]


def test_the_retention_removes_hours_from_the_bucket(
    operational: Operational, pipeline: Pipeline, s3_settings: Settings, bucket: Bucket
) -> None:
    yesterday = T0 - timedelta(days=1)
    for hour in (yesterday, T0):
        operational.insert("provider_traces", trace(hour))
        pipeline.load(hour)
    settings = s3_settings.model_copy(update={"batch_retention_days": 30})
    now = T0 + timedelta(days=30)
    assert apply_retention(pipeline.database, pipeline.store, settings, now).hours == (yesterday,)
    assert pipeline.store.begun_hours() == pipeline.store.hours() == [T0]
    assert bucket.keys("llm_traces/2026-02-28/") == set()
    assert apply_retention(pipeline.database, pipeline.store, settings, now).hours == ()
    pipeline.load()


UPLOAD = """
import os, sys
import pyarrow as pa
from datetime import UTC, datetime
from llm_trace_pipeline.batches import parts as part_files
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.trace.columns import ARROW_SCHEMA
from llm_trace_pipeline.settings import Settings
from tests.harness.rows import make_rows

part_files.ROW_GROUP_BYTES = 2**20
hour = datetime.fromisoformat(sys.argv[1])
[row] = make_rows(hour, 1)
with BatchStore.of(Settings.from_environment()).writing(hour) as writer:
    with writer.part_writer(0) as parts:
        for number in range(40):
            text = os.urandom(2**19).hex()  # which no codec makes smaller than half
            batch = pa.RecordBatch.from_pylist([row | {"request_json": text}], ARROW_SCHEMA)
            parts.write(batch)
        print("uploading", flush=True)
        sys.stdin.read()
"""


def test_a_process_killed_while_it_uploads_leaves_nothing_that_is_read(
    operational: Operational, pipeline: Pipeline, bucket: Bucket
) -> None:
    operational.insert("provider_traces", trace(id="a"))
    manifest = pipeline.load()
    before = bucket.keys()
    with subprocess.Popen(
        [sys.executable, "-c", UPLOAD, T0.isoformat()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "uploading\n"
        process.send_signal(signal.SIGKILL)
    assert len(bucket.unfinished_uploads()) == 1
    assert bucket.keys() == before
    assert pipeline.store.manifest(T0) == manifest
    operational.insert("provider_traces", trace(id="b"))
    pipeline.load()
    assert pipeline.ids() == ["a", "b"]
    # What was uploaded is seen by nobody, and for the bucket's lifecycle rule to remove.
    assert len(bucket.unfinished_uploads()) == 1


def test_a_manifest_that_is_switched_while_it_is_read_is_the_old_or_the_new(
    store: BatchStore,
) -> None:
    results = [
        Reconciliation(id="short", at=T0),
        Reconciliation(id="long", at=T0, loaded=tuple(T0 + n * HOUR for n in range(50))),
    ]
    record_reconciliation(store.files, results[0])
    is_over = threading.Event()

    def switch() -> None:
        while not is_over.is_set():
            for result in reversed(results):
                record_reconciliation(store.files, result)

    switching = threading.Thread(target=switch)
    switching.start()
    try:
        for _ in range(100):
            assert read_reconciliation(store.files) in results
    finally:
        is_over.set()
        switching.join()


def test_a_part_that_another_machine_replaced_asks_for_another_run(
    operational: Operational, pipeline: Pipeline, bucket: Bucket
) -> None:
    operational.insert("provider_traces", trace(id="a"))
    old = pipeline.extract()
    operational.insert("provider_traces", trace(id="b"))
    pipeline.extract()
    with pytest.raises(BatchError, match="hour 2026-03-01-09:00: its batch was replaced meanwhile"):
        pipeline.store.part_paths(old)
    # Between the comparison and the engine's own reading.
    paths = pipeline.store.part_paths(pipeline.load())
    bucket.remove(paths[0].key)
    with pytest.raises(BatchError, match=r"part s3://.* was removed meanwhile; run it again"):
        insert_parquet(pipeline.database, "llm_traces", paths)
    assert pipeline.ids() == ["a", "b"]
    pipeline.load()
    assert pipeline.ids() == ["a", "b"]


def test_two_machines_that_write_an_hour_end_exact(
    operational: Operational, pipeline: Pipeline, s3_settings: Settings, tmp_path: Path
) -> None:
    """The locks of the one do not stop the other: it removes what the first has just uploaded."""
    operational.insert("provider_traces", trace(id="a"))
    other = BatchStore.of(s3_settings.model_copy(update={"state_dir": tmp_path / "other"}))
    elsewhere = Pipeline(pipeline.source, other, pipeline.database)
    publish = pipeline.store.writing
    with publish(T0) as writer:
        with writer.part_writer(0) as parts:
            [row] = pa.Table.from_batches(_rows_of(elsewhere)).to_batches()
            parts.write(row)
        manifest = elsewhere.store.manifest(T0)
        assert manifest
        operational.insert("provider_traces", trace(id="b"))
        elsewhere.extract()
        lost = manifest.model_copy(
            update={"batch_id": writer.batch_id, "parts": tuple(parts.parts)}
        )
        writer.publish(lost)
    with pytest.raises(BatchError, match="materialize trace_batches for this hour again"):
        loader_of(pipeline.database, pipeline.store).load([T0])
    pipeline.load()
    assert pipeline.ids() == ["a", "b"]


def _rows_of(pipeline: Pipeline) -> Iterator[pa.RecordBatch]:
    return pipeline.store.row_groups(pipeline.extract())


def test_a_missing_bucket_is_one_clear_line(s3_settings: Settings) -> None:
    missing = s3_settings.model_copy(update={"trace_batch_uri": "s3://no-such-bucket/traces"})
    with pytest.raises(BatchError, match=r"^s3://no-such-bucket: http://\S+ has no such bucket$"):
        BatchStore.of(missing)


def test_temporary_credentials_will_do(
    operational: Operational,
    pipeline: Pipeline,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    operational.insert("provider_traces", trace(id="a"))
    for name, value in bucket.server.temporary.items():
        monkeypatch.setenv(name, value)
        if name != "AWS_SESSION_TOKEN":  # without which the others are worth nothing
            with pytest.raises(BatchError):
                pipeline.load()
    pipeline.load()
    assert pipeline.ids() == ["a"]


def test_preflight_names_the_bucket(
    s3_settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_both_ends()
    assert "\nbatches: OK\n" in capsys.readouterr().out
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with pytest.raises(PipelineError, match="SIGNATURE_DOES_NOT_MATCH") as refused:
        check_both_ends()
    assert SECRET not in str(refused.value)
    assert "repair: check TRACE_BATCH_URI" in str(refused.value)
    assert s3_settings.trace_batch_uri in str(refused.value)


def test_an_endpoint_that_is_away_is_one_clear_line(s3_settings: Settings) -> None:
    away = s3_settings.model_copy(update={"aws_endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(BatchError, match=r"^s3://test-\w+/some/prefix: .*NETWORK_CONNECTION.*$"):
        BatchStore.of(away)


@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_one_clear_line_without_them(
    operational: Operational,
    pipeline: Pipeline,
    s3_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    wrong: str,
) -> None:
    operational.insert("provider_traces", trace(id="a"))
    manifest = pipeline.load()
    [path] = pipeline.store.part_paths(manifest)
    monkeypatch.setenv(wrong, SECRET)
    reason = "INVALID_ACCESS_KEY_ID" if wrong.endswith("ID") else "SIGNATURE_DOES_NOT_MATCH"
    line = rf"^s3://test-\w+/some/prefix: [^\n]*{reason}[^\n]*$"
    with pytest.raises(BatchError, match=line) as of_store:
        BatchStore.of(s3_settings)
    with pytest.raises(ClickHouseError, match=r"^ClickHouse: [^\n]*403[^\n]*$") as of_engine:
        pipeline.database.rows("SELECT id FROM s3({place:String}, Parquet)", {"place": path.url})
    for error in (of_store, of_engine):
        messages = f"{error.value} {error.value.__cause__}"
        assert SECRET not in messages
    assert pipeline.ids() == ["a"]


def test_preflight_writes_to_the_bucket_and_leaves_nothing(
    s3_settings: Settings, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_batches(s3_settings) == []
    assert bucket.keys() == set()

    def refuse(*_: object) -> None:
        raise BatchError("s3://traces/preflight: ACCESS_DENIED")

    monkeypatch.setattr(S3Files, "switch", refuse)  # of a key that may only read
    [problem] = check_batches(s3_settings)
    assert problem.is_fatal
    assert "may list, read, write and delete there" in problem.repair
