"""Real parts for every test: one PostgreSQL per worker, a fresh database and a fresh store each."""

import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import boto3
import pyarrow as pa
import pytest
from adbc_driver_postgresql import dbapi
from moto.server import ThreadedMotoServer

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import Database, connect
from llm_trace_pipeline.demo import postgres as demo
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.source.postgres import Source
from llm_trace_pipeline.sql import read_sql
from tests.target import drop_database, environment_of, make_database

START = "2026-01-01-00:00"
os.environ["LLM_TRACES_START"] = START  # what the partitions read when they are imported

T = TypeVar("T")
PATIENCE_SECONDS = 120.0  # a bound against hanging, on a machine that runs other tests too
HOUR = timedelta(hours=1)
T0 = datetime(2026, 3, 1, 9, tzinfo=UTC)  # the hour that most tests load


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server of this test process."""
    folder = Path(tempfile.mkdtemp(prefix="llm-traces-tests-"))
    folder.chmod(0o755)
    try:
        url = demo.embedded_postgres(folder)
        # Its databases live for one test: nothing of them needs to survive a power cut.
        for statement in ("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()"):
            execute(url, statement)
        yield url
    finally:
        demo.leave_postgres(folder)
        shutil.rmtree(folder, ignore_errors=True)


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


def execute(url: str, sql: str) -> None:
    """Execute statements, and commit."""
    with dbapi.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.adbc_statement.set_sql_query(sql)
        cursor.adbc_statement.execute_update()


class Operational:
    """A fresh operational database with the agent server's tables."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.execute(read_sql("demo/schema.sql"))

    def execute(self, sql: str) -> None:
        """Execute statements, and commit."""
        execute(self.url, sql)

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """Return the rows of a query."""
        with dbapi.connect(self.url, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            rows: list[dict[str, Any]] = cursor.fetch_arrow_table().to_pylist()
            return rows

    def insert(self, table: str, *rows: dict[str, Any]) -> None:
        """Insert rows; what a row leaves out takes the table's default. JSON goes in as text."""
        with dbapi.connect(self.url) as connection, connection.cursor() as cursor:
            for names in {tuple(row): None for row in rows}:
                alike = [row for row in rows if tuple(row) == names]
                columns = {name: pa.array([row[name] for row in alike]) for name in names}
                if table == "steps":  # whose counts are 4 bytes wide
                    columns = {
                        name: column.cast(pa.int32()) if column.type == pa.int64() else column
                        for name, column in columns.items()
                    }
                cursor.adbc_ingest(table, pa.table(columns), mode="append")
            connection.commit()


def trace(at: datetime = T0, /, **values: Any) -> dict[str, Any]:
    """Return a row of ``provider_traces``, valid as it is; values replace what it has."""
    return {
        "id": f"provider_trace-{uuid4()}",
        "organization_id": "org-1",
        "request_json": '{"model": "gpt-4o", "messages": []}',
        "response_json": '{"model": "gpt-4o", "usage": {"prompt_tokens": 10, '
        '"completion_tokens": 5, "total_tokens": 15}}',
        "llm_config": '{"model": "gpt-4o", "model_endpoint_type": "openai"}',
        "created_at": at,
        "updated_at": at,
        "is_deleted": False,
        **values,
    }


@pytest.fixture
def operational(postgres_url: str) -> Iterator[Operational]:
    """A fresh operational database."""
    name = f"test_{uuid4().hex}"
    execute(postgres_url, f"CREATE DATABASE {name}")
    yield Operational(postgres_url.replace("/postgres?", f"/{name}?", 1))
    execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def source(operational: Operational) -> Source:
    """The operational database, read by two connections."""
    return Source(operational.url, connections=2)


@pytest.fixture
def settings(
    tmp_path: Path, operational: Operational, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Settings]:
    """Settings of a deployment of its own; the environment says the same."""
    environment = {
        **environment_of(tmp_path),
        "OPERATIONAL_DATABASE_URL": operational.url,
        "LLM_TRACES_START": START,
    }
    for name in list(os.environ):
        if name.startswith(("LLM_TRACES_", "CLICKHOUSE_", "TRACE_BATCH_", "OPERATIONAL_", "AWS_")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = Settings.from_environment(environment)
    yield settings
    drop_database(settings)


@dataclass(frozen=True)
class S3Server:
    """An S3 server, which checks every signature, and who may use it."""

    endpoint: str
    key_id: str
    secret: str
    temporary: dict[str, str]  # credentials that come with a token, as environment

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            aws_access_key_id=self.key_id,
            aws_secret_access_key=self.secret,
            region_name="us-east-1",
        )


class Bucket:
    """A bucket, and what lies in it below the store's root, seen by another client."""

    def __init__(self, server: S3Server) -> None:
        self.server = server
        self.name = f"test-{uuid4().hex}"
        self.uri = f"s3://{self.name}/some/prefix"
        self.client = server.client("s3")
        self.client.create_bucket(Bucket=self.name)

    def keys(self, prefix: str = "") -> set[str]:
        """Return the keys below the store's root, without the objects that stand for folders."""
        root = f"some/prefix/{prefix}"
        found = self.client.list_objects_v2(Bucket=self.name, Prefix=root)
        keys = {each["Key"].removeprefix(root) for each in found.get("Contents", [])}
        return {key for key in keys if key and not key.endswith("/")}

    def read(self, key: str) -> bytes:
        body = self.client.get_object(Bucket=self.name, Key=f"some/prefix/{key}")["Body"]
        content: bytes = body.read()
        return content

    def write(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=f"some/prefix/{key}", Body=content)

    def remove(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=f"some/prefix/{key}")

    def is_one_put(self, key: str) -> bool:
        """Whether an object came as a whole; the tag of one that came in parts counts them."""
        found = self.client.head_object(Bucket=self.name, Key=f"some/prefix/{key}")
        return "-" not in found["ETag"]

    def unfinished_uploads(self) -> list[str]:
        """Return the keys of multipart uploads that were begun and not completed."""
        found = self.client.list_multipart_uploads(Bucket=self.name)
        return [each["Key"] for each in found.get("Uploads", [])]


_ANY_USE = (
    '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}'
)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3 server of this test process."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    threads = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    threads.start()
    host, port = threads.get_host_and_port()
    anyone = S3Server(f"http://{host}:{port}", "anyone", "anything", {})
    iam = anyone.client("iam")
    iam.create_user(UserName="loader")
    iam.put_user_policy(UserName="loader", PolicyName="all", PolicyDocument=_ANY_USE)
    key = iam.create_access_key(UserName="loader")["AccessKey"]
    role = iam.create_role(RoleName="loader", AssumeRolePolicyDocument="{}")["Role"]
    iam.put_role_policy(RoleName="loader", PolicyName="all", PolicyDocument=_ANY_USE)
    sts = anyone.client("sts")
    assumed = sts.assume_role(RoleArn=role["Arn"], RoleSessionName="loader")["Credentials"]
    temporary = {
        "AWS_ACCESS_KEY_ID": assumed["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": assumed["SecretAccessKey"],
        "AWS_SESSION_TOKEN": assumed["SessionToken"],
    }
    with closing(HTTPConnection(host, port)) as connection:
        connection.request(
            "POST", "/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"}
        )  # after so many requests, signatures are checked
        assert connection.getresponse().status == 200
    yield S3Server(anyone.endpoint, key["AccessKeyId"], key["SecretAccessKey"], temporary)
    threads.stop()


@pytest.fixture
def bucket(s3_server: S3Server) -> Bucket:
    """A fresh bucket."""
    return Bucket(s3_server)


@pytest.fixture
def s3_settings(settings: Settings, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings with the batches in the bucket; the environment says the same."""
    environment = {
        "TRACE_BATCH_URI": bucket.uri,
        "AWS_ENDPOINT_URL": bucket.server.endpoint,
        "AWS_ACCESS_KEY_ID": bucket.server.key_id,
        "AWS_SECRET_ACCESS_KEY": bucket.server.secret,
        "AWS_REGION": "us-east-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return settings.model_copy(
        update={"trace_batch_uri": bucket.uri, "aws_endpoint_url": bucket.server.endpoint}
    )


@pytest.fixture
def store(settings: Settings) -> BatchStore:
    """An empty batch store."""
    return BatchStore.of(settings)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """A fresh ClickHouse."""
    make_database(settings)
    with connect(settings) as database:
        yield database
