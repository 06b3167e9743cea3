"""The demo's embedded server: who keeps it running, and what an interrupted start leaves behind."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adbc_driver_postgresql import dbapi

from llm_trace_pipeline.demo.postgres import embedded_postgres, leave_postgres
from tests.harness.processes import wait_for

HOLD = """
import sys
from pathlib import Path
from llm_trace_pipeline.demo.postgres import embedded_postgres
print(embedded_postgres(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    # Not tmp_path: its parents are closed to the account that the server runs as under root.
    folder = Path(tempfile.mkdtemp(prefix="llm-traces-"))
    yield folder
    leave_postgres(folder)
    shutil.rmtree(folder)


def value(url: str, statement: str) -> Any:
    with dbapi.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        [row] = cursor.fetchall()
        return row[0]


def answers(url: str) -> bool:
    try:
        dbapi.connect(url).close()
    except dbapi.OperationalError:
        return False
    return True


def test_the_server_outlives_a_killed_process_and_ends_with_the_last(data_dir: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(data_dir)]
    holders = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    urls = {holder.stdout.readline().strip() for holder in holders if holder.stdout}
    (url,) = urls
    started = value(url, "SELECT pg_postmaster_start_time()")
    holders[0].send_signal(signal.SIGKILL)
    holders[0].wait()
    holders[1].communicate()
    assert value(url, "SELECT pg_postmaster_start_time()") == started
    holders[2].communicate()
    assert not answers(url)


def test_a_start_that_was_killed_is_made_good(data_dir: Path) -> None:
    half_made = data_dir / "postgres.new"
    half_made.mkdir()
    (half_made / "PG_VERSION").write_text("18\n")
    assert value(embedded_postgres(data_dir), "SELECT 1") == 1
    assert not half_made.exists()


def test_a_killed_server_starts_again(data_dir: Path) -> None:
    url = embedded_postgres(data_dir)
    with dbapi.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE kept (it int)")
    process = int((data_dir / "postgres/postmaster.pid").read_text().splitlines()[0])
    os.kill(process, signal.SIGKILL)
    wait_for(lambda: not answers(url), "the server is gone")
    assert value(embedded_postgres(data_dir), "SELECT count(*) FROM kept") == 0
