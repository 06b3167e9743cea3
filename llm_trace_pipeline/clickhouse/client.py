"""ClickHouse, on a server or embedded: the client, its errors, and the table's definition."""

import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import clickhouse_connect
import pyarrow as pa
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError as DriverError
from clickhouse_connect.driver.exceptions import StreamFailureError
from urllib3.exceptions import HTTPError, MaxRetryError, ReadTimeoutError, SSLError

from llm_trace_pipeline.batches.parts import PartPath
from llm_trace_pipeline.errors import ClickHouseError, TransientClickHouseError
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.sql import quote_identifier, quote_text, render
from llm_trace_pipeline.trace.columns import COLUMNS, PAYLOAD_COLUMNS, SCHEMA_VERSION, TOKEN_COLUMNS
from llm_trace_pipeline.trace.hashes import row_hash_sql

EMBEDDED_WAIT_SECONDS = 120.0
# How much of a batch the engine puts into one block, of which several are on their way at once. Its
# own blocks of a million rows and its read-ahead took 2.8 GB for 400 rows of 5 MB. Blocks of 64 MB
# took 1.4 GB for a part of 137 MB; of 24 MB 1.0 GB, in the same time.
_BLOCK_BYTES = 24 * 2**20
_INSERT_SETTINGS = {
    "max_threads": 2,
    "max_insert_threads": 2,
    "min_insert_block_size_rows": 0,
    "min_insert_block_size_bytes": _BLOCK_BYTES,
    "input_format_parquet_memory_low_watermark": 2**20,
    "input_format_parquet_memory_high_watermark": _BLOCK_BYTES,
}
_STREAMED_ROWS = 8192  # of an answer, in memory at once
# The engine gives freed memory back soon: 50,000 rows of 7 KB peak at 0.86 GB and take 1.1 s. Given
# back at once it is 0.70 GB and 1.4 s, a second later 0.99 GB and 1.1 s.
_ALLOCATOR = "dirty_decay_ms:200"

# What is transient is tried again for a minute or so: a server restarts in less. The waits double,
# from 1 s on, and each is shortened at random, so that many loads do not come back at once.
ATTEMPTS = 7
_LONGEST_RETRY_SECONDS = 600.0  # after the first failure; attempts of big hours are long themselves
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
_TRANSIENT_STATUS = re.compile(r"HTTP status (?:429|502|503|504)\b")
_REPAIRS = {
    "AUTHENTICATION_FAILED": "set CLICKHOUSE_USERNAME and CLICKHOUSE_PASSWORD to those of a user "
    "of that server",
    "READONLY": "let CLICKHOUSE_USERNAME be a user whose profile does not set readonly",
    "ACCESS_DENIED": "run make preflight, which names the grants that are missing",
    "MEMORY_LIMIT_EXCEEDED": "raise the memory limit that it names, or load when less is running",
    "TOO_MANY_PARTS": "let its merges catch up; another writer inserts too often",
    "TABLE_IS_READ_ONLY": "see why the replica has no session with Keeper",
    "NOT_ENOUGH_SPACE": "free space on the server's disk",
}

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

# What they log when they cannot connect is what our error says.
for _name in ("clickhouse_connect", "urllib3.connectionpool"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

ROLLUP = "llm_usage_hourly"
# The views of the roll-up: the column that tells the period, and the function that gives its start.
VIEWS = {"llm_usage_daily": ("day", "toDate"), "llm_usage_monthly": ("month", "toStartOfMonth")}


def in_window(column: str) -> str:
    """Return the condition that a time lies within ``start`` and ``end``, its parameters."""
    return f"{column} >= {{start:DateTime64(6, 'UTC')}} AND {column} < {{end:DateTime64(6, 'UTC')}}"


IN_WINDOW = in_window("created_at")
SHARDING_KEY = "cityHash64(organization_id)"  # an organization is on one shard
_ENGINE = "ENGINE = MergeTree\n"
# The path has no {uuid}: a node that joins later would get another one than its replicas have.
_ENGINE_OF_REPLICAS = (
    "ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')\n"
)
_OTHER_PROCESS = ("Cannot lock file", "Error initializing EmbeddedServer")


@dataclass(frozen=True)
class HourTotals:
    """What a table holds of one hour, without its payloads."""

    rows: int
    distinct_ids: int
    tokens: dict[str, int]
    content_hash: str | None = None  # hexadecimal; None where it was not computed
    cost_usd: Decimal = Decimal(0)


@dataclass(frozen=True)
class Cluster:
    """The cluster that a server is a node of."""

    name: str
    client_of: Callable[[str], Client]  # connects to the node with this host name, once


class Database:
    """One database of ClickHouse, through clickhouse-connect, whatever stands behind it."""

    # Which rows of a batch are inserted: an SQL clause, in a cluster.
    _rows_to_insert = ""
    # A server killed inside REPLACE PARTITION can leave old and new parts both active.
    swap_can_be_cut = True

    def __init__(
        self,
        client: Client,
        name: str,
        *,
        is_embedded: bool,
        keeps_payloads: bool = True,
        cluster: Cluster | None = None,
    ) -> None:
        """Use an open client.

        Args:
            client: the client.
            name: the database.
            is_embedded: whether the engine is in this process.
            keeps_payloads: whether what is inserted has its request_json and response_json.
            cluster: where the tables are spread over one.
        """
        self._client = client
        self.name = name
        self._is_embedded = is_embedded
        self.keeps_payloads = keeps_payloads
        self.cluster = cluster

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor version of the engine."""
        major, minor, *_ = str(self._client.server_version).split(".")
        return int(major), int(minor)

    def qualified(self, table: str) -> str:
        """Return the quoted name of a table of this database."""
        return f"{quote_identifier(self.name)}.{quote_identifier(table)}"

    def execute(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Execute a statement that returns nothing, once.

        It is not repeated where its outcome is unknown: ATTACH PARTITION, say, would double rows.

        Raises:
            ClickHouseError: the engine refused it.
            TransientClickHouseError: it failed, or its answer was lost: it may have taken effect.
        """
        with _translated():
            self._client.command(
                sql, parameters=dict(parameters or {}), settings=dict(settings or {})
            )

    def execute_until_done(
        self, sql: str, parameters: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> None:
        """Execute a statement that leaves the same behind however often it runs.

        Raises:
            ClickHouseError: the engine refused it, or failed again and again.
        """
        retried(lambda: self.execute(sql, parameters, settings))

    def rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Execute a query; one dict per row. Times come timezone-aware.

        Raises:
            ClickHouseError: the engine refused it, or failed again and again.
        """

        def read() -> list[dict[str, Any]]:
            with _translated():
                result = self._client.query(sql, parameters=dict(parameters or {}))
                return list(result.named_results())

        return retried(read)

    def row_blocks(
        self, sql: str, parameters: Mapping[str, Any] | None = None
    ) -> Iterator[list[dict[str, Any]]]:
        """Execute a query once, and hand out its rows as they come, some thousands at a time.

        Raises:
            ClickHouseError: the engine refused it, or its answer broke off.
        """
        with (
            _translated(),
            self._client.query_row_block_stream(
                sql, parameters=dict(parameters or {}), settings={"max_block_size": _STREAMED_ROWS}
            ) as blocks,
        ):
            names = blocks.source.column_names
            for block in blocks:
                yield [dict(zip(names, row, strict=True)) for row in block]

    def value(self, sql: str) -> object:
        """Execute a statement that answers with one value, once.

        Raises:
            ClickHouseError: the engine refused it.
        """
        with _translated():
            return self._client.command(sql)

    def pretty(self, sql: str, parameters: Mapping[str, Any] | None = None) -> str:
        """Execute a statement once, and return its result as a table for a terminal.

        Raises:
            ClickHouseError: the engine refused it.
        """
        with _translated():
            octets = self._client.raw_query(
                sql, parameters=dict(parameters or {}), fmt="PrettyCompactMonoBlock"
            )
            return octets.decode(errors="replace")

    def insert_parquet(self, table: str, paths: Sequence[PartPath]) -> None:
        """Add the rows of Parquet files of the target's schema to a table.

        ClickHouse reads by itself what it can reach; a server is sent Arrow blocks of files that
        only this machine has.

        Args:
            table: where the rows go.
            paths: the files.

        Raises:
            BatchError: a file was removed meanwhile.
            ClickHouseError: the engine refused it.
        """
        dropped = () if self.keeps_payloads else PAYLOAD_COLUMNS
        names = ", ".join(quote_identifier(column.name) for column in COLUMNS)
        # Named, so that the columns that a batch from before them lacks are NULL or ''.
        structure = ", ".join(
            f"{quote_identifier(column.name)} {column.clickhouse_type}" for column in COLUMNS
        )
        values = ", ".join(
            "''" if column.name in dropped else quote_identifier(column.name) for column in COLUMNS
        )
        for path in paths:
            if path.url or self._is_embedded:
                # With the engine's own access to the bucket, so that no secret is in a statement.
                function = "s3" if path.url else "file"
                place = f"{function}({{place:String}}, Parquet, {{structure:String}})"
                # One file at a time: the engine would read ahead in all of them at once.
                with path.required():
                    self.execute(
                        f"INSERT INTO {self.qualified(table)} ({names}) "
                        f"SELECT {values} FROM {place}{self._rows_to_insert}",
                        {"place": path.url or str(path), "structure": structure},
                        _INSERT_SETTINGS,
                    )
                continue
            with path.open() as file:
                for group in range(file.num_row_groups):
                    rows = file.read_row_group(group)
                    for name in dropped:
                        blank = pa.repeat(pa.scalar("", pa.string()), rows.num_rows)
                        rows = rows.set_column(rows.schema.get_field_index(name), name, blank)
                    self._insert_arrow(table, rows)

    def _insert_arrow(self, table: str, rows: pa.Table) -> None:
        with _translated():
            # The client never sends a block twice, since it cannot know whether it went in. Rows
            # are to be there when the statement ends, whatever the user's profile says.
            self._client.insert_arrow(table, rows, database=self.name, settings={"async_insert": 0})

    def hour_totals(
        self,
        table: str,
        condition: str,
        parameters: Mapping[str, Any],
        *,
        with_content_hash: bool = False,
    ) -> dict[datetime, HourTotals]:
        """Return what a table holds within a condition, by hour.

        Args:
            table: a table with the target's columns.
            condition: an SQL condition.
            parameters: the values that the condition names.
            with_content_hash: compute the content hash too.
        """
        sql = render(
            "clickhouse/hour_totals.sql",
            table=self.qualified(table),
            filter=condition,
            content_hash=f"sum({row_hash_sql()})" if with_content_hash else "0",
        )
        return {
            row["hour"]: HourTotals(
                rows=row["rows"],
                distinct_ids=row["distinct_ids"],
                tokens={name: row[f"sum_{name}"] for name in TOKEN_COLUMNS},
                cost_usd=row["sum_cost_usd"],
                content_hash=f"{row['content_hash']:016x}" if with_content_hash else None,
            )
            for row in self.rows(sql, parameters)
        }

    def define_table(self, table: str) -> None:
        """Make the target where it is missing; bring an older one up to date in place.

        Raises:
            ClickHouseError: a newer version of this program made it.
        """
        if not self.use():
            self.execute(
                f"CREATE DATABASE IF NOT EXISTS {quote_identifier(self.name)}{self.on_cluster}"
            )
            self.use()
        layout = self.layout(table)
        if layout and (newer := newer_schema(self.qualified(table), layout)):
            raise newer
        is_current = layout and schema_version(layout) == SCHEMA_VERSION
        if not is_current or (table == ROLLUP and not self._has_views()):
            for statement in self._definition(table, exists=bool(layout)):
                self.execute(statement)

    def _has_views(self) -> bool:
        """Whether the views of the roll-up exist: they are made after it, and can be dropped."""
        [found] = self.rows(
            "SELECT count() AS views FROM system.tables "
            "WHERE database = {database:String} AND name IN {views:Array(String)}",
            {"database": self.name, "views": list(VIEWS)},
        )
        return bool(found["views"] == len(VIEWS))

    @property
    def on_cluster(self) -> str:
        """What makes a definition one of all nodes; '' on a single server."""
        return f" ON CLUSTER {quote_identifier(self.cluster.name)}" if self.cluster else ""

    def _definition(self, table: str, *, exists: bool) -> list[str]:
        """Return what makes or upgrades the table; in a cluster, the local ones behind it first.

        Each leaves the same behind however often it runs, and so does a part of them.
        """
        target = f"{self.qualified(table)}{self.on_cluster}"
        if table == ROLLUP:
            make = "clickhouse/llm_usage_hourly.sql"
            views = [
                render(
                    "clickhouse/llm_usage_by_period.sql",
                    view=f"{self.qualified(view)}{self.on_cluster}",
                    table=self.qualified(table),
                    period=period,
                    start_of=start_of,
                )
                for view, (period, start_of) in VIEWS.items()
            ]
            if not self.cluster:
                return [render(make, table=target), *views]
            distributed = self._distributed(self.cluster, table, "Usage by hour")
            return [self._local(make, table), distributed, *views]
        make, upgrade = "clickhouse/llm_traces.sql", "clickhouse/upgrade.sql"
        if not self.cluster:
            return [render(upgrade if exists else make, table=target)]
        local = f"{self.qualified(local_name(table))}{self.on_cluster}"
        distributed = self._distributed(self.cluster, table, "One row per LLM call")
        return [
            self._local(make, table),
            render(upgrade, table=local),  # one that was there already
            render(upgrade, table=target) if exists else distributed,
        ]

    def _local(self, make: str, table: str) -> str:
        """Return what makes the local tables behind a table of the cluster."""
        local = f"{self.qualified(local_name(table))}{self.on_cluster}"
        return render(make, table=local).replace(_ENGINE, _ENGINE_OF_REPLICAS)

    def _distributed(self, cluster: Cluster, table: str, comment: str) -> str:
        """Return what makes a table of the cluster in front of the local ones."""
        name = local_name(table)
        return render(
            "clickhouse/distributed.sql",
            table=f"{self.qualified(table)}{self.on_cluster}",
            local=self.qualified(name),
            cluster=quote_text(cluster.name),
            database=quote_text(self.name),
            name=quote_text(name),
            key=SHARDING_KEY,
            comment=quote_text(f"{comment} (llm_trace_pipeline schema {SCHEMA_VERSION})."),
        )

    def use(self) -> bool:
        """Let names without a database mean the tables of this one; False: it does not exist."""
        known = {"database": self.name}
        if self.rows("SELECT 1 FROM system.databases WHERE name = {database:String}", known):
            self._client.database = self.name
            return True
        return False

    def has_table(self, table: str) -> bool:
        """Whether the table exists."""
        return bool(self.layout(table))

    def layout(self, table: str) -> dict[str, Any]:
        """Return the table's row of ``system.tables``; empty where it does not exist."""
        found = self.rows(
            "SELECT engine, engine_full, partition_key, sorting_key, primary_key, comment "
            "FROM system.tables WHERE database = {database:String} AND name = {table:String}",
            {"database": self.name, "table": table},
        )
        return found[0] if found else {}

    def wait_for_statements_on(self, *tables: str) -> None:
        """Wait until no statement that names one of these tables is running.

        Raises:
            ClickHouseError: one runs for longer than a statement may.
        """
        deadline = time.monotonic() + STATEMENT_SECONDS
        while running := self.rows(
            "SELECT query_id FROM system.processes "
            "WHERE multiSearchAny(query, {tables:Array(String)}) "
            "AND position(query, 'system.processes') = 0",  # the embedded engine shows values too
            {"tables": [self.qualified(table) for table in tables]},
        ):
            if time.monotonic() > deadline:
                ids = ", ".join(f"'{row['query_id']}'" for row in running)
                raise ClickHouseError(
                    "ClickHouse: a statement of an earlier load still runs",
                    f"wait, or KILL QUERY WHERE query_id IN ({ids})",
                )
            time.sleep(0.2)  # nothing tells when it ends

    def catch_up(self, table: str) -> None:
        """Fetch what other replicas of the table have: there are none of a single server."""

    def parts(self, table: str, partition_id: str) -> list[dict[str, Any]]:
        """Return the active parts of a partition: their names and largest block numbers."""
        return self.rows(
            "SELECT name, max_block_number FROM system.parts WHERE database = {database:String} "
            "AND table = {table:String} AND partition_id = {partition:String} AND active",
            {"database": self.name, "table": table, "partition": partition_id},
        )


def local_name(table: str) -> str:
    """Return the name of the table that holds a shard's own rows, behind a table of a cluster."""
    return f"{table}_local"


def schema_version(layout: Mapping[str, Any]) -> int:
    """Return the version of the schema that a row of ``system.tables`` tells; 0: none."""
    said = re.search(r"\bllm_trace_pipeline schema (\d+)", layout["comment"])
    return int(said[1]) if said else 0


def newer_schema(table: str, layout: Mapping[str, Any]) -> ClickHouseError | None:
    """Return why a table cannot be loaded into that a newer version of this program made."""
    if (version := schema_version(layout)) <= SCHEMA_VERSION:
        return None
    return ClickHouseError(
        f"{table} has schema {version}, and this version of the program knows up to "
        f"{SCHEMA_VERSION}",
        "install the newer version that made it, or set another CLICKHOUSE_DATABASE",
    )


@contextmanager
def connect(settings: Settings, attempts: int = ATTEMPTS) -> Iterator[Database]:
    """Hold a connection to the configured ClickHouse.

    Only one process can hold the embedded engine: a second one waits for its turn, which is why
    this is opened late and closed early.

    Args:
        settings: where it is.
        attempts: how often a server that does not answer is tried.

    Raises:
        ClickHouseError: it cannot be reached, or another process keeps the embedded engine.
    """
    url = urlsplit(settings.clickhouse_endpoint)
    is_embedded = url.scheme == "chdb"
    with ExitStack() as stack:

        @cache
        def client_of(host: str) -> Client:
            return stack.enter_context(closing(_server_client(settings, host)))

        client = (
            stack.enter_context(closing(_embedded_client(url.path)))
            if is_embedded
            else retried(lambda: client_of(str(url.hostname)), attempts)
        )
        database = Database(
            client,
            settings.clickhouse_database,
            is_embedded=is_embedded,
            keeps_payloads=settings.payloads == "all",
            cluster=Cluster(name, client_of) if (name := settings.clickhouse_cluster) else None,
        )
        database.use()
        yield database


def _server_client(settings: Settings, host: str) -> Client:
    url = urlsplit(settings.clickhouse_endpoint)
    password = settings.clickhouse_password.get_secret_value()
    with _translated():
        return clickhouse_connect.get_client(
            interface=url.scheme,
            host=host,
            port=url.port or (8443 if url.scheme == "https" else 8123),
            username=settings.clickhouse_username,
            password=password,
            ca_cert=_text(settings.clickhouse_ca_cert),
            client_cert=_text(settings.clickhouse_client_cert),
            client_cert_key=_text(settings.clickhouse_client_key),
            verify=settings.clickhouse_verify,
            # A client certificate alone says who the user is; with a password it is TLS's matter.
            tls_mode="strict" if password else "mutual",
            client_name="llm_trace_pipeline",
            tz_mode="aware",
            send_receive_timeout=STATEMENT_SECONDS,
            query_retries=0,  # retried() does it
            # A session is bound to one node; behind a load balancer the next statement may reach
            # another one.
            autogenerate_session_id=False,
        )


def _text(path: Path | None) -> str | None:
    return str(path) if path else None


def retried(run: Callable[[], _Result], attempts: int = ATTEMPTS) -> _Result:
    """Run what may be repeated, until it does not fail transiently.

    Args:
        run: leaves the same behind whether it ran once or, in part or in whole, several times.
        attempts: how often it is tried.

    Raises:
        ClickHouseError: it failed for another reason, or as often as it may.
    """
    attempt = 0
    until = None
    while True:
        attempt += 1
        try:
            return run()
        except TransientClickHouseError as error:
            now = time.monotonic()
            until = until or now + _LONGEST_RETRY_SECONDS
            if attempt >= attempts or now > until:
                times = f" ({attempt} times)" if attempt > 1 else ""
                raise ClickHouseError(f"{error.message}{times}", error.repair) from error
            seconds = 2 ** (attempt - 1) * random.uniform(0.5, 1)  # noqa: S311 -- no secret
            _log.warning(
                "%s; attempt %d of %d, again in %.1f s", error.message, attempt, attempts, seconds
            )
            time.sleep(seconds)  # the server tells nobody when it is well again


def _embedded_client(path: str) -> Client:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # Read when the engine's library is loaded, which the first client does.
    os.environ.setdefault("JE_MALLOC_CONF", _ALLOCATOR)
    deadline = time.monotonic() + EMBEDDED_WAIT_SECONDS
    while True:
        try:
            return clickhouse_connect.get_client(interface="chdb", path=path, tz_mode="aware")
        except ImportError:
            raise ClickHouseError(
                "CLICKHOUSE_ENDPOINT: the embedded engine needs the extra: "
                "pip install 'llm-trace-pipeline[embedded]'"
            ) from None
        except DriverError as error:
            if not any(text in str(error) for text in _OTHER_PROCESS):
                raise ClickHouseError(f"the embedded engine under {path}: {error}") from None
            if time.monotonic() > deadline:
                raise ClickHouseError(
                    f"the embedded engine under {path} is held by another process for over "
                    f"{EMBEDDED_WAIT_SECONDS:.0f} s; only one at a time can use it: wait for the "
                    "running load to end, or stop the process that holds it"
                ) from None
        time.sleep(0.2)  # the lock tells nobody when it is free


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the driver's errors into ours: the one place where they are told apart."""
    try:
        yield
    except DriverError as error:
        raise _translation(error) from error


def _translation(error: DriverError) -> ClickHouseError:
    if isinstance(error.__cause__, HTTPError):
        return _transport_error(error.__cause__)
    # The engine repeats the statement and its stack; the first line says what is wrong.
    message = re.split(r"\n|\s*Stack trace:|\s*\(for url", str(error).strip())[0]
    name = getattr(error, "name", None)
    is_transient = (
        name in _TRANSIENT
        or (name is None and isinstance(error, StreamFailureError))  # the connection was cut
        or (name is None and _TRANSIENT_STATUS.search(message) is not None)  # a proxy's answer
    )
    kind = TransientClickHouseError if is_transient else ClickHouseError
    return kind(f"ClickHouse: {message}", _REPAIRS.get(name or "", ""))


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
