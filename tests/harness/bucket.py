"""Where batches lie, seen without the store: a bucket of an S3 server, or a folder."""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
from moto.server import ThreadedMotoServer

from llm_trace_pipeline.batches.files import LOCK


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


class Folder:
    """What lies in a folder, seen without the store: as :class:`Bucket` for a bucket."""

    def __init__(self, root: str) -> None:
        self._root = Path(root)

    def keys(self, prefix: str = "") -> set[str]:
        folder = self._root / prefix
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        return {name for name in files if not name.endswith(LOCK)}

    def read(self, key: str) -> bytes:
        return (self._root / key).read_bytes()

    def write(self, key: str, content: bytes) -> None:
        (self._root / key).parent.mkdir(parents=True, exist_ok=True)
        (self._root / key).write_bytes(content)

    def remove(self, key: str) -> None:
        (self._root / key).unlink()


_ANY_USE = (
    '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}'
)


@contextmanager
def running_s3() -> Iterator[S3Server]:
    """Run an S3 server in this process until the end of the block."""
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
