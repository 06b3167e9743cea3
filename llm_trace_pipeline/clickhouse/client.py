"""The connection to ClickHouse, on a server or embedded: statements, rows and retries."""

import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from threading import Timer
from typing import Any, TypeVar
from urllib.parse import urlsplit

import clickhouse_connect
import pyarrow as pa
from clickhouse_connect.driver.client import Client

from llm_trace_pipeline.clickhouse.embedded import embedded_client
from llm_trace_pipeline.clickhouse.errors import STATEMENT_SECONDS, translated
from llm_trace_pipeline.clickhouse.pins import PINS, SHARED_PINS, pin
from llm_trace_pipeline.errors import ClickHouseError, TransientClickHouseError
from llm_trace_pipeline.settings import CHDB_SCHEME, Settings
from llm_trace_pipeline.sql import quote_identifier, read_sql

# An idle service of ClickHouse Cloud, which is always behind TLS, answers its first connection by
# then. A node of a cluster that does not answer has replicas that do.
WAKE_SECONDS = 120
_CONNECT_SECONDS = 10  # to any other server
_SLOW_SECONDS = 5.0  # a connection that takes longer is said to be awaited
# Transient errors are tried again for a minute or so: a server restarts in less. The waits double,
# from 1 s on, and each is shortened at random, so that many loads do not come back at once.
ATTEMPTS = 7
_LONGEST_RETRY_SECONDS = 600.0  # after the first failure; attempts of big hours are long themselves
_CONNECTIONS_ASKED = 4  # for which server answers them
_STREAMED_ROWS = 8192  # of an answer, in memory at once

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

# When they cannot connect, they log what our error says.
for _name in ("clickhouse_connect", "urllib3.connectionpool"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Cluster:
    """The cluster that a server is a node of."""

    name: str
    client_of: Callable[[str], Client]  # connects to the node with this host name, once


@dataclass(frozen=True)
class Shard:
    """The shard of a cluster that a server is a replica of."""

    number: int
    is_own: str  # an SQL condition: the Distributed table sends the row to this shard
    known: dict[str, bool] = field(default_factory=dict)  # organizations: whether they are its own


@dataclass(frozen=True)
class Intake:
    """How the rows of batches go in."""

    keeps_payloads: bool = True  # whether request_json and response_json are inserted
    s3_role: str | None = None  # which the server takes to read a bucket; None: its own access


class Database:
    """One database of ClickHouse: embedded, of a server, or on a node of a cluster."""

    def __init__(
        self,
        client: Client,
        name: str,
        *,
        is_embedded: bool,
        intake: Intake = Intake(),
        cluster: Cluster | None = None,
        shard: Shard | None = None,
    ) -> None:
        """Use an open client.

        Args:
            client: the client.
            name: the database.
            is_embedded: whether the engine is in this process.
            intake: how the rows of batches go in.
            cluster: the cluster that the tables are spread over, seen from any node.
            shard: the shard whose own tables are used, seen from one of its replicas.
        """
        self._client = client
        self.name = name
        self.is_embedded = is_embedded
        self.intake = intake
        self.cluster = cluster
        self.shard = shard
        self.in_reach: dict[str, bool] = {}  # buckets: whether the server reads them by itself

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor version of the engine."""
        major, minor, *_ = str(self._client.server_version).split(".")
        return int(major), int(minor)

    @cached_property
    def is_shared(self) -> bool:
        """Whether replicas that share storage answer behind the address."""
        with translated():
            return not self.is_embedded and _shares_storage(self._client)

    @cached_property
    def nodes(self) -> frozenset[str]:
        """The servers that answer behind the address, as far as a few new connections tell.

        Raises:
            ClickHouseError: one of them does not answer.
        """

        def ask() -> str:
            self._client.close_connections()  # whoever spreads them chooses once a connection
            return str(self.value(read_sql("clickhouse/node.sql")))

        return frozenset(retried(ask) for _ in range(_CONNECTIONS_ASKED))

    @property
    def on_cluster(self) -> str:
        """The clause that runs a definition on all nodes of the cluster; '' on a single server."""
        return f" ON CLUSTER {quote_identifier(self.cluster.name)}" if self.cluster else ""

    def qualified(self, table: str) -> str:
        """Return the quoted name of a table of this database."""
        return f"{quote_identifier(self.name)}.{quote_identifier(table)}"

    def use(self) -> bool:
        """Make this the database of names without one; return False where it does not exist."""
        if self.rows(read_sql("clickhouse/database.sql"), {"database": self.name}):
            self._client.database = self.name
            return True
        return False

    def execute(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Execute a statement that returns nothing, once.

        A statement whose outcome is unknown is not repeated: a second ATTACH PARTITION, say, would
        double rows.

        Raises:
            ClickHouseError: the engine refused it.
            TransientClickHouseError: it failed, or its answer was lost: it may have taken effect.
        """
        with translated():
            self._client.command(
                sql, parameters=dict(parameters or {}), settings=dict(settings or {})
            )

    def execute_until_done(
        self,
        sql: str,
        parameters: Mapping[str, Any],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Execute a statement whose result does not depend on how often it runs.

        Raises:
            ClickHouseError: the engine refused it, or failed again and again.
        """
        retried(lambda: self.execute(sql, parameters, settings))

    def insert_arrow(self, table: str, rows: pa.Table) -> None:
        """Send rows to a table, once.

        Raises:
            ClickHouseError: the engine refused them.
            TransientClickHouseError: it failed, or its answer was lost: rows may have gone in.
        """
        with translated():
            # The client never sends a block twice, since it cannot know whether it went in.
            self._client.insert_arrow(table, rows, database=self.name)

    def rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Execute a query; one dict per row. Times are in UTC.

        Raises:
            ClickHouseError: the engine refused it, or failed again and again.
        """

        def read() -> list[dict[str, Any]]:
            with translated():
                result = self._client.query(sql, parameters=dict(parameters or {}))
                return list(_named(result.column_names, result.result_rows))

        return retried(read)

    def row_blocks(
        self, sql: str, parameters: Mapping[str, Any] | None = None
    ) -> Iterator[list[dict[str, Any]]]:
        """Execute a query once, and hand out its rows as they come, some thousands at a time.

        Times are in UTC.

        Raises:
            ClickHouseError: the engine refused it, or its answer broke off.
        """
        with (
            translated(),
            self._client.query_row_block_stream(
                sql, parameters=dict(parameters or {}), settings={"max_block_size": _STREAMED_ROWS}
            ) as blocks,
        ):
            names = blocks.source.column_names
            for block in blocks:
                yield list(_named(names, block))

    def value(self, sql: str) -> object:
        """Execute a statement that answers with one value, once.

        Raises:
            ClickHouseError: the engine refused it.
        """
        with translated():
            return self._client.command(sql)

    def pretty(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        is_read_only: bool = False,
    ) -> str:
        """Execute a statement once, and return its result as a table of text.

        Args:
            sql: the statement.
            parameters: its values.
            is_read_only: refuse a statement that changes something; an embedded engine then refuses
                any other such statement of this connection too.

        Raises:
            ClickHouseError: the engine refused it.
        """
        settings = {}
        # 2 allows settings in the statement. Where a profile sets it, it cannot be changed.
        if is_read_only and not self.rows("SELECT getSetting('readonly') AS set")[0]["set"]:
            settings["readonly"] = 2
        with translated():
            octets = self._client.raw_query(
                sql,
                parameters=dict(parameters or {}),
                settings=settings,
                fmt="PrettyCompactMonoBlock",
            )
            return octets.decode(errors="replace")


def _named(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Return rows as dicts, with every time in UTC."""
    return (dict(zip(names, map(_in_utc, row), strict=True)) for row in rows)


def _in_utc(value: object) -> object:
    """Return a value of a row; a time, also one inside of it, in UTC.

    The client hands out times in the zone of the column, of the server, or of this process: the
    embedded engine does not tell the zone of a DateTime. Where clocks go back, Python never equates
    a time within the repeated hour with a time of another zone, nor finds it as a key.
    """
    match value:
        case datetime():
            return value.astimezone(UTC)
        case list() | tuple():
            return type(value)(map(_in_utc, value))
        case dict():
            return {_in_utc(key): _in_utc(each) for key, each in value.items()}
    return value


@contextmanager
def connect(settings: Settings, attempts: int = ATTEMPTS) -> Iterator[Database]:
    """Hold a connection to the configured ClickHouse.

    Only one process can hold the embedded engine, and another one waits for its turn. So a
    connection is opened late and closed early.

    Args:
        settings: the address, the user and the database.
        attempts: how often a server that does not answer is tried.

    Raises:
        ClickHouseError: ClickHouse cannot be reached, or another process keeps the embedded engine.
    """
    endpoint = settings.clickhouse_endpoint
    with ExitStack() as stack:

        def pinned(client: Client) -> Client:
            with translated():
                pin(stack.enter_context(closing(client)), PINS)
                if not settings.is_embedded and _shares_storage(client):
                    pin(client, SHARED_PINS)
            return client

        @cache
        def client_of(host: str) -> Client:
            return pinned(_server_client(settings, host))

        client = (
            pinned(embedded_client(endpoint.removeprefix(CHDB_SCHEME)))
            if settings.is_embedded
            else retried(lambda: _awaited(client_of, str(urlsplit(endpoint).hostname)), attempts)
        )
        database = Database(
            client,
            settings.clickhouse_database,
            is_embedded=settings.is_embedded,
            intake=Intake(settings.payloads == "all", settings.clickhouse_s3_role_arn),
            cluster=Cluster(name, client_of) if (name := settings.clickhouse_cluster) else None,
        )
        if database.cluster and database.is_shared:
            raise ClickHouseError(
                "CLICKHOUSE_CLUSTER is set, and the replicas of that service share their storage",
                "unset CLICKHOUSE_CLUSTER: there is nothing to spread the table over",
            )
        database.use()
        yield database


def _awaited(client_of: Callable[[str], Client], host: str) -> Client:
    """Connect to a server, and say so where it takes its time to answer."""
    timer = Timer(_SLOW_SECONDS, _say_that_it_is_slow)
    timer.daemon = True
    timer.start()
    try:
        return client_of(host)
    finally:
        timer.cancel()


def _say_that_it_is_slow() -> None:
    _log.warning(
        "ClickHouse does not answer yet: an idle service takes up to %d s to wake up", WAKE_SECONDS
    )


def _shares_storage(client: Client) -> bool:
    """Whether a server has the engines of shared storage; an ordinary one does not know them."""
    return str(client.command(read_sql("clickhouse/shared_engine.sql"))) == "1"


def _server_client(settings: Settings, host: str) -> Client:
    url = urlsplit(settings.clickhouse_endpoint)
    password = settings.clickhouse_password.get_secret_value()
    may_sleep = url.scheme == "https" and not settings.clickhouse_cluster
    with translated():
        return clickhouse_connect.get_client(
            interface=url.scheme,
            host=host,
            connect_timeout=WAKE_SECONDS if may_sleep else _CONNECT_SECONDS,
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
    """Run a function, again after every transient error, and return its result.

    Args:
        run: may run several times, in part or in whole, with the effect of one run.
        attempts: how often it is tried.

    Raises:
        ClickHouseError: an error that is not transient, or the last attempt failed too.
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
