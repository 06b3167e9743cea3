"""Erasure on real engines: what was erased is gone and stays gone, whatever stops it."""

import shutil
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq
import pytest

from llm_trace_pipeline.batches.enrich import enrich_hour
from llm_trace_pipeline.batches.erasures import Erasure, read_erasures, record_erasure
from llm_trace_pipeline.batches.history import read_history
from llm_trace_pipeline.batches.manifest import Manifest
from llm_trace_pipeline.batches.rules import Rules
from llm_trace_pipeline.batches.store import BatchStore, HourWriter
from llm_trace_pipeline.cli.erase import erase_traces
from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.errors import PipelineError
from llm_trace_pipeline.hours import HOUR, key_of
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.source.postgres import Source
from llm_trace_pipeline.upkeep import erase as command
from llm_trace_pipeline.upkeep.erase import erase
from tests.harness.operational import Operational, trace
from tests.harness.pipeline import Pipeline
from tests.harness.rows import T0, Row, erasure
from tests.harness.statements import Stopped, recording, stopping_after

GONE, STAYS = "org-to-be-erased", "org-that-stays"
TOO_DEEP = "[" * 2000 + "]" * 2000  # a response that cannot be read
LATER = T0 + 30 * HOUR


def asked(agent: str | None = None, before: datetime = LATER) -> Erasure:
    return erasure(GONE, before, agent)


class Deployment(Pipeline):
    """All three stores, and everything that is in them."""

    def __init__(
        self, operational: Operational, source: Source, settings: Settings, database: Database
    ) -> None:
        super().__init__(source, BatchStore.of(settings), database)
        self.operational, self.settings = operational, settings

    def insert(self, *rows: Row) -> None:
        self.operational.insert("provider_traces", *rows)

    def rows_on_disk(self, organization: str = GONE) -> int:
        """Return the rows that lie in active parts, those included that no query shows."""
        rows = self.database.rows(
            "SELECT count() AS rows FROM llm_traces WHERE organization_id = {organization:String} "
            "SETTINGS apply_deleted_mask = 0",
            {"organization": organization},
        )
        return int(rows[0]["rows"])

    def batch_ids(self) -> list[str]:
        return sorted(
            trace_id
            for path in Path(self.settings.trace_batch_uri).rglob("llm_traces/**/*.parquet")
            for trace_id in pq.read_table(path, columns=["id"]).column("id").to_pylist()
        )

    def state(self) -> dict[str, Any]:
        """Return everything that there is, apart from random names and the time of writing."""
        manifests = [self.store.manifest(hour) for hour in self.store.hours()]
        return {
            "rows": self.rows(),
            "rows on disk": self.rows_on_disk(),
            "tables": [row["name"] for row in self.database.rows("SHOW TABLES")],
            "rows of batches": self.batch_ids(),  # of all files, also of those nobody names
            "manifests": [
                each.model_dump(exclude={"batch_id", "written_at", "parts"})
                for each in manifests
                if each
            ],
            "other files": sorted(
                path.name
                for path in Path(self.settings.trace_batch_uri).rglob("*")
                if path.is_file() and path.suffix != ".parquet"
            ),
            "erasures": [
                each.model_dump(exclude={"recorded_at"}) for each in read_erasures(self.store.files)
            ],
        }


@pytest.fixture
def deployment(
    operational: Operational, source: Source, settings: Settings, database: Database
) -> Deployment:
    return Deployment(operational, source, settings, database)


def both(at: datetime, name: str, **values: Any) -> list[dict[str, Any]]:
    """Return a trace of each organization."""
    return [
        trace(at, id=f"{name}-gone", organization_id=GONE, **values),
        trace(at, id=f"{name}-stays", organization_id=STAYS, **values),
    ]


def test_an_erased_organization_is_gone_and_stays_gone(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    hours = [T0, T0 + HOUR, T0 + 2 * HOUR]
    deployment.insert(
        *both(hours[0], "a"),
        *both(hours[0], "unreadable", response_json=TOO_DEEP),
        *both(hours[1], "b"),
        trace(hours[2], id="only-gone", organization_id=GONE),
    )
    deployment.load_hours(*hours)
    erase_traces(GONE, None, key_of(LATER), dry_run=False)

    left = ["a-stays", "b-stays", "unreadable-stays"]
    assert deployment.ids() == deployment.batch_ids() == left
    assert deployment.rows_on_disk() == 0
    manifests = [deployment.store.manifest(hour) for hour in hours]
    assert [(each.rows, each.source_erased) for each in manifests if each] == [
        (2, 2),
        (1, 1),
        (0, 1),
    ]
    first, *_ = manifests
    assert first
    assert (first.unreadable, first.unreadable_ids) == (1, ("unreadable-stays",))
    assert first.organizations_without_billing_ids == (STAYS,)
    output = capsys.readouterr().out
    assert "batches: 4 traces in 3 hours\n" in output
    assert "ClickHouse: 0 traces in 0 hours\n" in output
    assert f"for the id {GONE}: it does not occur\n" in output
    for place in ("operational database", "backups", "old_parts_lifetime", "billing history"):
        assert place in output

    # Extracted again, with a late trace among them; enriched; then lost by the source.
    deployment.insert(trace(T0, id="late", organization_id=GONE), *both(LATER, "later"))
    again = [*deployment.load_hours(*hours), deployment.load(LATER)]
    assert [each.is_complete for each in again] == [True] * 4
    assert deployment.ids() == [*left[:2], "later-gone", "later-stays", left[2]]
    enriched = enrich_hour(deployment.store, Rules(read_history(deployment.store.files)), T0)
    assert (enriched.is_complete, enriched.source_erased) == (True, 3)
    deployment.operational.execute(
        f"DELETE FROM provider_traces WHERE organization_id = '{GONE}'"
        f" AND created_at < '{LATER.isoformat()}'"
    )
    assert [each.source_erased for each in deployment.load_hours(*hours)] == [0, 0, 0]


def test_rows_that_a_reload_only_masked_are_taken_off_the_disk(deployment: Deployment) -> None:
    other_hour = trace(T0 + HOUR, id="c-stays", organization_id=STAYS)
    deployment.insert(*both(T0, "a"), *both(T0, "b"), other_hour)
    deployment.load_hours(T0, T0 + HOUR)
    # One part for the whole day, as merges make it: an hour can only be masked in it.
    deployment.database.execute("OPTIMIZE TABLE llm_traces FINAL")
    deployment.operational.execute(
        "UPDATE provider_traces SET is_deleted = true WHERE id = 'a-gone'"
    )
    deployment.load()
    assert deployment.ids() == ["a-stays", "b-gone", "b-stays", "c-stays"]
    assert deployment.rows_on_disk() == 3
    erase(deployment.settings, asked())
    assert deployment.rows_on_disk() == 0
    assert deployment.ids() == ["a-stays", "b-stays", "c-stays"]


@pytest.mark.parametrize(
    ("agent", "before", "left"),
    [
        pytest.param(None, LATER, ["other-gone"], id="the whole organization"),
        pytest.param("agent-1", LATER, ["2-gone", "4-gone", "other-gone"], id="one agent"),
        pytest.param(None, T0 + HOUR, ["3-gone", "4-gone", "other-gone"], id="before an hour"),
        pytest.param("agent-1", T0 + HOUR, ["2-gone", "3-gone", "4-gone", "other-gone"], id="both"),
    ],
)
def test_only_what_is_named_is_erased(
    deployment: Deployment, agent: str | None, before: datetime, left: list[str]
) -> None:
    microsecond = timedelta(microseconds=1)
    deployment.insert(
        trace(T0, id="1-gone", organization_id=GONE, agent_id="agent-1"),
        trace(T0 + HOUR - microsecond, id="2-gone", organization_id=GONE, agent_id="agent-2"),
        trace(T0 + HOUR, id="3-gone", organization_id=GONE, agent_id="agent-1"),
        trace(T0 + HOUR, id="4-gone", organization_id=GONE),
        trace(T0, id="other-gone", organization_id=f"{GONE}-2", agent_id="agent-1"),
    )
    deployment.load_hours(T0, T0 + HOUR)
    erase(deployment.settings, asked(agent, before))
    assert deployment.ids() == deployment.batch_ids() == left
    deployment.load_hours(T0, T0 + HOUR)
    assert deployment.ids() == deployment.batch_ids() == left


def test_hours_without_a_batch_are_erased_too(deployment: Deployment) -> None:
    deployment.insert(*both(T0, "a"))
    deployment.load()
    shutil.rmtree(deployment.settings.trace_batch_uri)
    erase(deployment.settings, asked())
    assert deployment.ids() == ["a-stays"]


def test_a_row_that_gave_way_does_not_take_the_place_of_the_erased_one(
    deployment: Deployment,
) -> None:
    deployment.insert(trace(id="twice", organization_id=GONE))
    shadowed = trace(id="twice", organization_id=STAYS)
    for name in ("request_json", "response_json", "llm_config"):
        del shadowed[name]
    deployment.operational.insert("provider_trace_metadata", shadowed)
    record_erasure(deployment.store.files, asked())
    manifest = deployment.load()
    assert manifest.is_complete
    assert (manifest.rows, manifest.source_folded, manifest.source_erased) == (0, 1, 1)
    assert deployment.ids() == []


def test_a_batch_is_erased_where_clickhouse_was_never_loaded(deployment: Deployment) -> None:
    deployment.insert(*both(T0, "a"))
    deployment.extract()
    erase(deployment.settings, asked())
    assert deployment.batch_ids() == ["a-stays"]


def test_what_others_say_of_it_is_named_with_its_hour(deployment: Deployment) -> None:
    deployment.insert(
        *both(T0, "a"), trace(T0, id="b", organization_id=STAYS, request_json=f'{{"a": "{GONE}"}}')
    )
    deployment.load()
    erased = erase(deployment.settings, asked())
    assert "hour 2026-03-01-09:00: request_json, in 1 places" in erased.searched.occurrences
    assert not any("organization_id" in place for place in erased.searched.occurrences)


def test_a_dry_run_counts_and_changes_nothing(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment.insert(*both(T0, "a"), *both(T0 + HOUR, "b"))
    deployment.load_hours(T0, T0 + HOUR)
    before = deployment.state()
    erase_traces(GONE, None, key_of(LATER), dry_run=True)
    assert deployment.state() == before
    output = capsys.readouterr().out
    assert "batches: 2 traces in 2 hours\n  ClickHouse: 2 traces in 2 hours\n" in output
    assert output.endswith("Dry run: nothing was changed.\n")


# What a process may end after: statements to ClickHouse, and changes of files.
STEPS = ((Database, "execute"), (Path, "replace"), (Path, "unlink"))


def test_stopped_anywhere_and_repeated_it_ends_in_the_same_state(
    deployment: Deployment, tmp_path: Path
) -> None:
    deployment.insert(*both(T0, "a"), *both(T0, "b"), *both(T0 + HOUR, "c"))
    deployment.load_hours(T0, T0 + HOUR)
    deployment.operational.execute(
        "UPDATE provider_traces SET is_deleted = true WHERE id = 'a-gone'"
    )
    deployment.load()
    batches, saved = Path(deployment.settings.trace_batch_uri), tmp_path / "saved"
    batches.rename(saved)
    deployment.database.execute("RENAME TABLE llm_traces TO saved")
    deployment.database.execute("CREATE TABLE llm_traces AS saved")
    named = asked()

    def restore() -> None:
        shutil.rmtree(batches, ignore_errors=True)
        shutil.copytree(saved, batches)
        deployment.database.execute("TRUNCATE TABLE llm_traces")
        deployment.database.execute("ALTER TABLE llm_traces ATTACH PARTITION ALL FROM saved")

    restore()
    before = deployment.state()
    with recording(STEPS) as steps:
        erase(deployment.settings, named)
    expected = deployment.state()
    assert expected["rows on disk"] == 0 < before["rows on disk"]
    assert len(expected["rows"]) == 3
    for number in range(1, len(steps) + 1):
        restore()
        with pytest.raises(Stopped), stopping_after(number, to=STEPS) as done:
            erase(deployment.settings, named)
        erase(deployment.settings, named)
        assert deployment.state() == expected, f"stopped after {done[-1]}"
    assert any("DELETE WHERE" in str(first) for _, first in steps)
    assert any(name == "replace" for name, _ in steps)
    # And a load that came between the two does not matter either.
    restore()
    with pytest.raises(Stopped), stopping_after(1, to=STEPS):
        erase(deployment.settings, named)
    deployment.load_hours(T0, T0 + HOUR)
    erase(deployment.settings, named)
    assert deployment.ids() == deployment.batch_ids() == ["a-stays", "b-stays", "c-stays"]
    assert deployment.rows_on_disk() == 0


def test_an_extraction_that_began_before_it_is_waited_for(deployment: Deployment) -> None:
    deployment.insert(*both(T0, "a"))
    has_read, may_publish = threading.Event(), threading.Event()
    publish = HourWriter.publish

    def publish_late(self: HourWriter, manifest: Manifest) -> Manifest:
        if not has_read.is_set():
            has_read.set()
            assert may_publish.wait(20)
        return publish(self, manifest)

    def record_and_go_on(*arguments: Any) -> None:
        record_erasure(*arguments)
        threading.Timer(0.3, may_publish.set).start()

    with (
        patch.object(HourWriter, "publish", publish_late),
        patch.object(command, "record_erasure", record_and_go_on),
    ):
        extraction = threading.Thread(target=deployment.extract)
        extraction.start()
        assert has_read.wait(20)
        erase(deployment.settings, asked())
        extraction.join()
    assert deployment.batch_ids() == ["a-stays"]


def test_rows_that_come_back_meanwhile_are_an_error(deployment: Deployment) -> None:
    deployment.insert(*both(T0, "a"))
    deployment.load()
    deployment.database.execute("CREATE TABLE live AS llm_traces")
    deployment.database.execute("INSERT INTO live SELECT * FROM llm_traces")
    remove = command.remove_from_clickhouse

    def remove_and_insert(*arguments: Any) -> list[datetime]:
        result = remove(*arguments)
        deployment.database.execute("INSERT INTO llm_traces SELECT * FROM live")
        return result

    with (
        patch.object(command, "remove_from_clickhouse", remove_and_insert),
        pytest.raises(PipelineError, match="not everything is erased"),
    ):
        erase(deployment.settings, asked())


def test_the_command_erases(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    deployment.insert(*both(T0 - 9 * HOUR, "day"), *both(T0, "hour"), *both(T0 + HOUR, "later"))
    deployment.load_hours(T0 - 9 * HOUR, T0, T0 + HOUR)
    for before, left in (
        ("2026-03-01", ["day-gone", "hour-gone", "later-gone"]),
        ("2026-03-01-01:00", ["hour-gone", "later-gone"]),
        ("2026-03-01-10:00", ["later-gone"]),
        (None, []),
    ):
        erase_traces(GONE, None, before, dry_run=False)
        assert [each for each in deployment.ids() if each.endswith("gone")] == left
    assert "Left:\n  batches: 0 traces in 0 hours\n" in capsys.readouterr().out
