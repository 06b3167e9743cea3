"""A ClickHouse server in a process of its own, and the faults that are put into it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from http.client import HTTPConnection
from pathlib import Path
from uuid import uuid4

from llm_trace_pipeline.settings import Settings

FAULTS_PATH = "/faults"
READY = "ready on port "
SECRET = "s3cr3t-of-the-test"  # noqa: S105 -- searched for in what is logged
USERS = ("--user", f"loader:{SECRET}", "--user", f"reader:{SECRET}", "--user", "default:")


@dataclass(frozen=True)
class Fault:
    """What goes wrong with the statements that a pattern is found in.

    Kinds: ``status`` (a proxy's answer), ``error`` (the engine's), ``reset`` (of the connection),
    ``stall`` (no answer for so many seconds), ``break`` (the answer ends in the middle, with the
    error's text if there is one), ``cut`` (an insert ends after some of its rows, and the
    connection is reset), ``wake`` (the answer takes so many seconds).
    """

    kind: str
    matching: str = ""
    times: int = 1
    skip: int = 0  # so many such statements are left alone first
    is_executed: bool = False  # whether the statement takes effect although its answer is lost
    status: int = 503
    code: int = 0
    text: str = ""  # such as "Memory limit exceeded. (MEMORY_LIMIT_EXCEEDED)"
    seconds: float = 0


@dataclass(frozen=True)
class Running:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    port: int
    host: str = "127.0.0.1"

    def put(self, *faults: Fault) -> list[str]:
        """Replace the faults; return what was executed since the last time."""
        with closing(HTTPConnection(self.host, self.port)) as connection:
            connection.request("POST", FAULTS_PATH, json.dumps([asdict(fault) for fault in faults]))
            executed: list[str] = json.loads(connection.getresponse().read())
        return executed

    def faults_left(self) -> int:
        """Return how many faults have not happened."""
        with closing(HTTPConnection(self.host, self.port)) as connection:
            connection.request("GET", FAULTS_PATH)
            return int(connection.getresponse().read())


@contextmanager
def running(
    folder: Path, *arguments: str, host: str = "127.0.0.1", kind: str = "http_engine"
) -> Iterator[Running]:
    """Run a server on this folder until the end of the block.

    Its kind is the module that is it: ``http_engine``, or ``service`` for shared storage.
    """
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            f"tests.harness.{kind}",
            "--host",
            host,
            *arguments,
            str(folder),
        ],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith(READY), "the server ended; its error is above"
        yield Running(process, int(line.removeprefix(READY)), host)
    finally:
        process.kill()
        process.wait()


def settings_of_server(folder: Path, port: int, **values: str) -> Settings:
    """Return the settings of a deployment with a database of its own on a server."""
    return Settings.from_environment(
        {
            "LLM_TRACES_STATE": str(folder),
            "CLICKHOUSE_ENDPOINT": f"http://127.0.0.1:{port}",
            "CLICKHOUSE_USERNAME": "loader",
            "CLICKHOUSE_PASSWORD": SECRET,
            "CLICKHOUSE_DATABASE": f"faults_{uuid4().hex}",
            **values,
        }
    )
