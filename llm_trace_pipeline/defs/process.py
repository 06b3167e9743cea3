"""Which process executes a run, told so that no later process is taken for it."""

from contextlib import suppress
from pathlib import Path

import psutil

# Of a run: its id, then what ``identity_of`` says. A retry of the run has the tags of the run, and
# so does not take the process of the run for its own.
PROCESS_TAG = "llm_traces/process"

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_FIELDS_TO_START = 19  # of /proc/<pid>/stat, after the name; see proc(5)


def identity_of(pid: int) -> str:
    """Return a text that no other process has, whatever the clock does; '' if the process ended.

    On Linux it has the moment of the start in ticks since the machine was booted. The time of day
    of that moment is computed anew from the clock, and moves with it.
    """
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        if not _BOOT.exists():
            return f"{pid} {process.create_time()}"
        with suppress(FileNotFoundError, ProcessLookupError):
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
            ticks = stat.rpartition(")")[2].split()[_FIELDS_TO_START]
            return f"{pid} {_BOOT.read_text(encoding='ascii').strip()} {ticks}"
    return ""
