"""The batch store, in a folder and in a bucket: what a reader sees, whatever happens to a write."""

import errno
import fcntl
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import clickhouse_connect
import duckdb
import pandas as pd  # type: ignore[import-untyped]  # its stubs are a package of their own
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_trace_pipeline.batches import files
from llm_trace_pipeline.batches import parts as part_files
from llm_trace_pipeline.batches import store as batch_store
from llm_trace_pipeline.batches.files import LocalFiles, S3Files
from llm_trace_pipeline.batches.history import capture_billing
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.errors import BatchError
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.source.postgres import Source
from llm_trace_pipeline.trace.columns import ARROW_SCHEMA
from tests.harness.bucket import Bucket, Folder
from tests.harness.operational import Operational, trace
from tests.harness.pipeline import extract
from tests.harness.rows import T0
from tests.harness.statements import Stopped

FOLDER = "llm_traces/2026-03-01/09"
MANIFEST = f"{FOLDER}/_manifest.json"


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest) -> Folder | Bucket:
    """Where the batches lie: every test is of both kinds."""
    if request.param == "bucket":
        bucket: Bucket = request.getfixturevalue("bucket")
        return bucket
    return Folder(request.getfixturevalue("settings").trace_batch_uri)


@pytest.fixture
def store(place: Folder | Bucket, request: pytest.FixtureRequest) -> BatchStore:
    of = "s3_settings" if isinstance(place, Bucket) else "settings"
    return BatchStore.of(request.getfixturevalue(of))


def rows_of(store: BatchStore) -> pa.Table:
    """Return what a reader sees of the hour T0."""
    manifest = store.manifest(T0)
    assert manifest is not None
    return pa.Table.from_batches(list(store.row_groups(manifest)), ARROW_SCHEMA).sort_by("id")


def files_in(place: Folder | Bucket) -> set[str]:
    return place.keys(f"{FOLDER}/")


def test_a_batch_holds_the_declared_columns(
    operational: Operational, source: Source, store: BatchStore
) -> None:
    operational.insert("provider_traces", *(trace(id=f"{n}") for n in range(50)))
    manifest = extract(source, store)
    table = rows_of(store)
    assert table.schema.equals(ARROW_SCHEMA)
    assert table.column("id").to_pylist() == sorted(f"{n}" for n in range(50))
    assert sum(part.rows for part in manifest.parts) == manifest.rows == 50
    assert len(manifest.parts) == 1  # few rows are read by one connection


def test_a_batch_is_readable_as_it_is(
    operational: Operational,
    source: Source,
    store: BatchStore,
    place: Folder | Bucket,
    tmp_path: Path,
) -> None:
    operational.insert("provider_traces", trace(id="a", agent_tags='["x", "y"]'), trace(id="b"))
    for part in extract(source, store).parts:
        (tmp_path / part.name).write_bytes(place.read(f"{FOLDER}/{part.name}"))
    pattern = f"{tmp_path}/*.parquet"
    query = "SELECT id, total_tokens, agent_tags, created_at FROM {} ORDER BY id"
    expected = [("a", 15, ["x", "y"]), ("b", 15, [])]
    assert [
        (row["id"], row["total_tokens"], row["agent_tags"]) for row in rows_of(store).to_pylist()
    ] == expected
    read = duckdb.connect().execute(query.format(f"'{pattern}'")).fetchall()
    assert [row[:3] for row in read] == expected
    with clickhouse_connect.get_client(interface="chdb", path=":memory:") as client:
        found = client.query(query.format(f"file('{pattern}', Parquet)")).result_rows
        assert [row[:3] for row in found] == expected


@pytest.mark.parametrize("point", ["a row group", "a part", "the manifest", "the switch"])
def test_an_interrupted_write_leaves_the_old_batch_and_no_litter(
    operational: Operational,
    source: Source,
    store: BatchStore,
    place: Folder | Bucket,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
) -> None:
    operational.insert("provider_traces", trace(id="a"))
    old = extract(source, store)
    operational.insert("provider_traces", trace(id="b"))

    def stop(*_: object, **__: object) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(batch_store, "remove_litter", lambda *_: None)  # as a kill leaves it
        if point == "a row group":
            patch.setattr(pq.ParquetWriter, "write_table", stop)
        elif point == "a part":
            patch.setattr(part_files, "seal_part", stop)
        elif point == "the manifest":
            patch.setattr(batch_store, "switch_manifest", stop)
        elif isinstance(place, Bucket):
            patch.setattr(S3Files, "switch", stop)
        else:
            patch.setattr(Path, "replace", stop)
        with pytest.raises(Stopped):
            extract(source, store)
    assert store.manifest(T0) == old
    assert rows_of(store).column("id").to_pylist() == ["a"]
    assert len(files_in(place)) > 2  # the litter

    new = extract(source, store)
    assert rows_of(store).column("id").to_pylist() == ["a", "b"]
    assert files_in(place) == {"_manifest.json"} | {part.name for part in new.parts}


def test_a_write_that_ends_before_its_clean_up_has_switched(
    operational: Operational, source: Source, store: BatchStore, place: Folder | Bucket
) -> None:
    operational.insert("provider_traces", trace(id="a"))
    extract(source, store)
    place.write(f"{FOLDER}/left-by-a-killed-process.parquet", b"PAR1")
    manifest = extract(source, store)
    assert files_in(place) == {"_manifest.json"} | {part.name for part in manifest.parts}


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_part_is_refused(
    operational: Operational, source: Source, store: BatchStore, place: Folder | Bucket, damage: str
) -> None:
    operational.insert("provider_traces", trace(id="a"))
    manifest = extract(source, store)
    key = f"{FOLDER}/{manifest.parts[0].name}"
    content = bytearray(place.read(key))
    if damage == "flipped":
        content[len(content) // 2] ^= 1
        place.write(key, bytes(content))
    elif damage == "truncated":
        place.write(key, bytes(content[:100]))
    else:
        place.remove(key)
    with pytest.raises(BatchError, match=r"hour 2026-03-01-09:00: .*materialize trace_batches"):
        store.part_paths(manifest)


def test_a_damaged_manifest_is_refused(store: BatchStore, place: Folder | Bucket) -> None:
    place.write(MANIFEST, b'{"version": 1')
    with pytest.raises(BatchError, match=r"hour 2026-03-01-09:00: .*manifest.json is damaged"):
        store.manifest(T0)
    place.write(MANIFEST, b'{"version": 4, "hours": []}')
    with pytest.raises(BatchError, match=r"manifest.json was written by a newer version"):
        store.manifest(T0)


def test_one_process_at_a_time_writes_an_hour(
    store: BatchStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.3)
    with (
        store.writing(T0),
        pytest.raises(BatchError, match="being written by another process"),
        store.writing(T0),
    ):
        pass
    with store.writing(T0):
        pass


def test_one_at_a_time_holds_a_folder_that_others_remove(tmp_path: Path) -> None:
    place = LocalFiles(tmp_path)
    inside: list[int] = []
    most_inside: list[int] = []

    def hold_and_remove(number: int) -> None:
        for _ in range(60):
            with place.locked("day/hour"):
                inside.append(number)
                most_inside.append(len(inside))
                (tmp_path / "day/hour/part").touch()
                (tmp_path / "day/hour/part").unlink()
                inside.remove(number)
                place.remove_folder("day/hour")

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(hold_and_remove, range(3)))
    assert most_inside == [1] * 180
    assert list(tmp_path.iterdir()) == []


def test_an_hour_that_is_being_written_is_begun_and_has_no_batch(store: BatchStore) -> None:
    with store.writing(T0):
        assert (store.begun_hours(), store.hours()) == ([T0], [])
    store.remove(T0)
    assert store.begun_hours() == []


def test_large_rows_make_row_groups_and_parts_bounded_by_bytes(
    operational: Operational,
    source: Source,
    store: BatchStore,
    place: Folder | Bucket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(part_files, "ROW_GROUP_BYTES", 200_000)
    monkeypatch.setattr(part_files, "PART_BYTES", 1_000_000)
    monkeypatch.setattr("llm_trace_pipeline.source.session.BATCH_BYTES", 50_000)
    text = '"' + "x" * 10_000 + '"'
    operational.insert(
        "provider_traces", *(trace(id=f"{n}", request_json=text) for n in range(300))
    )
    manifest = extract(source, store)
    assert rows_of(store).num_rows == 300
    assert len(manifest.parts) == 3
    for part in manifest.parts:
        groups = pq.read_metadata(io.BytesIO(place.read(f"{FOLDER}/{part.name}")))
        for number in range(groups.num_row_groups):
            assert groups.row_group(number).num_rows <= 30


def test_an_empty_hour_is_a_batch_without_parts(
    operational: Operational, source: Source, store: BatchStore, place: Folder | Bucket
) -> None:
    operational.insert("provider_traces", trace(T0.replace(hour=1)))
    manifest = extract(source, store)
    assert (manifest.rows, manifest.parts) == (0, ())
    assert files_in(place) == {"_manifest.json"}
    assert store.manifest(T0) == manifest


def test_a_history_that_is_damaged_is_never_started_anew(
    operational: Operational, source: Source, store: BatchStore, place: Folder | Bucket
) -> None:
    operational.insert(
        "organization_billing_details", {"organization_id": "org-1", "plan_type": "pro"}
    )
    capture_billing(source, store.files)
    for name in place.keys("billing_history/") - {"_manifest.json"}:
        place.remove(f"billing_history/{name}")
    with pytest.raises(BatchError, match="restore the folder from a backup"):
        capture_billing(source, store.files)


@pytest.mark.parametrize("is_changed", [False, True])
def test_a_manifest_under_its_earlier_name_counts_until_the_next_batch(
    operational: Operational,
    source: Source,
    store: BatchStore,
    place: Folder | Bucket,
    is_changed: bool,
) -> None:
    operational.insert("provider_traces", trace(id="a"))
    old = extract(source, store)
    place.write(f"{FOLDER}/manifest.json", place.read(MANIFEST))
    place.remove(MANIFEST)
    assert store.manifest(T0) == old
    assert store.hours() == [T0]
    if is_changed:
        operational.insert("provider_traces", trace(id="b"))
    new = extract(source, store)
    assert store.manifest(T0) == new
    name = "_manifest.json" if is_changed else "manifest.json"
    assert files_in(place) == {name} | {part.name for part in new.parts}
    store.remove(T0)
    assert (store.hours(), store.manifest(T0), files_in(place)) == ([], None, set())


def test_others_read_the_folders_as_one_data_set(
    operational: Operational, source: Source, settings: Settings
) -> None:
    store = BatchStore.of(settings)
    operational.insert("provider_traces", *(trace(T0 + n * HOUR, id=f"{n}") for n in range(3)))
    for n in range(3):
        extract(source, store, T0 + n * HOUR)
    folder = f"{settings.trace_batch_uri}/llm_traces"
    ids = {"0", "1", "2"}
    assert set(pd.read_parquet(folder)["id"]) == ids
    assert set(pq.read_table(folder).column("id").to_pylist()) == ids
    with duckdb.connect() as engine:
        found = engine.execute(
            "SELECT id FROM read_parquet($1, union_by_name = true)", [f"{folder}/*/*/*.parquet"]
        ).fetchall()
    assert {row[0] for row in found} == ids


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_named(
    store: BatchStore, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    message = rf"/09 cannot be locked \({os.strerror(code)}\); it must be"
    with pytest.raises(BatchError, match=message), store.writing(T0):
        pass
