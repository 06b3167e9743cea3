"""ClickHouse's HTTP interface in front of the embedded engine: real SQL, formats and errors.

A process of its own, since an engine takes one folder per process. Every request has a connection
of its own, as if each one landed on another node of a cluster: nothing of a session survives.

Faults are put in by ``POST /faults`` with a JSON list of ``Fault``; the answer is the SQL of the
statements that the engine has executed since the last such call. ``GET`` answers how many faults
have not happened yet.

With ``--config`` it is a node of the clusters that this configuration of the engine names. What the
engine cannot do without Keeper and without the native protocol is put differently, and nothing else
is: ``ON CLUSTER`` statements are sent to the other nodes over HTTP, ``ReplicatedMergeTree`` becomes
``MergeTree``, ``SYSTEM SYNC REPLICA`` does nothing, and in place of the ``Distributed`` table there
is a view of all shards' tables, the others' read over HTTP by ``url()``.
"""

import argparse
import gzip
import json
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from email import policy
from email.parser import BytesParser
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import chdb
import lz4.frame
import pyarrow as pa

from tests.harness.http_server import FAULTS_PATH, READY, Fault

# What the interface takes for itself; every other parameter is a setting of the statement.
_PARAMETERS = frozenset(
    {"query", "database", "query_id", "wait_end_of_query", "client_protocol_version"}
)

_ROWS_PATH = "/rows"  # of a table: what nodes ask each other for
_ON_CLUSTER = re.compile(r" ON CLUSTER `[^`]+`")
_DISTRIBUTED = re.compile(
    r"CREATE TABLE IF NOT EXISTS (?P<table>\S+) AS (?P<local>\S+)\s+ENGINE = Distributed\(.*"
    r"(?P<comment>COMMENT .*)",
    re.DOTALL,
)
_UPGRADED = re.compile(
    r"^ALTER TABLE (?P<table>\S+(?<!_local)`)\s+(?:ADD|MODIFY) COLUMN"
    r"(?:.*MODIFY (?P<comment>COMMENT .*))?",
    re.DOTALL | re.MULTILINE,
)

# As the server maps errors to statuses; 500 is all others.
_STATUSES = {60: 404, 62: 400, 81: 404, 115: 404, 209: 503, 497: 403, 516: 403}
_INSERT = re.compile(r"\s*INSERT\s+INTO\s.*\sFORMAT\s+\w+\s*", re.DOTALL | re.IGNORECASE)
_DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "lz4": lz4.frame.decompress,
    "identity": bytes,
}
_ROWS_OF_A_CUT_INSERT = 5


class EngineError(Exception):
    """The engine refused a statement; the text is as it writes it."""

    @property
    def code(self) -> int:
        found = re.match(r"Code: (\d+)\.", str(self))
        return int(found[1]) if found else 0


class Server(ThreadingHTTPServer):
    """The interface, its users, its faults, and what it has executed."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], path: str, users: dict[str, str]) -> None:
        super().__init__(address, Handler)
        self.path = path
        self.is_node = "?" in path
        self.users = users  # name: password; a name that begins with "reader" is read-only
        self._engine = open_engine(path)  # keeps the engine between requests
        self._lock = Lock()
        self._faults: list[dict[str, Any]] = []
        self._executed: list[str] = []

    def server_close(self) -> None:
        super().server_close()
        self._engine.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that are gone: tests kill them."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Let a client read why TLS was refused, which a connection closed at once would hide."""
        if isinstance(request, ssl.SSLSocket):
            try:
                request.do_handshake()
            except ssl.SSLError:
                socket.socket.recv(request, 2**16)
                return
        super().finish_request(request, client_address)

    @property
    def faults_left(self) -> int:
        """How many faults have not happened."""
        return sum(fault["times"] for fault in self._faults)

    def put(self, faults: list[dict[str, Any]]) -> list[str]:
        """Replace the faults; return what was executed since the last time."""
        with self._lock:
            self._faults = faults
            executed, self._executed = self._executed, []
        return executed

    def fault_of(self, sql: str) -> Fault | None:
        """Return what goes wrong with this statement, and count it."""
        with self._lock:
            for fault in self._faults:
                if not fault["times"] or not re.search(fault["matching"], sql):
                    continue
                if fault["skip"]:
                    fault["skip"] -= 1
                    continue
                fault["times"] -= 1
                if fault["kind"] == "wake":  # everybody waits
                    time.sleep(fault["seconds"])
                    continue
                return Fault(**fault)
        return None

    def execute(self, request: "Request") -> tuple[bytes, dict[str, str]]:
        """Execute a statement; return its result and the headers that describe it.

        Raises:
            EngineError: the engine refused it.
        """
        with closing(open_engine(self.path)) as connection:
            try:
                for statement in request.preparation():
                    connection.query(statement)
                sql = self._for_this_node(request.sql) if self.is_node else request.sql
                result = connection.query(sql, "TabSeparatedWithNames", params=request.values)
            except RuntimeError as error:
                raise EngineError(str(error)) from None
            body = result.bytes() or b""
            figures = {
                "read_rows": result.rows_read(),
                "written_rows": result.rows_written(),
                "written_bytes": result.bytes_written(),
            }
        if self.is_node and _ON_CLUSTER.search(request.sql):
            for host in self._other_nodes():
                self._send(host, _ON_CLUSTER.sub("", request.sql))
        with self._lock:
            self._executed.append(request.sql)
        headers = {
            "X-ClickHouse-Summary": json.dumps({name: str(n) for name, n in figures.items()})
        }
        if body and not request.has_format:
            # A statement without result answers nothing, not even the names.
            body = body.partition(b"\n")[2]
            headers["X-ClickHouse-Format"] = "TabSeparated"
        return body, headers

    def rows(self, table: str) -> bytes:
        """Return the rows of a table, with the ids of their partitions."""
        return self._query(f"SELECT *, _partition_id FROM {table}", "Native")

    def _query(self, sql: str, form: str) -> bytes:
        with closing(open_engine(self.path)) as connection:
            return bytes(connection.query(sql, form).bytes() or b"")

    def _for_this_node(self, sql: str) -> str:
        sql = _ON_CLUSTER.sub("", sql)
        sql = re.sub(r"ENGINE = ReplicatedMergeTree\([^)]*\)", "ENGINE = MergeTree", sql)
        sql = re.sub(r"^SYSTEM SYNC REPLICA .*", "SELECT 1", sql)
        if found := _DISTRIBUTED.search(sql):
            made = f"CREATE VIEW IF NOT EXISTS {found['table']}"
            return f"{made} AS {self._all_rows(found['local'])} {found['comment']}"
        if found := _UPGRADED.search(sql):  # with the columns that the local tables have by now
            table = found["table"]
            rows = self._all_rows(f"{table.removesuffix('`')}_local`")
            return f"CREATE OR REPLACE VIEW {table} AS {rows} {found['comment'] or ''}"
        return sql

    def _all_rows(self, local: str) -> str:
        """Return the query for the rows of all shards' tables of this name."""
        columns = self._query(f"DESCRIBE TABLE {local}", "TabSeparatedRaw").decode().splitlines()
        structure = ", ".join(" ".join(line.split("\t")[:2]) for line in columns)
        addresses = (
            f"http://{host}:{self.server_port}{_ROWS_PATH}?{urlencode({'table': local})}"
            for host in self._other_nodes()
        )
        others = (
            f" UNION ALL SELECT * FROM url({_quoted(address)}, Native, "
            f"{_quoted(f'{structure}, _partition_id String')})"
            for address in addresses
        )
        return f"SELECT *, _partition_id FROM {local}{''.join(others)}"

    def _other_nodes(self) -> list[str]:
        """Return the hosts of the clusters that answer."""
        hosts = self._query("SELECT DISTINCT host_name FROM system.clusters", "TabSeparated")
        answering = []
        for host in hosts.decode().split():
            with suppress(ConnectionError), socket.create_connection((host, self.server_port)):
                answering.append(host)
        return [host for host in answering if host != self.server_address[0]]

    def _send(self, host: str, sql: str) -> None:
        """Have another node execute a statement."""
        user = {"Authorization": f"Basic {b64encode(b'default:').decode()}"}
        with closing(HTTPConnection(host, self.server_port)) as connection:
            connection.request("POST", "/", sql, user)
            answer = connection.getresponse()
            if answer.status != 200:
                raise EngineError(answer.read().decode())


class Request:
    """A statement with what came along with it."""

    def __init__(self, parameters: dict[str, str], body: bytes, *, is_read_only: bool) -> None:
        self.is_read_only = is_read_only
        self.database = parameters.get("database")
        self.values = {
            name.removeprefix("param_"): value
            for name, value in parameters.items()
            if name.startswith("param_")
        }
        self.settings = {
            name: value
            for name, value in parameters.items()
            if name not in _PARAMETERS and not name.startswith("param_")
        }
        query = parameters.get("query", "")
        self.data = body if _INSERT.fullmatch(query) else None
        self.sql = query if self.data is not None else f"{query}{body.decode()}"
        self.has_format = bool(re.search(r"\bFORMAT\s+\w+\s*;?\s*$", self.sql))

    def preparation(self) -> Iterator[str]:
        """Return the statements that make a connection what the request wants."""
        if self.database:
            yield f"USE {_quoted(self.database, '`')}"
        if self.settings:
            values = (f"{name} = {_quoted(value)}" for name, value in self.settings.items())
            yield f"SET {', '.join(values)}"
        if self.is_read_only:
            yield "SET readonly = 1"

    @contextmanager
    def with_data_in_a_file(self) -> Iterator[None]:
        """Let the engine read what is to be inserted from a file: it has no other way."""
        if self.data is None:
            yield
            return
        with tempfile.NamedTemporaryFile() as file:
            file.write(self.data)
            file.flush()
            before, _, form = self.sql.rpartition(" FORMAT ")
            self.sql = f"{before} FROM INFILE {_quoted(file.name)} FORMAT {form}"
            yield

    def cut(self) -> None:
        """Keep the first rows of what is to be inserted."""
        with pa.ipc.open_file(self.data) as reader:
            rows = reader.read_all()[:_ROWS_OF_A_CUT_INSERT]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_table(rows)
        self.data = sink.getvalue().to_pybytes()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == _ROWS_PATH:
            self._answer(200, self.server.rows(dict(parse_qsl(url.query))["table"]))
            return
        self._answer(200, str(self.server.faults_left).encode())

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        encoding = self.headers.get("Content-Encoding", "identity")
        body = _DECODERS[encoding](self.rfile.read(int(self.headers["Content-Length"])))
        if url.path == FAULTS_PATH:
            self._answer(200, json.dumps(self.server.put(json.loads(body))).encode())
            return
        try:
            user = self._user()
            fields, body = _taken_from_form(self.headers.get("Content-Type", ""), body)
            parameters = dict(parse_qsl(url.query, keep_blank_values=True)) | fields
            if "session_id" in parameters:
                raise _error(372, "Session not found. (SESSION_NOT_FOUND)")
            request = Request(parameters, body, is_read_only=user.startswith("reader"))
            fault = self.server.fault_of(request.sql)
            if fault is None or fault.is_executed or fault.kind in ("break", "cut"):
                if fault and fault.kind == "cut":
                    request.cut()
                with request.with_data_in_a_file():
                    answer, headers = self.server.execute(request)
            if fault is None:
                self._answer(200, answer, headers)
            elif fault.kind == "error":
                raise _error(fault.code, fault.text)
            elif fault.kind == "status":
                self._answer(fault.status, b"<html>the proxy is sorry</html>\n")
            elif fault.kind == "break":
                self._break(answer, fault.text)
            else:
                time.sleep(fault.seconds)
                self._reset()
        except EngineError as error:
            code = {"X-ClickHouse-Exception-Code": str(error.code)}
            self._answer(_STATUSES.get(error.code, 500), f"{error}\n".encode(), code)

    def _user(self) -> str:
        """Return who asks: by name and password, or by the certificate that TLS has checked."""
        scheme, _, encoded = self.headers.get("Authorization", "").partition(" ")
        if scheme == "Basic":
            name, _, password = b64decode(encoded).decode().partition(":")
            is_known = self.server.users.get(name) == password
        else:
            name = self.headers.get("X-ClickHouse-User", "default")
            is_known = (
                self.headers.get("X-ClickHouse-SSL-Certificate-Auth") == "on"
                and isinstance(self.connection, ssl.SSLSocket)
                and bool(self.connection.getpeercert())
            )
        if not is_known:
            raise _error(
                516,
                f"{name}: Authentication failed: password is incorrect, or there is no user with "
                "such name. (AUTHENTICATION_FAILED)",
            )
        return name

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        if "lz4" in self.headers.get("Accept-Encoding", "") and status == 200:
            body = lz4.frame.compress(body)
            self.send_header("Content-Encoding", "lz4")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _break(self, body: bytes, text: str) -> None:
        """Send half of an answer, then an error in the way of servers since 25.11, or nothing."""
        tag = "tagtagtagtagtagt"
        half = body[: len(body) // 2]
        end = f"\r\n__exception__\r\n{tag}\r\n{text}\n{len(text) + 1} {tag}\r\n__exception__\r\n"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("X-ClickHouse-Exception-Tag", tag)
        self.end_headers()
        for chunk in (half, end.encode()) if text else (half,):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        self.close_connection = True  # without the last chunk, which would mean success

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
        self.wfile = open("/dev/null", "wb")  # noqa: SIM115, PTH123 -- what is flushed at the end


def _taken_from_form(content_type: str, body: bytes) -> tuple[dict[str, str], bytes]:
    """Return what came as a form, being too long for an address, and what is left of the body."""
    if not content_type.startswith("multipart/form-data"):
        return {}, body
    message = BytesParser(policy=policy.HTTP).parsebytes(
        f"Content-Type: {content_type}\r\n\r\n".encode() + body
    )
    fields = {
        str(part.get_param("name", header="Content-Disposition")): bytes(
            part.get_payload(decode=True)
        ).decode()
        for part in message.iter_parts()
    }
    return fields, b""


def open_engine(path: str) -> Any:
    connect: Any = chdb.connect  # has no types
    return connect(path)


def _error(code: int, text: str) -> EngineError:
    return EngineError(f"Code: {code}. DB::Exception: {text} (version 26.9.1.1)")


def _quoted(text: str, quote: str = "'") -> str:
    escaped = text.replace("\\", "\\\\").replace(quote, f"\\{quote}")
    return f"{quote}{escaped}{quote}"


def main(arguments: Sequence[str], kind: type[Server] = Server) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="run it against this server")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--config", help="of the engine, with the clusters that this is a node of")
    parser.add_argument("--user", action="append", default=[], help="name:password")
    parser.add_argument("--certificate", help="a PEM file of certificate and key: speak TLS")
    parser.add_argument("--client-ca", help="demand client certificates of this authority")
    given = parser.parse_args(arguments)
    users = dict(user.split(":", 1) for user in given.user) or {"default": ""}
    path = f"{given.folder}?config-file={given.config}" if given.config else given.folder
    with kind((given.host, given.port), path, users) as server:
        if given.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(given.certificate)
            if given.client_ca:
                context.load_verify_locations(given.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        if given.command:
            Thread(target=server.serve_forever, daemon=True).start()
            endpoint = {
                "CLICKHOUSE_TEST_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
                "CLICKHOUSE_TEST_USERNAME": "default",
            }
            done = subprocess.run(given.command, env=os.environ | endpoint, check=False)
            sys.exit(done.returncode)
        sys.stdout.write(f"{READY}{server.server_port}\n")
        sys.stdout.flush()
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
