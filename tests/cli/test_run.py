"""The end of ``run``: it says that the stores agree, or names the hours where they do not."""

from collections.abc import Callable

import pytest

from llm_trace_pipeline.batches.history import capture_billing
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.cli.run import compare_stores, print_report, what_next
from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.errors import PipelineError
from llm_trace_pipeline.hours import HOUR, key_of
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.source.postgres import Source
from tests.harness.jobs import Jobs
from tests.harness.operational import Operational, billing, trace
from tests.harness.rows import T0

HOURS = [T0, T0 + HOUR, T0 + 2 * HOUR]
SOURCE = {
    "OPERATIONAL_DATABASE_URL": "postgresql://reader@db/letta",
    "LLM_TRACES_START": "2026-03-01-00:00",
}
TARGET = {"CLICKHOUSE_ENDPOINT": "http://clickhouse:8123"}
PROOF = "source rows = batch rows = ClickHouse rows, in every hour"


@pytest.fixture
def loaded(settings: Settings, operational: Operational, jobs: Jobs) -> Settings:
    """Three hours of two calls, one call and none, loaded."""
    operational.insert("provider_traces", trace(T0, id="a"), trace(T0, id="b"), trace(HOURS[1]))
    assert jobs.load(HOURS[0], HOURS[-1]).success
    return settings


def test_hours_that_agree_are_printed_with_their_rows(
    loaded: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    compare_stores(loaded, HOURS)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [[key_of(hour), f"{n}"] for hour, n in zip(HOURS, (2, 1, 0), strict=True)]
    assert lines == [["Hour", "(UTC)", "rows"], *rows, ["total", "3"], PROOF.split()]


@pytest.mark.parametrize(
    ("configured", "asked"),
    [
        ({}, ["OPERATIONAL_DATABASE_URL", "LLM_TRACES_START", "CLICKHOUSE_ENDPOINT"]),
        (SOURCE, ["CLICKHOUSE_ENDPOINT"]),
        (TARGET, ["OPERATIONAL_DATABASE_URL", "LLM_TRACES_START"]),
        (SOURCE | TARGET, []),
    ],
    ids=["nothing", "the source", "ClickHouse", "everything"],
)
def test_what_is_not_configured_yet_is_named(configured: dict[str, str], asked: list[str]) -> None:
    text = what_next(Settings.from_environment(configured), "2026-03-01-00:00", "2026-03-02-00:00")
    named = [name for name in (*SOURCE, *TARGET) if name in text]
    assert named == asked
    assert ("Your own data" in text) == bool(asked)
    assert "make backfill FROM=2026-03-01-00:00 TO=2026-03-02-00:00" in text


def test_names_of_the_data_are_printed_as_text(
    settings: Settings,
    operational: Operational,
    jobs: Jobs,
    capsys: pytest.CaptureFixture[str],
) -> None:
    operational.insert("provider_traces", trace(organization_id="org\x1b[31m"))
    assert jobs.load(T0, T0).success
    print_report(settings, [T0])
    printed = capsys.readouterr().out
    assert r"org\x1b[31m" in printed
    assert "\x1b" not in printed


def add_a_late_trace(operational: Operational, _: Database) -> None:
    operational.insert("provider_traces", trace(HOURS[2]))


def take_a_row_from_clickhouse(_: Operational, database: Database) -> None:
    database.execute("DELETE FROM llm_traces WHERE id = 'a'")


@pytest.mark.parametrize(
    ("change", "hour"),
    [(add_a_late_trace, 2), (take_a_row_from_clickhouse, 0)],
)
def test_an_hour_that_differs_is_named(
    loaded: Settings,
    operational: Operational,
    database: Database,
    change: Callable[[Operational, Database], None],
    hour: int,
) -> None:
    change(operational, database)
    with pytest.raises(PipelineError) as found:
        compare_stores(loaded, HOURS)
    assert str(found.value) == (
        f"source, batch and ClickHouse differ in {key_of(HOURS[hour])}: traces may have come in "
        "since; load these hours again with make backfill"
    )


def test_an_hour_with_earlier_billing_is_named(
    loaded: Settings, operational: Operational, source: Source, store: BatchStore
) -> None:
    """ClickHouse is not compared there, so that nothing can be said of it."""
    operational.insert("organization_billing_details", billing("org-1", "pro", HOURS[1]))
    capture_billing(source, store.files)
    with pytest.raises(PipelineError, match=f"differ in {key_of(T0)}, {key_of(HOURS[1])}: "):
        compare_stores(loaded, HOURS)
