"""The embedded engine: it is waited for, and what keeps it from starting is said."""

import fcntl
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError as DriverError

from llm_trace_pipeline.errors import ClickHouseError

WAIT_SECONDS = 120.0

# The engine gives freed memory back soon: 50,000 rows of 7 KB peak at 0.86 GB and take 1.1 s. Given
# back at once it is 0.70 GB and 1.4 s, a second later 0.99 GB and 1.1 s.
_ALLOCATOR = "dirty_decay_ms:200"
# What an upsert makes anew where it is missing; see upsert.py.
_MADE_ANEW = ("__staging.sql", "__clone.sql")
_START = "import clickhouse_connect as c, sys; c.get_client(interface='chdb', path=sys.argv[1])"

_ZONE_UNKNOWN = re.compile(r"Cannot load time zone (.+)")

_log = logging.getLogger(__name__)


def embedded_client(path: str) -> Client:
    """Open the engine under a path, which only one process at a time can hold.

    Raises:
        ClickHouseError: another process keeps it, or it does not start.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # Read when the engine's library is loaded, which the first client does.
    os.environ.setdefault("JE_MALLOC_CONF", _ALLOCATOR)
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return clickhouse_connect.get_client(interface="chdb", path=path, tz_mode="aware")
        except ImportError as error:
            if zone := _ZONE_UNKNOWN.search(str(error.__context__)):
                raise ClickHouseError(
                    f"the embedded engine under {path} does not start: it knows no time zone "
                    f"{zone[1]}, which TZ names",
                    "set TZ to a name such as Europe/Berlin, or unset it",
                ) from None
            raise ClickHouseError(
                "CLICKHOUSE_ENDPOINT: the embedded engine needs the extra: "
                "pip install 'llm-trace-pipeline[embedded]'"
            ) from None
        except DriverError as error:
            is_held = _is_held(path)
            if not is_held:
                _make_startable(path)
            if time.monotonic() > deadline:
                if not is_held:  # it starts elsewhere: what this process asks of it is refused
                    raise ClickHouseError(
                        f"the embedded engine under {path} does not start: {error}"
                    ) from None
                raise ClickHouseError(
                    f"the embedded engine under {path} is held by another process for over "
                    f"{WAIT_SECONDS:.0f} s; only one at a time can use it: wait for the "
                    "running load to end, or stop the process that holds it"
                ) from None
        time.sleep(0.2)  # the lock tells nobody when it is free


def _is_held(path: str) -> bool:
    """Whether a process holds the engine's lock."""
    try:
        with (Path(path) / "status").open("rb") as status:
            fcntl.flock(status, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or no right to read it: that is no lock
        return False
    return False


def _make_startable(path: str) -> None:
    """Find out why the engine does not start, and remove what an interrupted upsert left.

    A disk that was full when a table was made keeps its empty definition, which no start gets past.

    Raises:
        ClickHouseError: something else is in the way.
    """
    # The engine writes its reason to the standard error output of its process alone.
    attempt = subprocess.run(  # noqa: S603 -- this interpreter
        [sys.executable, "-c", _START, path], capture_output=True, text=True, check=False
    )
    if attempt.returncode == 0:
        return
    found = re.search(r"Code: \d+\. DB::Exception: .*", attempt.stderr)
    reason = found[0] if found else attempt.stderr.strip().rpartition("\n")[2]
    named = re.search(r"\(in file (.+?\.sql)\)", reason)
    definition = Path(named[1]) if named else None
    if definition and not definition.stat().st_size and definition.name.endswith(_MADE_ANEW):
        _log.warning("%s is empty, as a full disk leaves it; it is removed", definition)
        definition.unlink()
        return
    raise ClickHouseError(
        f"the embedded engine under {path} does not start: {reason}",
        "free space if the disk is full; where the reason names a file, put it aside or restore it "
        "from a backup. The batches rebuild the tables: llm-traces restore",
    )
