"""The preflight of the target: what is broken is named, and the repair it prints repairs it."""

import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from llm_trace_pipeline.clickhouse.client import Database, connect
from llm_trace_pipeline.clickhouse.tables import define_table
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.sql import render
from llm_trace_pipeline.upkeep import preflight_target
from llm_trace_pipeline.upkeep.preflight_target import check_target
from tests.harness.warehouse import change

TABLE = "`default`.`llm_traces`"


@pytest.fixture
def target(tmp_path: Path) -> Settings:
    """Settings of a ClickHouse of its own."""
    return Settings.from_environment({"LLM_TRACES_STATE": str(tmp_path)})


@pytest.fixture
def table(target: Settings) -> str:
    """The table, as the pipeline makes it."""
    with connect(target) as database:
        define_table(database, "llm_traces")
    return TABLE


def make_table(settings: Settings, pattern: str, replacement: str) -> None:
    """Make the target with another definition."""
    text = render("clickhouse/llm_traces.sql", table=TABLE, engine="MergeTree")
    changed = re.sub(pattern, replacement, text)
    assert changed != text
    change(settings, changed)


def test_a_table_from_before_billing_is_fine(target: Settings, table: str) -> None:
    added = "billing_plan_type billing_cost_source billing_customer_id billing_match payload_hash"
    change(
        target,
        *(f"ALTER TABLE {table} DROP COLUMN {name}" for name in added.split()),
        f"ALTER TABLE {table} MODIFY COMMENT 'Made by somebody else.'",
    )
    assert check_target(target) == []


def test_missing_columns_come_with_the_statement_that_adds_them(
    target: Settings, table: str
) -> None:
    change(
        target,
        f"ALTER TABLE {table} DROP COLUMN is_byok, DROP COLUMN cached_input_tokens",
    )
    [problem] = check_target(target)
    assert problem.message.endswith("has no column is_byok, cached_input_tokens")
    assert problem.is_fatal
    change(target, problem.repair)
    assert check_target(target) == []
    with connect(target) as database:
        assert database.rows(
            "SELECT name, type FROM system.columns WHERE table = 'llm_traces' "
            "AND position IN (12, 18) ORDER BY position"
        ) == [
            {"name": "is_byok", "type": "UInt8"},
            {"name": "cached_input_tokens", "type": "Nullable(UInt64)"},
        ]


@pytest.mark.parametrize(
    ("column", "found", "wanted", "lost", "is_fatal"),
    [
        ("latency_ms", "UInt32", "UInt64", "more than 4294967295", False),
        ("prompt_tokens", "Nullable(Int32)", "Nullable(UInt64)", "more than 2147483647", False),
        ("model", "FixedString(64)", "String", "a text of other than 64 octets", True),
        ("reasoning_tokens", "UInt64", "Nullable(UInt64)", "NULL", True),
        ("total_tokens", "Float64", "UInt64", "any value", True),
    ],
)
def test_a_narrower_type_comes_with_the_statement_that_mends_it(
    target: Settings, column: str, found: str, wanted: str, lost: str, *, is_fatal: bool
) -> None:
    make_table(target, rf"(?m)(?<=^    {column} )\S+", found)
    [problem] = check_target(target)
    assert problem.message == (
        f"{TABLE}: column {column} is {found}, not {wanted}: "
        f"an hour with {lost} there cannot be loaded"
    )
    assert problem.is_fatal == is_fatal
    change(target, problem.repair)
    assert check_target(target) == []


@pytest.mark.parametrize(
    ("column", "found"),
    [
        ("model", "String"),
        ("agent_id", "LowCardinality(String)"),
        ("agent_tags", "Array(LowCardinality(String))"),
        ("error_type", "LowCardinality(Nullable(String))"),
        ("is_error", "Nullable(UInt8)"),
        ("created_at", "DateTime64(6, 'Asia/Tokyo')"),
        ("created_at", "DateTime64(6)"),
        ("created_at", "DateTime64(9, 'UTC')"),
        ("is_byok", "Bool"),
        ("total_tokens", "UInt128"),
    ],
)
def test_a_type_that_holds_the_same_values_is_fine(
    target: Settings, column: str, found: str
) -> None:
    make_table(target, rf"(?m)(?<=^    {column} )(DateTime64\(.*?\)|\S+)", found)
    assert check_target(target) == []


@pytest.mark.parametrize(
    ("column", "found", "wanted", "consequence"),
    [
        (
            "created_at",
            "DateTime64(3, 'UTC')",
            "DateTime64(6, 'UTC')",
            "times are rounded down to 0.001 s, and compared so",
        ),
        (
            "created_at",
            "DateTime",
            "DateTime64(6, 'UTC')",
            "times are rounded down to 1 s, and compared so",
        ),
        ("id", "UUID", "String", "an hour with what is no UUID there cannot be loaded"),
    ],
)
def test_a_narrower_type_in_the_sort_key_takes_a_new_table(
    target: Settings, column: str, found: str, wanted: str, consequence: str
) -> None:
    make_table(target, rf"(?m)(?<=^    {column} )(DateTime64\(.*?\)|\S+)", found)
    [problem] = check_target(target)
    assert problem.message == f"{TABLE}: column {column} is {found}, not {wanted}: {consequence}"
    assert not problem.is_fatal
    assert "no ALTER changes the column" in problem.repair
    change(target, problem.repair.partition(";")[0])
    assert check_target(target) == []


def test_times_outside_of_a_key_come_with_the_statement_that_mends_them(target: Settings) -> None:
    make_table(
        target,
        r"(?s)DateTime64\(6, 'UTC'\)(.*)toDate\(created_at\)(.*)agent_id, created_at, ",
        r"DateTime64(3, 'UTC')\1tuple()\2agent_id, ",
    )
    narrower = [each for each in check_target(target) if "created_at is" in each.message]
    change(target, *(problem.repair for problem in narrower))
    assert len(narrower) == 1
    assert not any("created_at is" in problem.message for problem in check_target(target))


@pytest.mark.parametrize(
    ("key", "is_refused"), [("organization_id, created_at", True), ("created_at, id", False)]
)
def test_an_engine_that_merges_calls_into_one_is_refused(
    target: Settings, key: str, *, is_refused: bool
) -> None:
    make_table(
        target,
        r"MergeTree\nPARTITION BY toDate\(created_at\)\nORDER BY .*",
        f"ReplacingMergeTree\nPARTITION BY toDate(created_at)\nORDER BY ({key})",
    )
    told = [each for each in check_target(target) if "merges make one row" in each.message]
    assert [problem.is_fatal for problem in told] == [True] * is_refused


def test_a_ttl_is_told_with_the_statement_that_removes_it(target: Settings) -> None:
    ttl = "TTL toDateTime(created_at) + toIntervalDay(30)"
    make_table(target, r"(?m)^SETTINGS", f"{ttl} SETTINGS")
    [problem] = check_target(target)
    assert problem.message.startswith(f"{TABLE} has the {ttl}: hours that it has taken rows")
    assert not problem.is_fatal
    change(target, problem.repair.partition(";")[0])
    assert check_target(target) == []


def test_a_ttl_that_only_moves_parts_is_no_problem(target: Settings) -> None:
    ttl = "TTL toDateTime(created_at) + toIntervalDay(30) TO DISK 'default'"
    make_table(target, r"(?m)^SETTINGS", f"{ttl} SETTINGS")
    assert check_target(target) == []


def test_materialized_views_that_wait_for_inserts_are_named(target: Settings, table: str) -> None:
    change(
        target,
        "CREATE TABLE counts (model String) ENGINE = MergeTree ORDER BY model",
        f"CREATE MATERIALIZED VIEW fed TO counts AS SELECT model FROM {table}",
        f"CREATE VIEW plain AS SELECT model FROM {table}",
    )
    [problem] = check_target(target)
    assert problem.message.startswith(
        "the materialized view default.fed sees nothing of what is loaded into llm_traces"
    )
    assert not problem.is_fatal


def test_a_journal_that_cannot_be_replayed_is_named(target: Settings, table: str) -> None:
    change(
        target,
        f"CREATE TABLE llm_traces__ready AS {table}",
        f"CREATE TABLE llm_traces__cut_20260301 AS {table}",
    )
    [cut] = check_target(target)
    change(target, f"ALTER TABLE {table} ADD COLUMN note String")
    [ready, _] = check_target(target)
    for problem, name in ((cut, "cut_20260301"), (ready, "ready")):
        said = f"llm_traces__{name} is of a swap that was cut before {TABLE} was changed"
        assert problem.message.startswith(said)
        assert not problem.is_fatal


def test_another_partition_key_is_kept_and_its_cost_is_told(target: Settings) -> None:
    make_table(target, r"toDate\(", "toYYYYMM(")
    [problem] = check_target(target)
    assert "partition key (toYYYYMM(created_at)), not (toDate(created_at))" in problem.message
    assert "every hour loaded clones and verifies its partition" in problem.message
    assert not problem.is_fatal


def test_another_sorting_key_is_kept_and_its_cost_is_told(target: Settings) -> None:
    make_table(target, r"ORDER BY \(organization_id, ", "ORDER BY (")
    [problem] = check_target(target)
    assert "sorting key (agent_id, created_at, id), not (organization_id, a" in problem.message
    assert not problem.is_fatal


@pytest.mark.parametrize("codec", ["", " CODEC(ZSTD(1))"])
def test_payloads_in_small_blocks_come_with_the_statement_that_packs_them(
    target: Settings, codec: str
) -> None:
    make_table(target, r" CODEC\(ZSTD\(3\)\)\s+SETTINGS \(.*?\)", codec)
    [problem] = check_target(target)
    assert f"{TABLE} packs payloads, 0.0 GB, in small blocks" in problem.message
    assert not problem.is_fatal
    change(target, problem.repair.partition(";")[0])
    assert check_target(target) == []
    with connect(target) as database:
        definition = str(database.value(f"SHOW CREATE TABLE {TABLE}"))
    assert definition.count("max_compress_block_size = 4194304") == 2


def test_a_table_that_is_no_mergetree_is_refused(target: Settings, table: str) -> None:
    change(
        target,
        f"RENAME TABLE {table} TO default.stored",
        f"CREATE VIEW {table} AS SELECT * FROM default.stored",
    )
    [problem] = check_target(target)
    assert "is a View, not a MergeTree" in problem.message
    assert problem.is_fatal


def test_a_table_that_forbids_hours_to_be_replaced_comes_with_the_repair(
    target: Settings, table: str
) -> None:
    mode = "lightweight_mutation_projection_mode"
    change(target, f"ALTER TABLE {table} MODIFY SETTING {mode} = 'throw'")
    [problem] = check_target(target)
    assert not problem.is_fatal
    change(target, problem.repair)
    assert check_target(target) == []


@pytest.mark.parametrize(
    ("version", "is_warned_of"), [((26, 6), False), ((26, 5), True), ((25, 12), True)]
)
def test_an_old_clickhouse_is_warned_of(
    target: Settings,
    monkeypatch: pytest.MonkeyPatch,
    version: tuple[int, int],
    is_warned_of: bool,
) -> None:
    monkeypatch.setattr(Database, "version", version)
    problems = check_target(target)
    assert ["107605" in problem.message for problem in problems] == [True] * is_warned_of
    assert not any(problem.is_fatal for problem in problems)


def test_a_missing_grant_comes_with_the_statement_that_gives_it(
    target: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The embedded user has every privilege that a load needs; this is one that it lacks.
    monkeypatch.setattr(
        preflight_target, "needed_grants", lambda _: ["SELECT ON *.*", "ROLE ADMIN ON *.*"]
    )
    [problem] = check_target(target)
    assert problem.is_fatal
    assert problem.repair == "GRANT ROLE ADMIN ON *.* TO `default`;"


def test_a_database_of_another_name_needs_to_be_made(target: Settings) -> None:
    assert check_target(target.model_copy(update={"clickhouse_database": "tra`ces"})) == []


class Refusing(BaseHTTPRequestHandler):
    """A ClickHouse server that knows nobody."""

    def do_POST(self) -> None:
        body = b"Code: 516. DB::Exception: u: Authentication failed. (AUTHENTICATION_FAILED)"
        self.send_response(403)
        self.send_header("X-ClickHouse-Exception-Code", "516")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST  # noqa: N815 -- the base class's name

    def log_message(self, *_: Any) -> None:
        pass


def test_a_wrong_password_and_a_wrong_port_of_clickhouse_are_told_apart(
    target: Settings,
) -> None:
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        [wrong_password], [wrong_port] = (
            check_target(
                target.model_copy(
                    update={
                        "clickhouse_endpoint": f"http://127.0.0.1:{port}",
                        "clickhouse_password": SecretStr("s3cret"),
                    }
                )
            )
            for port in (server.server_port, 1)
        )
        server.shutdown()
    answers = [wrong_password, wrong_port]
    assert all(problem.is_fatal and "s3cret" not in str(problem) for problem in answers)
    assert ["CLICKHOUSE_PASSWORD" in problem.repair for problem in answers] == [True, False]
    assert ["CLICKHOUSE_ENDPOINT" in problem.repair for problem in answers] == [False, True]
