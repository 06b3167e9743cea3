"""A session has settings of its own, whatever the role, the database or a variable says."""

import time

import pytest

from llm_trace_pipeline.errors import SourceError
from llm_trace_pipeline.source.postgres import Source
from tests.harness.operational import Operational, trace
from tests.harness.pipeline import Pipeline
from tests.harness.rows import T0

TIMEOUTS = ("statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout")


@pytest.fixture
def impatient(operational: Operational) -> Source:
    """A database that ends what takes longer than a tenth of a second."""
    for name in TIMEOUTS:
        operational.execute(
            f"DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || current_database() || ' SET {name} = 100'; "
            "END $$"
        )
    return Source(operational.url)


def test_timeouts_of_the_database_end_no_load(impatient: Source) -> None:
    with impatient.session() as session:
        time.sleep(0.3)
        [shown] = session.rows("SELECT pg_sleep(0.3)::text AS slept, 'still here' AS said")
    assert shown["said"] == "still here"


def test_a_limit_of_connections_is_told_with_the_variable_to_set(
    operational: Operational,
) -> None:
    # The driver asks for the types of a database by a connection of its own, which may still be
    # counted when the next one comes.
    operational.execute("CREATE ROLE few_at_a_time LOGIN CONNECTION LIMIT 2")
    try:
        operational.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO few_at_a_time")
        url = operational.url.replace("postgres@", "few_at_a_time@", 1)
        with (
            Source(url).snapshot() as snapshot,
            pytest.raises(SourceError, match=r"^another .* too many .*; EXTRACT_CONNECTIONS, and"),
            snapshot.traces(T0, connections=3),
        ):
            pass
    finally:
        operational.execute("DROP OWNED BY few_at_a_time")
        operational.execute("DROP ROLE few_at_a_time")


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
def test_the_encoding_of_the_environment_changes_no_text(
    operational: Operational, pipeline: Pipeline, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = '{"messages": "ünïcode é 🦉 日本"}'
    operational.insert("provider_traces", trace(request_json=text, agent_id="ü日"))
    monkeypatch.setenv("PGCLIENTENCODING", encoding)
    pipeline.load()
    [row] = pipeline.rows("request_json, agent_id")
    assert row == {"request_json": text, "agent_id": "ü日"}
