"""The driver's errors, told apart once: what is worth another attempt, and what the operator does.

Everything that talks to ClickHouse runs within ``translated``. Three sources of errors reach it:

- the engine, which names its errors, such as ``TOO_MANY_PARTS``;
- a proxy, which answers by an HTTP status alone;
- the transport: no connection, no TLS, no answer in time.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from clickhouse_connect.driver.exceptions import ClickHouseError as DriverError
from clickhouse_connect.driver.exceptions import StreamFailureError
from urllib3.exceptions import HTTPError, MaxRetryError, ReadTimeoutError, SSLError

from llm_trace_pipeline.errors import ClickHouseError, TransientClickHouseError

# How long one statement may take. A peer that is gone is noticed by TCP's keep-alive long before.
STATEMENT_SECONDS = 1800

_TRANSIENT = frozenset(
    {
        *("MEMORY_LIMIT_EXCEEDED", "CANNOT_ALLOCATE_MEMORY", "TOO_MANY_PARTS", "SERVER_OVERLOADED"),
        *("TOO_MANY_SIMULTANEOUS_QUERIES", "CANNOT_SCHEDULE_TASK", "DEADLOCK_AVOIDED"),
        *("TABLE_IS_READ_ONLY", "KEEPER_EXCEPTION", "NO_ZOOKEEPER", "ALL_CONNECTION_TRIES_FAILED"),
        *("NETWORK_ERROR", "SOCKET_TIMEOUT", "NO_FREE_CONNECTION", "TOO_FEW_LIVE_REPLICAS"),
        *("UNKNOWN_STATUS_OF_INSERT", "UNFINISHED", "CANNOT_ASSIGN_ALTER"),
        *("ABORTED", "QUERY_WAS_CANCELLED", "QUERY_WAS_CANCELLED_BY_CLIENT"),
    }
)
_READ_ONLY_SETTING = re.compile(r"^Setting \w+ is readonly")
_LONGEST_MESSAGE = 1_500  # characters; a message may repeat a statement
_TRANSIENT_STATUS = re.compile(r"HTTP status (?:429|502|503|504)\b")
_REPAIRS = {
    **dict.fromkeys(
        ("TOO_MANY_ROWS", "TOO_MANY_BYTES", "TOO_MANY_ROWS_OR_BYTES", "TIMEOUT_EXCEEDED"),
        "raise that limit in the profile of CLICKHOUSE_USERNAME",
    ),
    "SETTING_CONSTRAINT_VIOLATION": "take that constraint from the profile of CLICKHOUSE_USERNAME",
    "AUTHENTICATION_FAILED": "set CLICKHOUSE_USERNAME and CLICKHOUSE_PASSWORD to those of a user "
    "of that server",
    "READONLY": "let CLICKHOUSE_USERNAME be a user whose profile does not set readonly",
    "ACCESS_DENIED": "run make preflight, which names the grants that are missing",
    "MEMORY_LIMIT_EXCEEDED": "raise the memory limit that it names, or load when less is running",
    "TOO_MANY_PARTS": "let its merges catch up; another writer inserts too often",
    "TABLE_IS_READ_ONLY": "see why the replica has no session with Keeper",
    "NOT_ENOUGH_SPACE": "free space on the server's disk",
}


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into ours.

    Raises:
        TransientClickHouseError: the statement may succeed in a moment; its outcome is not known.
        ClickHouseError: the statement fails however often it is sent.
    """
    try:
        yield
    except DriverError as error:
        raise _translation(error) from error


def _translation(error: DriverError) -> ClickHouseError:
    if isinstance(error.__cause__, HTTPError):
        return _transport_error(error.__cause__)
    message = _without_stack(str(error))
    name = getattr(error, "name", None)
    if _READ_ONLY_SETTING.search(message):  # said by the driver, before it asks the server
        name = "READONLY"
    is_transient = (
        name in _TRANSIENT
        or (name is None and isinstance(error, StreamFailureError))  # the connection was cut
        or (name is None and _TRANSIENT_STATUS.search(message) is not None)  # a proxy's answer
    )
    kind = TransientClickHouseError if is_transient else ClickHouseError
    return kind(f"ClickHouse: {message}", _REPAIRS.get(name or "", ""), name or "")


def _without_stack(said: str) -> str:
    """Return an error of the engine as one line: with its reasons, without stack or address.

    Reasons may stand on later lines, such as which limit forbids to drop a partition.
    """
    said = re.split(r",?\s*Stack trace[: ]|\s*\(for url", said)[0]
    line = " ".join(said.split())
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[:_LONGEST_MESSAGE]}…"


def _transport_error(error: HTTPError) -> ClickHouseError:
    reason = error.reason if isinstance(error, MaxRetryError) else error
    if isinstance(reason, SSLError):
        return ClickHouseError(
            f"ClickHouse: no TLS connection: {reason}",
            "see CLICKHOUSE_CA_CERT, CLICKHOUSE_CLIENT_CERT and CLICKHOUSE_CLIENT_KEY",
        )
    if isinstance(reason, ReadTimeoutError):
        return TransientClickHouseError(f"ClickHouse: no answer within {STATEMENT_SECONDS} s")
    # Of many wrapped errors, the one of the operating system.
    found = re.search(r"\[Errno -?\d+\] [\w ]+|(?<=Error\()\d+, '[\w ]+", str(reason))
    return TransientClickHouseError(
        f"ClickHouse: cannot be reached: {found[0] if found else reason}"
    )
