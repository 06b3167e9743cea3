"""Configuration from the environment. The only file that names environment variables."""

import os
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from llm_trace_pipeline.errors import SettingsError
from llm_trace_pipeline.hours import parse_hour

S3_SCHEME = "s3://"
CHDB_SCHEME = "chdb://"  # followed by the path as it is: # and % are parts of it
# What ClickHouse takes for a pattern of names is refused.
_S3_URI = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_=-][A-Za-z0-9._=-]*)*")


# The drivers' own spelling: postgresql+asyncpg://…?ssl=require.
_DRIVER_URL = re.compile(r"postgres(?:ql)?(?:\+\w+)?://(?P<rest>.*)", re.DOTALL)
_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")
_SSL = re.compile(r"(?<![^&])ssl=([^&]*)")  # a parameter of a query
_SSL_MODES = {"true": "require", "false": "disable"}
# Not in the path of the state folder: Dagster reads ? and % as parts of a URL, and PostgreSQL's
# pg_ctl hands the path to a shell in double quotes.
_NO_STATE_DIR = '?%"$`'
# Dagster's own rule for an owner.
_OWNER = re.compile(r"team:[^\s,]+|[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}")
_NO_CHDB_DIR = "?"  # after it, the engine expects parameters


def _refuse(characters: str, path: str) -> None:
    if found := set(characters).intersection(path):
        raise ValueError(f"must be a folder whose path has no {min(found)}, not {path!r}")


def _state_dir(value: Path) -> Path:
    if value == value.parent:
        raise ValueError("must be a folder of its own, not the root of the file system")
    _refuse(_NO_STATE_DIR, str(value))
    return value


def _file(value: Path) -> Path:
    if not value.is_file():
        raise ValueError(f"must be a file, not {str(value)!r}")
    return value


def _libpq_url(secret: SecretStr) -> SecretStr:
    """Return the URL of PostgreSQL as libpq takes it, also where it is one of a Python driver.

    A driver behind the scheme is left out, and ``ssl`` becomes ``sslmode``. As libpq does, the user
    and the password are taken to end with the first @ before a slash.
    """
    found = _DRIVER_URL.fullmatch(secret.get_secret_value())
    if not found:  # libpq refuses it
        return secret
    rest = found["rest"]
    user, at, place = rest.partition("@") if "@" in rest.partition("/")[0] else ("", "", rest)
    address, mark, query = place.partition("?")
    # An @ in the address ends a user or password that has another @, or a slash.
    wrong = _BAD_ESCAPE.findall(rest) if "@" not in address else ["@" if at else "/"]
    if wrong:
        encoded = quote(wrong[0], safe="")
        raise ValueError(f"must have {wrong[0]} as {encoded} in its user and its password")
    query = _SSL.sub(lambda ssl: f"sslmode={_SSL_MODES.get(ssl[1], ssl[1])}", query)
    return SecretStr(f"postgresql://{user}{at}{address}{mark}{query}")


def _hour(value: object) -> object:
    return parse_hour(value) if isinstance(value, str) else value


def _batch_uri(value: str) -> str:
    if "://" not in value:
        return str(Path(value).absolute())
    uri = value.rstrip("/")
    if _S3_URI.fullmatch(uri):
        return uri
    raise ValueError(
        "must be a folder of this machine, or s3://bucket/prefix; a prefix has letters, digits and "
        "._=- only, and no dot first"
    )


def _s3_endpoint(value: str) -> str:
    url = urlsplit(value)
    if url.username or url.password:
        raise ValueError("must not hold credentials; they go into AWS_ACCESS_KEY_ID and others")
    if not _is_server(value):
        raise ValueError("must be http(s)://host:port")
    return value.rstrip("/")


def _clickhouse_endpoint(value: str) -> str:
    url = urlsplit(value)
    if url.username or url.password:
        raise ValueError("must not hold credentials; they go into CLICKHOUSE_USERNAME/PASSWORD")
    if _is_server(value):
        return value
    if not value.startswith(f"{CHDB_SCHEME}/"):
        raise ValueError("must be http(s)://host:port, or chdb:///path for the embedded engine")
    _refuse(_NO_CHDB_DIR, value)
    return value


def _role(value: str) -> str:
    if not re.fullmatch(r"arn:[\w-]+:iam::\d{12}:role/[\w+=,.@/-]+", value):
        raise ValueError("must be the ARN of a role, such as arn:aws:iam::123456789012:role/reader")
    return value


def _function_name(value: str) -> str:
    if not re.fullmatch(r"[\w.]+:\w+", value):
        raise ValueError("must be module:function, such as my_company.privacy:redact")
    return value


def _webhook(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if not _is_page(text):  # the value is not told: who knows it can post
        raise ValueError("must be an address such as https://hooks.example.com/services/…")
    return secret


def _ui_url(value: str) -> str:
    if not _is_page(value) or urlsplit(value).query:
        raise ValueError("must be the address of Dagster's UI, such as https://dagster.example.com")
    return value.rstrip("/")


def _is_page(text: str) -> bool:
    is_plain = text.isascii() and text.isprintable() and " " not in text
    return is_plain and _has_address(text)


def _owners(value: object) -> object:
    if not isinstance(value, str):
        return value
    owners = tuple(owner.strip() for owner in value.split(",") if owner.strip())
    if wrong := [owner for owner in owners if not _OWNER.fullmatch(owner)]:
        raise ValueError(f"must be addresses or teams such as team:data, not {wrong[0]!r}")
    return owners


def _is_server(text: str) -> bool:
    url = urlsplit(text)
    return _has_address(text) and not (url.path.strip("/") or url.query or url.fragment)


def _has_address(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # the port is no number
        return False


class Settings(BaseModel):
    """Everything that can be configured; aliases are the names of the environment variables."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    state_dir: Annotated[Path, AfterValidator(_state_dir)] = Field(
        alias="LLM_TRACES_STATE",
        description="Folder of the embedded stores and of Dagster's records. `make` sets it: "
        "give another one on its command line, `make run LLM_TRACES_STATE=/srv/traces`.",
    )
    operational_database_url: Annotated[SecretStr, AfterValidator(_libpq_url)] | None = Field(
        default=None,
        alias="OPERATIONAL_DATABASE_URL",
        description="URL of the operational PostgreSQL, as libpq takes it or the agent server. A "
        "role with `SELECT` on the tables is enough. A standby will do: it is waited for, ten "
        "minutes at most, until it has replayed the end of the hours. Unset: the demo.",
    )
    first_hour: Annotated[datetime | None, BeforeValidator(_hour)] = Field(
        default=None,
        alias="LLM_TRACES_START",
        description="First hour that can be loaded, such as `2026-03-01-00:00`, UTC. Must be set "
        "where `OPERATIONAL_DATABASE_URL` is. Unset: the demo's first hour.",
    )
    trace_batch_uri: Annotated[str, AfterValidator(_batch_uri)] = Field(
        alias="TRACE_BATCH_URI",
        description="Where the Parquet batches and the billing history lie: a folder, or "
        "`s3://bucket/prefix`.",
    )
    aws_endpoint_url: Annotated[str | None, AfterValidator(_s3_endpoint)] = Field(
        default=None,
        alias="AWS_ENDPOINT_URL",
        description="`http(s)://host:port` of another store that speaks S3. Unset: AWS.",
    )
    aws_endpoint_url_s3: Annotated[str | None, AfterValidator(_s3_endpoint)] = Field(
        default=None,
        alias="AWS_ENDPOINT_URL_S3",
        description="The same as `AWS_ENDPOINT_URL`, and comes before it.",
    )
    clickhouse_endpoint: Annotated[str, AfterValidator(_clickhouse_endpoint)] = Field(
        alias="CLICKHOUSE_ENDPOINT",
        description="`http(s)://host:port` of a server, or `chdb:///path` for the embedded engine. "
        "Without a port it is 8443, or 8123 for http.",
    )
    clickhouse_username: str = Field(
        default="default", alias="CLICKHOUSE_USERNAME", description="User of the ClickHouse server."
    )
    clickhouse_password: SecretStr = Field(
        default=SecretStr(""),
        alias="CLICKHOUSE_PASSWORD",
        description="Password of that user. Never logged.",
    )
    clickhouse_database: str = Field(
        default="default",
        alias="CLICKHOUSE_DATABASE",
        description="Database of `llm_traces`. Made if it is missing.",
    )
    clickhouse_cluster: str | None = Field(
        default=None,
        alias="CLICKHOUSE_CLUSTER",
        description="Cluster of that server over which `llm_traces` is spread. Unset: one server, "
        "or ClickHouse Cloud.",
    )
    clickhouse_s3_role_arn: Annotated[str | None, AfterValidator(_role)] = Field(
        default=None,
        alias="CLICKHOUSE_S3_ROLE_ARN",
        description="Role that ClickHouse Cloud takes to read the bucket of the batches. Unset: "
        "the server's own access to it.",
    )
    clickhouse_ca_cert: Annotated[Path, AfterValidator(_file)] | None = Field(
        default=None,
        alias="CLICKHOUSE_CA_CERT",
        description="PEM file of the authority that signed the server's certificate. Unset: the "
        "usual authorities.",
    )
    clickhouse_client_cert: Annotated[Path, AfterValidator(_file)] | None = Field(
        default=None,
        alias="CLICKHOUSE_CLIENT_CERT",
        description="PEM file of a client certificate. Without a password, the certificate says "
        "who the user is.",
    )
    clickhouse_client_key: Annotated[Path, AfterValidator(_file)] | None = Field(
        default=None,
        alias="CLICKHOUSE_CLIENT_KEY",
        description="PEM file of the client certificate's key, where the key is not in the same "
        "file.",
    )
    clickhouse_verify: bool = Field(
        default=True,
        alias="CLICKHOUSE_VERIFY",
        description="`false` takes any certificate of the server, so that anybody in between can "
        "read the password.",
    )
    schedule_minute: int = Field(
        default=10,
        ge=0,
        le=59,
        alias="LLM_TRACES_SCHEDULE_MINUTE",
        description="Minute of the hour at which the schedule loads the hour that closed, 0 to 59.",
    )
    reconcile_days: int = Field(
        default=7,
        ge=1,
        alias="LLM_TRACES_RECONCILE_DAYS",
        description="How many days back hours are compared with the source and with ClickHouse.",
    )
    retention_days: int | None = Field(
        default=None,
        ge=1,
        alias="LLM_TRACES_RETENTION_DAYS",
        description="Days that ClickHouse keeps traces, whole UTC days. Unset: for ever.",
    )
    batch_retention_days: int | None = Field(
        default=None,
        ge=1,
        alias="TRACE_BATCH_RETENTION_DAYS",
        description="Days that batches are kept, whole UTC days. Unset: for ever.",
    )
    extract_connections: int = Field(
        default=2,
        ge=1,
        le=64,
        alias="EXTRACT_CONNECTIONS",
        description="Connections to PostgreSQL that share the reading of an hour, 1 to 64.",
    )
    payloads: Literal["all", "batches", "none"] = Field(
        default="all",
        alias="LLM_TRACES_PAYLOADS",
        description="Where the text of requests and responses is kept: in `all` stores, only in "
        "the `batches`, or in `none`.",
    )
    redact: Annotated[str | None, AfterValidator(_function_name)] = Field(
        default=None,
        alias="LLM_TRACES_REDACT",
        description="`module:function` that is given a text and returns what of the text may be "
        "kept. Unset: all of it.",
    )
    price_file: Annotated[Path, AfterValidator(_file)] | None = Field(
        default=None,
        alias="LLM_TRACES_PRICES",
        description="TOML file of prices that come before the packaged ones. Unset: the packaged "
        "ones alone.",
    )

    alert_webhook_url: Annotated[SecretStr, AfterValidator(_webhook)] | None = Field(
        default=None,
        alias="ALERT_WEBHOOK_URL",
        description="Where failed runs, failed checks and late schedules are posted as JSON, such "
        "as a webhook of Slack. Never logged. Unset: nobody is told.",
    )
    dagster_ui_url: Annotated[str, AfterValidator(_ui_url)] = Field(
        default="http://localhost:3000",
        alias="DAGSTER_UI_URL",
        description="Address of Dagster's UI, for the links in what is posted.",
    )
    owners: Annotated[tuple[str, ...], BeforeValidator(_owners)] = Field(
        default=(),
        alias="LLM_TRACES_OWNERS",
        description="Owners of the assets and jobs, as Dagster shows them: addresses and teams, "
        "such as `oncall@example.com,team:data`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _embedded_defaults(cls, values: dict[str, Any]) -> dict[str, Any]:
        state = Path(values.get("LLM_TRACES_STATE") or ".data").absolute()
        embedded = {
            "TRACE_BATCH_URI": str(state / "batches"),
            "CLICKHOUSE_ENDPOINT": f"{CHDB_SCHEME}{state / 'clickhouse'}",
        }
        return {**embedded, **values, "LLM_TRACES_STATE": state}

    @model_validator(mode="after")
    def _start_is_known(self) -> Self:
        if self.operational_database_url is not None and self.first_hour is None:
            raise ValueError(
                "LLM_TRACES_START: must be set where OPERATIONAL_DATABASE_URL is: "
                "the first hour that can be loaded, such as 2026-03-01-00:00"
            )
        return self

    @model_validator(mode="after")
    def _cluster_has_servers(self) -> Self:
        if self.clickhouse_cluster and self.is_embedded:
            raise ValueError(
                "CLICKHOUSE_CLUSTER: needs the http(s)://host:port of a node in CLICKHOUSE_ENDPOINT"
            )
        return self

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the settings; a variable that is set to nothing counts as unset.

        Raises:
            SettingsError: a value is wrong. One line, which names the variable and never the value
                of a secret.
        """
        names = {field.alias for field in cls.model_fields.values()}
        values = {name: text for name, text in environment.items() if name in names and text}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            name = f"{first['loc'][0]}: " if first["loc"] else ""
            raise SettingsError(name + first["msg"].removeprefix("Value error, ")) from None

    @property
    def is_in_bucket(self) -> bool:
        """Whether the batches lie in a bucket; else in a folder of this machine."""
        return self.trace_batch_uri.startswith(S3_SCHEME)

    @property
    def is_embedded(self) -> bool:
        """Whether ClickHouse is the embedded engine; else a server."""
        return self.clickhouse_endpoint.startswith(CHDB_SCHEME)

    @property
    def s3_endpoint(self) -> str | None:
        """``http(s)://host:port`` of the object store that holds the batches; None: AWS."""
        return self.aws_endpoint_url_s3 or self.aws_endpoint_url

    @property
    def is_demo(self) -> bool:
        """Whether the source is the embedded PostgreSQL with its made-up traffic."""
        return self.operational_database_url is None
