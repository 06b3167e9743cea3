"""The retention on real engines: hours on both sides of the line, and loads after it."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.clickhouse.cluster import loader_of
from llm_trace_pipeline.errors import SettingsError
from llm_trace_pipeline.hours import BEGINNING, HOUR
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.source.postgres import Source
from llm_trace_pipeline.upkeep.retention import apply_retention, line_before
from tests.harness.operational import Operational, trace
from tests.harness.pipeline import Pipeline

DAYS = 30
LINE = datetime(2026, 3, 1, tzinfo=UTC)
NOW = LINE + timedelta(days=DAYS, hours=15, minutes=30)
HOURS = [LINE + n * HOUR for n in (-25, -1, 0, 1)]  # the second ends on the line
KEPT = HOURS[2:]
CLICKHOUSE, BATCHES = "LLM_TRACES_RETENTION_DAYS", "TRACE_BATCH_RETENTION_DAYS"


class Deployment(Pipeline):
    """Hours on both sides of the line, loaded before there was a retention."""

    def __init__(
        self, operational: Operational, source: Source, settings: Settings, database: Database
    ) -> None:
        super().__init__(source, BatchStore.of(settings), database)
        self.settings = settings
        microsecond = timedelta(microseconds=1)
        for hour in HOURS:
            operational.insert("provider_traces", trace(hour), trace(hour + HOUR - microsecond))
        self.load_hours(*HOURS)

    def repaired_by(self, hour: datetime, kept_from: datetime = BEGINNING) -> tuple[datetime, ...]:
        """Load the batch of an hour; return the hours that were repaired beside it."""
        [result] = loader_of(self.database, self.store, kept_from=kept_from).load([hour])
        return result.repaired_hours

    def apply(self, days: int | None, batch_days: int | None, now: datetime = NOW) -> Any:
        settings = self.settings.model_copy(
            update={"retention_days": days, "batch_retention_days": batch_days}
        )
        return apply_retention(self.database, self.store, settings, now)

    def hours(self) -> list[datetime]:
        """Return the hours that ClickHouse holds both traces of."""
        rows = self.database.rows(
            "SELECT toStartOfHour(created_at, 'UTC') AS hour FROM llm_traces "
            "GROUP BY hour HAVING count() = 2 ORDER BY hour"
        )
        return [row["hour"] for row in rows]

    def folders(self) -> set[str]:
        root = Path(self.settings.trace_batch_uri) / "llm_traces"
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir()}


@pytest.fixture
def deployment(
    operational: Operational, source: Source, settings: Settings, database: Database
) -> Deployment:
    return Deployment(operational, source, settings, database)


def test_whole_days_are_kept() -> None:
    midnight = LINE + timedelta(days=DAYS)
    microsecond = timedelta(microseconds=1)
    assert line_before(DAYS, midnight) == line_before(DAYS, NOW) == LINE
    assert line_before(DAYS, midnight - microsecond) == LINE - timedelta(days=1)
    assert line_before(DAYS, NOW.astimezone(timezone(timedelta(hours=-16)))) == LINE
    assert line_before(None, NOW) == BEGINNING


def test_nothing_is_dropped_by_default(deployment: Deployment) -> None:
    assert deployment.settings.retention_days is deployment.settings.batch_retention_days is None
    dropped = deployment.apply(None, None, NOW + timedelta(days=10_000))
    assert (dropped.partitions, dropped.hours) == ((), ())
    assert deployment.hours() == deployment.store.hours() == HOURS


def test_clickhouse_loses_the_days_before_the_line(deployment: Deployment) -> None:
    assert deployment.apply(DAYS, None).partitions == ("20260227", "20260228")
    assert deployment.hours() == KEPT
    assert deployment.store.hours() == HOURS
    assert deployment.apply(DAYS, None).partitions == ()


def test_batches_lose_the_days_before_the_line(deployment: Deployment) -> None:
    assert deployment.apply(None, DAYS).hours == tuple(HOURS[:2])
    assert deployment.store.hours() == KEPT
    assert deployment.folders() == {"2026-03-01", "2026-03-01/00", "2026-03-01/01"}
    assert deployment.hours() == HOURS
    assert deployment.apply(None, DAYS).hours == ()


def test_a_day_before_the_line_falls_everything_is_kept(deployment: Deployment) -> None:
    earlier = NOW - timedelta(days=2)
    dropped = deployment.apply(DAYS, DAYS, earlier)
    assert (dropped.partitions, dropped.hours) == ((), ())
    assert deployment.hours() == deployment.store.hours() == HOURS


def test_a_removal_that_was_cut_is_finished_by_the_next(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object) -> None:
        raise OSError("cut")

    with monkeypatch.context() as patched:
        patched.setattr("llm_trace_pipeline.batches.store.remove_litter", cut)
        with pytest.raises(OSError, match="cut"):
            deployment.apply(None, DAYS)
    assert deployment.store.hours() == HOURS[1:]  # no manifest promises what is half gone
    deployment.apply(None, DAYS)
    assert deployment.folders() == {"2026-03-01", "2026-03-01/00", "2026-03-01/01"}


def test_a_partition_across_the_line_is_kept_and_its_old_hours_are_not_repaired(
    deployment: Deployment,
) -> None:
    database = deployment.database
    database.execute(
        "CREATE TABLE other AS llm_traces ENGINE = MergeTree "
        "PARTITION BY toYear(created_at) ORDER BY (organization_id, created_at, id)"
    )
    database.execute("INSERT INTO other SELECT * FROM llm_traces")
    database.execute("EXCHANGE TABLES other AND llm_traces")
    assert deployment.apply(DAYS, None).partitions == ()
    assert deployment.hours() == HOURS
    # What somebody took out of it is no hole beyond the line, but is one on this side of it.
    database.execute(
        "DELETE FROM llm_traces WHERE toStartOfHour(created_at, 'UTC') "
        "IN ({a:DateTime('UTC')}, {b:DateTime('UTC')})",
        {"a": HOURS[1], "b": HOURS[2]},
    )
    assert deployment.repaired_by(HOURS[3], kept_from=LINE) == (HOURS[2],)
    assert deployment.hours() == [HOURS[0], *KEPT]
    assert deployment.repaired_by(HOURS[3]) == (HOURS[1],)


def test_a_swap_that_was_cut_brings_nothing_back(deployment: Deployment) -> None:
    deployment.database.execute("CREATE TABLE llm_traces__ready AS llm_traces")
    deployment.database.execute("INSERT INTO llm_traces__ready SELECT * FROM llm_traces")
    deployment.apply(DAYS, None)
    deployment.repaired_by(HOURS[3], kept_from=LINE)
    assert deployment.hours() == KEPT


@pytest.mark.parametrize("name", [CLICKHOUSE, BATCHES])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "a month"])
def test_a_wrong_number_of_days_is_refused(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name}: "):
        Settings.from_environment({name: value})
