"""The embedded engine: another process that holds it, and what keeps it from starting."""

import subprocess
import sys
from pathlib import Path

import clickhouse_connect
import pytest
from clickhouse_connect.driver.exceptions import ClickHouseError as DriverError

from llm_trace_pipeline.clickhouse import embedded
from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.errors import ClickHouseError
from tests.harness.rows import MIDNIGHT, TABLE
from tests.harness.warehouse import Warehouse


def definition_of(warehouse: Warehouse, table: str) -> Path:
    """Return the file that defines a table, of an engine that is closed."""
    [path] = (warehouse.settings.state_dir / "clickhouse" / "store").rglob(f"{table}.sql")
    return path


def test_a_staging_table_without_definition_is_removed(warehouse: Warehouse) -> None:
    warehouse.load(MIDNIGHT, 10)
    warehouse.close()
    own = definition_of(warehouse, TABLE)
    staging = own.with_name(f"{TABLE}__staging.sql")
    staging.write_bytes(b"")
    warehouse.reopen()
    assert not staging.exists()
    warehouse.load(MIDNIGHT, 20, 2)
    warehouse.check()


@pytest.mark.parametrize("content", [b"", b"ATTACH TABLE llm_traces ("])
def test_another_definition_that_cannot_be_read_is_named(
    warehouse: Warehouse, content: bytes
) -> None:
    warehouse.load(MIDNIGHT, 10)
    warehouse.close()
    own = definition_of(warehouse, TABLE)
    text = own.read_bytes()
    own.write_bytes(content)
    with (
        pytest.raises(ClickHouseError, match=rf"does not start: Code: 62.*{TABLE}\.sql.*restore"),
        connect(warehouse.settings),
    ):
        pass
    own.write_bytes(text)
    warehouse.reopen()
    warehouse.check()


CONNECT = """
import sys
from llm_trace_pipeline.clickhouse.embedded import embedded_client
from llm_trace_pipeline.errors import ClickHouseError
try:
    embedded_client(sys.argv[1])
except ClickHouseError as error:
    print(error)
"""


def test_a_time_zone_that_the_engine_does_not_know_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST")  # a rule in place of a name, as POSIX allows
    attempt = subprocess.run(
        [sys.executable, "-c", CONNECT, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert attempt.stdout == (
        f"the embedded engine under {tmp_path} does not start: it knows no time zone CET-1CEST, "
        "which TZ names; set TZ to a name such as Europe/Berlin, or unset it\n"
    )


def test_an_engine_that_refuses_this_process_alone_is_not_said_to_be_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**_: object) -> None:
        raise DriverError("Code: 36. another folder is open")

    monkeypatch.setattr(embedded, "WAIT_SECONDS", 0)
    monkeypatch.setattr(clickhouse_connect, "get_client", refused)
    with pytest.raises(ClickHouseError, match="does not start: Code: 36"):
        embedded.embedded_client(str(tmp_path))


HOLD = """
import sys, clickhouse_connect
client = clickhouse_connect.get_client(interface="chdb", path=sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_an_engine_that_another_process_holds_is_said_to_be_held(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "WAIT_SECONDS", 0.0)
    warehouse.close()
    path = str(warehouse.settings.state_dir / "clickhouse")
    command = [sys.executable, "-c", HOLD, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(ClickHouseError, match="is held by another process"):
            warehouse.reopen()
        child.communicate()
    warehouse.reopen()
