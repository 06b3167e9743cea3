"""Other processes: the ports that they take, and waiting for them without a timed assertion."""

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
PATIENCE_SECONDS = 120.0  # a bound against hanging, on a machine that runs other tests too


def wait_for(claim: Callable[[], T], what: str) -> T:
    """Return what the claim says once it is true.

    Raises:
        AssertionError: it does not become true.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (result := claim()):
        assert time.monotonic() < deadline, f"not in {PATIENCE_SECONDS:.0f} s: {what}"
        time.sleep(0.1)  # what is claimed happens in other processes
    return result


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes_of(state: Path) -> list[str]:
    """Return the command lines of all processes that have this state folder."""
    mark = f"LLM_TRACES_STATE={state}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_text().replace("\0", " "))
    return found
