"""The least privileges that ``sql/grants`` gives are enough, and are the ones that are checked."""

import re
from collections.abc import Iterator
from datetime import timedelta
from uuid import uuid4

import pytest

from llm_trace_pipeline.batches.extract import extract_hour
from llm_trace_pipeline.batches.history import capture_billing
from llm_trace_pipeline.batches.rules import Rules
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import Database, connect
from llm_trace_pipeline.clickhouse.cluster import loader_of
from llm_trace_pipeline.clickhouse.rollup import roll_up
from llm_trace_pipeline.errors import SourceError
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.source.postgres import Source
from llm_trace_pipeline.source.session import OWN_SETTINGS
from llm_trace_pipeline.sql import read_sql
from llm_trace_pipeline.upkeep.preflight_source import check_source
from llm_trace_pipeline.upkeep.preflight_target import needed_grants
from llm_trace_pipeline.upkeep.reconcile import reconcile
from tests.harness.operational import Operational, trace
from tests.harness.rows import T0


@pytest.fixture
def reader(operational: Operational) -> Iterator[Source]:
    """The operational database as the role of ``sql/grants/operational.sql`` sees it."""
    name = f"reader_{uuid4().hex}"
    operational.execute(read_sql("grants/operational.sql").replace("llm_traces_reader", name))
    yield Source(operational.url.replace("postgres@", f"{name}@", 1), connections=2)
    operational.execute(f"DROP OWNED BY {name}")
    operational.execute(f"DROP ROLE {name}")


def test_the_reader_is_all_that_the_pipeline_needs(
    operational: Operational,
    reader: Source,
    settings: Settings,
    store: BatchStore,
) -> None:
    operational.insert(
        "provider_traces",
        trace(id="a", step_id="step-1"),
        trace(id="b", is_deleted=True),
        # Two rows of one id, and one that moves later: what asks the source for ids is run too.
        trace(id="provider_trace-a", created_at=T0 + timedelta(minutes=1)),
        trace(id="c"),
    )
    operational.insert("steps", {"id": "step-1", "created_at": T0})
    history = capture_billing(reader, store.files).history
    assert extract_hour(reader, store, Rules(history), T0).rows == 2
    operational.execute(f"UPDATE provider_traces SET created_at = '{T0 + 2 * HOUR}' WHERE id = 'c'")
    assert extract_hour(reader, store, Rules(history), T0).rows == 1
    # An empty hour is asked for steps that no trace belongs to.
    assert extract_hour(reader, store, Rules(history), T0 + HOUR).rows == 0
    with connect(settings) as database:
        [result] = loader_of(database, store).load([T0])
        roll_up(database, store, [T0])
    assert result.differences == ()
    found = reconcile(reader, store, lambda: connect(settings), [T0, T0 + HOUR], Rules(history))
    assert (found.drifted, found.damaged, found.pruned) == ((), (), ())
    indexed = [each for each in check_source(reader, T0 + HOUR) if each.is_fatal]
    assert indexed == []


def test_the_reader_cannot_write(operational: Operational, reader: Source) -> None:
    operational.insert("provider_traces", trace(id="a"))
    with (
        pytest.raises(SourceError, match="read-only transaction"),
        reader.session() as session,
    ):
        session.run("DELETE FROM provider_traces")
    with (
        pytest.raises(SourceError, match="permission denied for table provider_traces"),
        reader.session() as session,
    ):
        session.run("ROLLBACK; DELETE FROM provider_traces")
    assert [row["id"] for row in operational.rows("SELECT id FROM provider_traces")] == ["a"]


def test_the_loader_is_granted_what_preflight_asks_for(database: Database) -> None:
    text = read_sql("grants/clickhouse.sql")
    statements = [
        statement.strip() for statement in re.sub(r"--.*", "", text).split(";") if statement.strip()
    ]
    for statement in statements:
        assert database.rows(f"EXPLAIN AST {statement}")
    granted = [
        found[1]
        for statement in statements
        if (found := re.fullmatch(r"GRANT (.*) TO llm_traces_loader", statement))
    ]
    assert granted == needed_grants(Settings.from_environment({}))
    in_bucket = needed_grants(Settings.from_environment({"TRACE_BATCH_URI": "s3://traces"}))
    [of_bucket] = set(in_bucket) - set(granted)
    assert f"-- For batches in a bucket: GRANT {of_bucket} TO llm_traces_loader;" in text


def test_the_loader_is_granted_what_preflight_asks_for_on_a_service(database: Database) -> None:
    text = re.sub(r"--.*", "", read_sql("grants/clickhouse_cloud.sql"))
    statements = [statement.strip() for statement in text.split(";") if statement.strip()]
    for statement in statements:
        assert database.rows(f"EXPLAIN AST {statement}")
    in_bucket = Settings.from_environment({"TRACE_BATCH_URI": "s3://traces"})
    needed = [*needed_grants(in_bucket), "REMOTE ON *.*"]
    assert statements[1:] == [f"GRANT {grant} TO llm_traces_loader" for grant in needed]


def test_a_statement_is_bounded_and_has_a_name(
    reader: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = "SELECT current_setting('application_name') AS name"
    monkeypatch.setitem(OWN_SETTINGS, "statement_timeout", "200ms")
    with reader.session() as session:
        assert session.rows(shown) == [{"name": "llm_trace_pipeline"}]
        with pytest.raises(SourceError, match="canceling statement due to statement timeout"):
            session.rows("SELECT pg_sleep(60)")
