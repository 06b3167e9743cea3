"""The preflight of the source: what is broken is named, and the repair it prints repairs it."""

import re
from collections.abc import Iterator
from uuid import uuid4

import pytest

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.errors import SourceError
from llm_trace_pipeline.hours import HOUR, Window
from llm_trace_pipeline.source.postgres import Source, SourceOfHours
from llm_trace_pipeline.upkeep.preflight_source import check_source
from tests.harness.operational import CREATE_INDEX, Operational, trace
from tests.harness.pipeline import extract
from tests.harness.rows import T0

UNTIL = T0 + HOUR


READ_TRACES = "sql/operational/all_traces.sql"


READ_STEPS = " and ".join(
    f"sql/operational/{name}.sql" for name in ("all_steps", "unaccounted_steps")
)


@pytest.fixture
def role(operational: Operational) -> Iterator[str]:
    """A role that may read every table."""
    name = f"reader_{uuid4().hex}"
    operational.execute(f"CREATE ROLE {name} LOGIN")
    operational.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}")
    yield name
    operational.execute(f"DROP OWNED BY {name}")
    operational.execute(f"DROP ROLE {name}")


def as_role(operational: Operational, role: str) -> Source:
    return Source(operational.url.replace("postgres@", f"{role}@", 1))


def test_a_role_with_no_more_than_select_is_enough(operational: Operational, role: str) -> None:
    assert check_source(as_role(operational, role), UNTIL) == []


def test_missing_tables_are_all_named_at_once(source: Source, operational: Operational) -> None:
    operational.execute("DROP TABLE steps, provider_traces, organization_billing_details")
    operational.execute("DROP TABLE provider_trace_metadata, step_metrics")  # may be missing
    problems = check_source(source, UNTIL)
    assert {problem.message.split("table ")[1] for problem in problems} == {
        f"provider_traces, which is read by {READ_TRACES}",
        f"steps, which is read by {READ_STEPS}",
        "organization_billing_details, which is read by sql/operational/billing.sql",
    }
    assert all(problem.is_fatal for problem in problems)


def test_missing_columns_are_all_named_at_once(source: Source, operational: Operational) -> None:
    operational.execute("ALTER TABLE provider_traces DROP run_id, DROP llm_config")
    operational.execute("ALTER TABLE steps DROP reasoning_tokens")
    messages = {problem.message for problem in check_source(source, UNTIL)}
    assert messages == {
        f"public.provider_traces has no column llm_config, run_id, read by {READ_TRACES}",
        f"public.steps has no column reasoning_tokens, read by {READ_STEPS}",
    }


def test_a_column_that_no_statement_reads_may_be_missing(
    source: Source, operational: Operational
) -> None:
    operational.execute("ALTER TABLE provider_traces DROP compaction_settings, DROP source")
    operational.execute("ALTER TABLE steps DROP organization_id, DROP updated_at")
    assert check_source(source, UNTIL) == []


def test_a_column_that_a_deployment_may_lack_is_not_asked_for(
    source: Source, operational: Operational
) -> None:
    operational.execute("ALTER TABLE provider_traces DROP billing_context, DROP user_id")
    operational.execute("ALTER TABLE provider_trace_metadata DROP user_id")
    operational.execute(
        "ALTER TABLE steps DROP status, DROP stop_reason, DROP error_type, DROP error_data, "
        "DROP model_handle"
    )
    assert check_source(source, UNTIL) == []


def test_a_missing_index_comes_with_the_statement_that_makes_it(
    source: Source, operational: Operational
) -> None:
    operational.execute("DROP INDEX ix_provider_traces_created_at")
    operational.execute("CREATE INDEX ON provider_traces (created_at) WHERE is_deleted")
    operational.execute("CREATE INDEX ON provider_traces (org_id, created_at)")
    [problem] = check_source(source, UNTIL)
    assert (problem.repair, problem.is_fatal) == (CREATE_INDEX, False)
    operational.execute(problem.repair)
    assert check_source(source, UNTIL) == []


def test_a_partitioned_table_is_given_its_index_without_concurrently(
    source: Source, operational: Operational
) -> None:
    operational.execute("ALTER TABLE provider_traces RENAME TO old")
    operational.execute(
        "CREATE TABLE provider_traces (LIKE old INCLUDING DEFAULTS) PARTITION BY HASH (id)"
    )
    [problem] = check_source(source, UNTIL)
    assert problem.repair == "CREATE INDEX ON public.provider_traces (created_at);"
    operational.execute(problem.repair)
    assert check_source(source, UNTIL) == []


def test_a_view_needs_no_index(source: Source, operational: Operational) -> None:
    operational.execute("ALTER TABLE provider_traces RENAME TO stored")
    operational.execute("DROP INDEX ix_provider_traces_created_at")
    operational.execute("CREATE VIEW provider_traces AS SELECT * FROM stored")
    assert check_source(source, UNTIL) == []


def test_a_refused_table_comes_with_its_grant(operational: Operational, role: str) -> None:
    operational.execute(f"REVOKE SELECT ON steps FROM {role}")
    [problem] = check_source(as_role(operational, role), UNTIL)
    assert problem.is_fatal
    assert problem.repair == f"GRANT SELECT ON public.steps TO {role};"
    operational.execute(problem.repair)
    assert check_source(as_role(operational, role), UNTIL) == []


@pytest.mark.parametrize("table", ["provider_traces", "provider_trace_metadata", "steps"])
def test_a_policy_that_hides_rows_is_told_and_refuses_the_load(
    operational: Operational, role: str, table: str
) -> None:
    operational.insert("provider_traces", trace(), trace(organization_id="org-2"))
    source = as_role(operational, role)
    operational.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    operational.execute(f"CREATE POLICY own_rows ON {table} USING (organization_id = 'org-1')")
    [problem] = check_source(source, UNTIL)
    assert problem.is_fatal
    assert problem.message.startswith(
        f"a row-level security policy hides rows of public.{table}: {role}"
    )
    with (
        pytest.raises(SourceError, match=f"hides rows of {table};"),
        source.snapshot() as snapshot,
    ):
        snapshot.ledger_of(T0)
    repair, _, _ = problem.repair.partition(" lets the role see all rows")
    operational.execute(repair)
    assert check_source(source, UNTIL) == []


@pytest.mark.parametrize(
    ("column", "type_", "as_json"),
    [
        ("agent_tags", "text[]", "to_json(agent_tags)"),
        ("request_json", "bytea", "convert_from(request_json, 'UTF8')::json"),
    ],
)
def test_a_column_of_json_that_holds_something_else_is_refused(
    source: Source, operational: Operational, column: str, type_: str, as_json: str
) -> None:
    operational.execute(f"ALTER TABLE provider_traces ALTER {column} TYPE {type_} USING NULL")
    [problem] = check_source(source, UNTIL)
    said = f"public.provider_traces: {column} is {type_}, and loads read json, jsonb or text"
    assert (problem.message, problem.is_fatal) == (said, True)
    with pytest.raises(SourceError, match="loads read json, jsonb or text"), source.snapshot():
        pass
    operational.execute("ALTER TABLE provider_traces RENAME TO stored")
    operational.execute(
        "CREATE VIEW provider_traces AS SELECT id, created_at, updated_at, is_deleted, org_id, "
        "organization_id, agent_id, run_id, step_id, call_type, "
        + ", ".join(
            f"{as_json} AS {name}" if name == column else name
            for name in ("agent_tags", "request_json", "response_json", "llm_config")
        )
        + " FROM stored"
    )
    assert check_source(source, UNTIL) == []


def test_a_view_of_the_owner_sees_what_a_policy_hides(operational: Operational, role: str) -> None:
    operational.insert("provider_traces", trace(), trace(organization_id="org-2"))
    operational.execute("ALTER TABLE provider_traces ENABLE ROW LEVEL SECURITY")
    operational.execute("CREATE SCHEMA whole")
    operational.execute("CREATE VIEW whole.provider_traces AS SELECT * FROM public.provider_traces")
    operational.execute(f"GRANT USAGE ON SCHEMA whole TO {role}")
    operational.execute(f"GRANT SELECT ON whole.provider_traces TO {role}")
    operational.execute(f"ALTER ROLE {role} SET search_path = whole, public")
    source = as_role(operational, role)
    assert check_source(source, UNTIL) == []
    with source.snapshot() as snapshot:
        assert snapshot.ledger_of(T0).rows == 2


def test_tables_off_the_search_path_come_with_the_statements_that_show_them(
    operational: Operational, role: str
) -> None:
    operational.execute('CREATE SCHEMA "Letta"')
    for name in ("provider_traces", "steps", "organization_billing_details"):
        operational.execute(f'ALTER TABLE {name} SET SCHEMA "Letta"')
    problems = check_source(as_role(operational, role), UNTIL)
    assert len(problems) == 3
    repair = {problem.repair for problem in problems}.pop()
    assert f'GRANT USAGE ON SCHEMA "Letta" TO {role};' in repair
    for statement in repair.split(";")[:2]:
        operational.execute(statement)
    assert check_source(as_role(operational, role), UNTIL) == []


@pytest.mark.parametrize(
    ("kind", "has_index"), [("timestamp", True), ("moment", False)], ids=["", "of a domain"]
)
@pytest.mark.parametrize("table", ["provider_traces", "provider_trace_metadata", "steps"])
def test_a_time_without_zone_is_refused_until_it_has_one(
    source: Source,
    store: BatchStore,
    operational: Operational,
    table: str,
    kind: str,
    has_index: bool,
) -> None:
    operational.execute("CREATE DOMAIN own AS timestamp; CREATE DOMAIN moment AS own")
    written = T0.replace(tzinfo=None) - 2 * HOUR  # by a server that lives two hours behind
    operational.execute(f"ALTER TABLE {table} ALTER created_at TYPE {kind}")
    operational.execute("INSERT INTO steps (id) VALUES ('step-1')")
    operational.execute(
        "INSERT INTO provider_trace_metadata (id, organization_id) VALUES ('b', 'org-1')"
    )
    operational.execute("INSERT INTO provider_traces (id, organization_id) VALUES ('a', 'org-1')")
    for each in ("provider_traces", "provider_trace_metadata", "steps"):
        operational.execute(f"UPDATE {each} SET created_at = '{written if each == table else T0}'")
    if not has_index:
        operational.execute("DROP INDEX ix_provider_traces_created_at")
    [problem] = [each for each in check_source(source, UNTIL) if each.is_fatal]
    assert problem.message.startswith(f"public.{table}: created_at has no time zone")
    run = SourceOfHours(source, Window.of([T0]))
    for reader in (source, run):
        with pytest.raises(SourceError, match=re.escape(f"{problem.message}; {problem.repair}")):
            extract(reader, store)
    statement = problem.repair.partition(";")[0]
    operational.execute(statement.replace("'UTC'", "'Etc/GMT+2'"))
    assert [each for each in check_source(source, UNTIL) if each.is_fatal] == []
    assert extract(source, store).rows == 2


@pytest.mark.parametrize("kind", ["timestamp", "date"])
def test_a_view_can_give_a_time_its_zone(
    source: Source, operational: Operational, kind: str
) -> None:
    operational.execute("ALTER TABLE steps RENAME TO stored")
    operational.execute(f"ALTER TABLE stored ALTER created_at TYPE {kind}")
    operational.execute("CREATE VIEW steps AS SELECT * FROM stored")
    [problem] = check_source(source, UNTIL)
    assert problem.repair.startswith("have the view return created_at AT TIME ZONE 'UTC' AS ")


@pytest.mark.parametrize(
    ("change_", "message"),
    [
        pytest.param(
            "RENAME plan_type TO plan",
            "public.organization_billing_details has no column plan_type, "
            "read by sql/operational/billing.sql",
            id="a_column_has_another_name",
        ),
        pytest.param(
            "ALTER updated_at TYPE timestamp, ALTER created_at TYPE timestamp",
            "sql/operational/billing.sql does not return valid_from timestamptz",
            id="a_time_has_no_zone",
        ),
    ],
)
def test_a_billing_mapping_that_does_not_fit_is_named(
    source: Source, operational: Operational, change_: str, message: str
) -> None:
    operational.execute(f"ALTER TABLE organization_billing_details {change_}")
    operational.execute(
        "INSERT INTO organization_billing_details (organization_id) VALUES ('org-1'), ('org-2')"
    )
    [problem] = check_source(source, UNTIL)
    assert (problem.message, problem.is_fatal) == (message, True)


def test_billing_versions_that_loads_set_aside_are_counted(
    source: Source, operational: Operational
) -> None:
    operational.execute(
        "ALTER TABLE organization_billing_details "
        "ALTER created_at DROP NOT NULL, ALTER created_at DROP DEFAULT"
    )
    operational.execute(
        "INSERT INTO organization_billing_details (organization_id) VALUES ('org-1'), ('org-2')"
    )
    [problem] = check_source(source, UNTIL)
    assert (problem.message, problem.is_fatal) == (
        (
            "sql/operational/billing.sql returns 2 rows without organization_id or valid_from; "
            "loads leave them aside"
        ),
        False,
    )


def test_a_database_that_is_not_utf8_is_refused(operational: Operational) -> None:
    name = f"latin_{uuid4().hex}"
    operational.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0")
    latin = Operational(re.sub(r"/test_\w+", f"/{name}", operational.url))
    [problem] = check_source(Source(latin.url), UNTIL)
    assert "LATIN1" in problem.message
    assert problem.is_fatal


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("&statement_cache_size=0", 'invalid URI query parameter: "statement_cache_size"'),
        ("&sslmode=yes", 'invalid sslmode value: "yes"'),
    ],
)
def test_a_parameter_that_libpq_does_not_know_is_named(
    operational: Operational, query: str, reason: str
) -> None:
    [problem] = check_source(Source(operational.url + query), UNTIL)
    assert problem.message == f"cannot connect to OPERATIONAL_DATABASE_URL: {reason}"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://reader:s3cret@127.0.0.1:1/letta",
        "postgres//reader:s3cret@127.0.0.1/letta",
        "postgresql://reader:1/2?s3cret@127.0.0.1/letta",
        "postgresql://reader/x?s3cret=1@127.0.0.1",
    ],
)
def test_a_database_that_cannot_be_reached_is_named_without_its_password(url: str) -> None:
    [problem] = check_source(Source(url), UNTIL)
    assert "OPERATIONAL_DATABASE_URL" in problem.message
    assert problem.is_fatal
    assert "s3cret" not in str(problem)
