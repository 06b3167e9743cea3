"""What a server and the way to it do wrong: each fault at every place, and what a load makes of it.

The server is ClickHouse's engine behind its HTTP interface, with faults put in.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from threading import Thread

import clickhouse_connect
import pytest

from llm_trace_pipeline.clickhouse import client, errors, tables
from llm_trace_pipeline.clickhouse.client import ATTEMPTS, Database, connect, retried
from llm_trace_pipeline.clickhouse.cluster import loader_of
from llm_trace_pipeline.clickhouse.tables import wait_for_statements_on
from llm_trace_pipeline.errors import ClickHouseError, TransientClickHouseError
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.upkeep.preflight_target import check_target
from tests.harness.http_server import SECRET, USERS, Fault, Running, running, settings_of_server
from tests.harness.processes import free_port
from tests.harness.rows import MIDNIGHT, TABLE
from tests.harness.warehouse import Warehouse, left_over_tables, make_database


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("server"), *USERS) as server:
        yield server


def warehouse_of(folder: Path, port: int) -> Warehouse:
    settings = settings_of_server(folder, port)
    make_database(settings)
    return Warehouse(settings)


@pytest.fixture
def warehouse(tmp_path: Path, server: Running) -> Iterator[Warehouse]:
    server.put()
    warehouse = warehouse_of(tmp_path, server.port)
    yield warehouse
    server.put()
    warehouse.close()


def retries(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines that say that something is tried again, and forget them."""
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return lines


# At every statement of a load


@pytest.mark.parametrize(
    ("others", "before", "rows"),
    [
        pytest.param(0, 0, 9, id="an hour into an empty day"),
        pytest.param(1, 9, 12, id="an hour that the day holds"),
        pytest.param(0, 9, 0, id="the day's only hour, which became empty"),
    ],
)
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault("reset"), id="the connection is lost before it"),
        pytest.param(Fault("reset", is_executed=True), id="its answer is lost"),
    ],
)
def test_a_connection_lost_at_any_statement_is_made_good_at_once(
    warehouse: Warehouse,
    server: Running,
    waits: list[float],
    caplog: pytest.LogCaptureFixture,
    fault: Fault,
    others: int,
    before: int,
    rows: int,
) -> None:
    statements = 0
    for statements in count():
        is_fresh = statements == 0 or not (others and before)
        hour = MIDNIGHT + (statements * 24 if is_fresh else 0) * HOUR
        if is_fresh:
            for number in range(others):
                warehouse.load(hour + (number + 1) * HOUR, 10)
            warehouse.load(hour, before)
        manifest = warehouse.publish(hour, rows, 2 + statements)
        server.put(Fault(fault.kind, is_executed=fault.is_executed, skip=statements))
        warehouse.load_batch(manifest)
        has_happened = not server.faults_left()
        server.put()
        warehouse.check()
        lines = retries(caplog)
        assert len(lines) <= 1  # a query is sent again by the driver itself, once
        for line in lines:
            assert re.fullmatch(
                r"ClickHouse: cannot be reached: .*; attempt 1 of 7, again in \d\.\d s", line
            )
        if not has_happened:
            break
    assert statements > 15
    assert len(waits) > 5


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault("reset", "INSERT INTO", is_executed=True), id="whole"),
        pytest.param(Fault("cut", "INSERT INTO"), id="in part"),
        pytest.param(Fault("status", "INSERT INTO", status=504, is_executed=True), id="by a proxy"),
        pytest.param(Fault("status", "INSERT INTO", status=503, is_executed=True), id="by another"),
    ],
)
def test_an_insert_whose_outcome_is_unknown_is_not_sent_again(
    warehouse: Warehouse, server: Running, waits: list[float], fault: Fault
) -> None:
    """Neither by us nor by the driver: the staging table is made anew."""
    warehouse.load(MIDNIGHT, 10)
    manifest = warehouse.publish(MIDNIGHT, 40, 2)
    server.put(fault)
    warehouse.load_batch(manifest)
    written = [
        statement.split(maxsplit=1)[0]
        for statement in server.put()
        if re.match(r"(INSERT INTO|CREATE TABLE|DROP TABLE).*__staging`", statement)
    ]
    first = written.index("INSERT")
    assert written[first - 1 : first + 2] == ["CREATE", "INSERT", "DROP"]
    assert len(waits) == 1
    warehouse.check()


# One by one

OF_THE_ENGINE = {
    "MEMORY_LIMIT_EXCEEDED": (241, "(total) memory limit exceeded: would use 9.00 GiB"),
    "TOO_MANY_PARTS": (252, "Too many parts (3000) in all partitions"),
    "TABLE_IS_READ_ONLY": (242, "Table is in readonly mode (replica path: /r)"),
    "KEEPER_EXCEPTION": (999, "Coordination error: Session expired"),
    "TOO_MANY_SIMULTANEOUS_QUERIES": (202, "Too many simultaneous queries. Maximum: 100"),
}
OF_A_PROXY = (429, 502, 503, 504)
TRANSIENT = [
    pytest.param(lambda matching, c=c, n=n, t=t: error_fault(matching, c, n, t), n, id=n)
    for n, (c, t) in OF_THE_ENGINE.items()
] + [
    pytest.param(
        lambda matching, status=status: Fault("status", matching, status=status),
        f"HTTP status {status}",
        id=f"HTTP {status}",
    )
    for status in OF_A_PROXY
]


def error_fault(matching: str, code: int, name: str, text: str) -> Fault:
    return Fault("error", matching, code=code, text=f"{text}. ({name})")


@pytest.mark.parametrize("matching", ["SELECT", "INSERT INTO", "REPLACE PARTITION"])
@pytest.mark.parametrize(("fault", "said"), TRANSIENT)
def test_what_may_be_gone_in_a_moment_is_tried_again(
    warehouse: Warehouse,
    server: Running,
    waits: list[float],
    caplog: pytest.LogCaptureFixture,
    fault: Callable[[str], Fault],
    said: str,
    matching: str,
) -> None:
    warehouse.load(MIDNIGHT + HOUR, 10)
    warehouse.load(MIDNIGHT, 10)
    manifest = warehouse.publish(MIDNIGHT, 12, 2)
    server.put(fault(matching), fault(matching))
    warehouse.load_batch(manifest)
    warehouse.check()
    assert [said in line and "\n" not in line for line in retries(caplog)] == [True, True]
    assert 0.5 <= waits[0] <= 1 <= waits[1] <= 2


def test_what_does_not_pass_is_given_up_with_the_repair(
    warehouse: Warehouse,
    server: Running,
    waits: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    warehouse.load(MIDNIGHT, 10)
    before = warehouse.rows()
    manifest = warehouse.publish(MIDNIGHT, 12, 2)
    code, text = OF_THE_ENGINE["TOO_MANY_PARTS"]
    [fault] = [error_fault("INSERT", code, "TOO_MANY_PARTS", text)]
    server.put(*[fault] * 100)
    with pytest.raises(
        ClickHouseError,
        match=rf"^ClickHouse: .*code: 252.*Too many parts.* \({ATTEMPTS} times\); let its merges",
    ) as caught:
        warehouse.load_batch(manifest)
    server.put()
    assert "\n" not in str(caught.value)
    assert len(retries(caplog)) == len(waits) == ATTEMPTS - 1
    assert sum(waits) < 64
    assert warehouse.rows() == before
    warehouse.load_batch(manifest)
    warehouse.check()


def test_attempts_that_take_long_are_not_all_made(
    monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    clock = iter(range(0, 10_000, 400))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))

    def fail() -> None:
        raise TransientClickHouseError("lost")

    with pytest.raises(ClickHouseError, match=r"^lost \(3 times\)$"):
        retried(fail)
    assert len(waits) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(
            "Code: 241. DB::Exception: Memory limit exceeded. (MEMORY_LIMIT_EXCEEDED)",
            "MEMORY_LIMIT_EXCEEDED",
            id="with an error",
        ),
        pytest.param("", "connection closed by server", id="without a word"),
    ],
)
def test_an_answer_that_breaks_off_is_read_again(
    warehouse: Warehouse,
    server: Running,
    waits: list[float],
    caplog: pytest.LogCaptureFixture,
    text: str,
    said: str,
) -> None:
    warehouse.load(MIDNIGHT, 50)
    server.put(Fault("break", r"SELECT \*", text=text))
    warehouse.check()
    assert len(waits) == 1
    assert said in retries(caplog)[0]


def test_a_statement_that_does_not_answer_in_time_is_made_good(
    warehouse: Warehouse,
    server: Running,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for module in (client, errors):
        monkeypatch.setattr(module, "STATEMENT_SECONDS", 1)
    warehouse.load(MIDNIGHT + HOUR, 10)
    warehouse.load(MIDNIGHT, 10)
    warehouse.reopen()  # with that time
    manifest = warehouse.publish(MIDNIGHT, 12, 2)
    server.put(Fault("stall", "RENAME TABLE", is_executed=True, seconds=2))
    warehouse.load_batch(manifest)
    warehouse.check()
    assert [line.split(";")[0] for line in retries(caplog)] == ["ClickHouse: no answer within 1 s"]


def test_statements_may_take_half_an_hour(warehouse: Warehouse) -> None:
    timeout = warehouse.database._client.timeout  # type: ignore[attr-defined]  # noqa: SLF001 -- of the HTTP client
    assert timeout.read_timeout == errors.STATEMENT_SECONDS == 1800


def test_a_server_that_is_starting_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    settings = settings_of_server(tmp_path, port)
    with ExitStack() as stack:

        def start(_: float) -> None:
            monkeypatch.undo()
            stack.enter_context(running(tmp_path / "engine", "--port", str(port), *USERS))

        monkeypatch.setattr(time, "sleep", start)
        with connect(settings) as database:
            assert database.value("SELECT 1") == 1
    [line] = retries(caplog)
    assert line.startswith("ClickHouse: cannot be reached: [Errno 111] Connection refused; attempt")


@pytest.mark.parametrize("statement", ["INSERT INTO", "RENAME TABLE", "REPLACE PARTITION"])
def test_a_server_that_is_killed_and_started_again_in_the_middle_of_a_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    port = free_port()
    with ExitStack() as stack:
        arguments = (tmp_path / "engine", "--port", str(port), *USERS)
        server = stack.enter_context(running(*arguments))
        warehouse = warehouse_of(tmp_path, port)
        for number in range(3):
            warehouse.load(MIDNIGHT + number * HOUR, 10)
        manifest = warehouse.publish(MIDNIGHT, 12, 2)
        server.put(Fault("reset", statement, is_executed=True))

        def restart(_: float) -> None:
            monkeypatch.undo()
            server.process.kill()
            server.process.wait()
            stack.enter_context(running(*arguments))

        monkeypatch.setattr(time, "sleep", restart)
        warehouse.load_batch(manifest)
        warehouse.check()
        warehouse.close()


def test_no_session_is_needed(
    warehouse: Warehouse, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every statement above may reach another node; the server knows no session."""
    warehouse.load(MIDNIGHT, 10)
    get_client = clickhouse_connect.get_client
    monkeypatch.setattr(
        clickhouse_connect,
        "get_client",
        lambda **options: get_client(**options | {"autogenerate_session_id": True}),
    )
    with (
        pytest.raises(ClickHouseError, match="SESSION_NOT_FOUND"),
        connect(warehouse.settings),
    ):
        pass
    assert server.put()


def test_a_statement_of_an_earlier_load_is_waited_for(
    warehouse: Warehouse, server: Running
) -> None:
    """On a server it runs on, although its load is gone."""
    warehouse.load(MIDNIGHT, 10)
    staging = warehouse.database.qualified(f"{TABLE}__staging")
    warehouse.database.execute(f"CREATE TABLE {staging} AS {TABLE}")
    left = f"INSERT INTO {staging} SELECT * FROM {TABLE} WHERE sleepEachRow(0.1) = 0"

    def run() -> None:
        with connect(warehouse.settings) as earlier:
            earlier.execute(left)

    earlier = Thread(target=run)
    earlier.start()
    while not warehouse.database.rows(
        "SELECT 1 FROM system.processes WHERE startsWith(query, {sql:String})", {"sql": left}
    ):
        pass
    server.put()
    warehouse.load(MIDNIGHT, 12, 2)
    earlier.join()
    executed = server.put()
    [dropped, *_] = [number for number, sql in enumerate(executed) if sql.startswith("DROP TABLE")]
    assert executed.index(left) < dropped
    warehouse.check()


def test_an_earlier_statement_that_does_not_end_is_named(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "STATEMENT_SECONDS", -1)
    monkeypatch.setattr(Database, "rows", lambda *_: [{"query_id": "q-1"}])
    with pytest.raises(ClickHouseError, match=r"; wait, or KILL QUERY .* IN \('q-1'\)$"):
        wait_for_statements_on(warehouse.database, TABLE)


def test_a_repeatable_statement_is_repeated(
    warehouse: Warehouse, server: Running, waits: list[float]
) -> None:
    warehouse.load(MIDNIGHT, 10)
    warehouse.load(MIDNIGHT + 24 * HOUR, 10)
    server.put(Fault("reset", "DROP PARTITION", is_executed=True, times=2))
    warehouse.database.execute_until_done(
        f"ALTER TABLE {TABLE} DROP PARTITION ID {{id:String}}", {"id": f"{MIDNIGHT:%Y%m%d}"}
    )
    assert len(waits) == 2
    del warehouse.expected[MIDNIGHT]
    warehouse.check()


# What no attempt changes


def test_a_wrong_password_is_said_at_once(
    tmp_path: Path, server: Running, waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_of_server(tmp_path, server.port, CLICKHOUSE_PASSWORD=f"not {SECRET}")
    with (
        pytest.raises(
            ClickHouseError,
            match=r"^ClickHouse: .*loader: Authentication failed.*; set CLICKHOUSE_USERNAME and ",
        ) as caught,
        connect(settings),
    ):
        pass
    assert SECRET not in f"{caught.value} {caplog.text}"
    assert "\n" not in str(caught.value)
    assert waits == []
    [problem] = check_target(settings)
    assert problem.is_fatal
    assert "CLICKHOUSE_PASSWORD" in problem.repair


def test_a_read_only_user_is_said_at_once(
    tmp_path: Path, warehouse: Warehouse, server: Running, waits: list[float]
) -> None:
    warehouse.publish(MIDNIGHT, 10)
    reader = settings_of_server(
        tmp_path,
        server.port,
        CLICKHOUSE_USERNAME="reader",
        CLICKHOUSE_DATABASE=warehouse.settings.clickhouse_database,
    )
    with (
        connect(reader) as database,
        pytest.raises(ClickHouseError, match=r"readonly; let CLICKHOUSE_USERNAME be a user"),
    ):
        loader_of(database, warehouse.store).load([MIDNIGHT])
    assert waits == []
    assert left_over_tables(warehouse.database) == []
