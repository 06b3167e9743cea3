"""The environment: every wrong value is one line that names the variable, and no secret shows."""

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from llm_trace_pipeline.errors import SettingsError
from llm_trace_pipeline.settings import Settings

SECRET = "hunter2"  # noqa: S105 -- nobody's
URL = f"postgresql://reader:{SECRET}@db.internal/letta"
VARIABLES = {str(field.alias) for field in Settings.model_fields.values()}

WRONG = [
    ("LLM_TRACES_STATE", "/"),
    *(("LLM_TRACES_STATE", f"/srv/a{character}b") for character in '?%"$`'),
    ("LLM_TRACES_PAYLOADS", "clickhouse"),
    ("LLM_TRACES_REDACT", "my_company.privacy"),
    ("TRACE_BATCH_URI", "gs://bucket/traces"),
    ("TRACE_BATCH_URI", "abfs://container/traces"),
    ("TRACE_BATCH_URI", "s3://"),
    ("TRACE_BATCH_URI", "s3:///traces"),
    ("TRACE_BATCH_URI", "s3://Bucket/traces"),
    ("TRACE_BATCH_URI", "s3://bucket/tra ces"),
    ("TRACE_BATCH_URI", "s3://bucket/*"),
    ("TRACE_BATCH_URI", "s3://bucket//traces"),
    ("TRACE_BATCH_URI", "s3://bucket/../traces"),
    ("TRACE_BATCH_URI", f"s3://key:{SECRET}@bucket/traces"),
    ("AWS_ENDPOINT_URL", "minio.internal:9000"),
    ("AWS_ENDPOINT_URL", f"https://key:{SECRET}@minio.internal:9000"),
    ("AWS_ENDPOINT_URL_S3", "https://minio.internal/traces"),
    ("LLM_TRACES_RECONCILE_DAYS", "0"),
    ("LLM_TRACES_RETENTION_DAYS", "0"),
    ("TRACE_BATCH_RETENTION_DAYS", "a week"),
    ("CLICKHOUSE_CLUSTER", "of_the_embedded_engine"),
    ("CLICKHOUSE_ENDPOINT", "http://localhost:abc"),
    ("CLICKHOUSE_ENDPOINT", "http://localhost:8123/path"),
    ("CLICKHOUSE_ENDPOINT", "clickhouse.internal:8123"),
    ("CLICKHOUSE_ENDPOINT", "tcp://clickhouse.internal:9000"),
    ("CLICKHOUSE_ENDPOINT", "https://"),
    ("CLICKHOUSE_ENDPOINT", "http://[::1"),
    ("CLICKHOUSE_ENDPOINT", f"https://default:{SECRET}@clickhouse.internal:8443"),
    ("CLICKHOUSE_ENDPOINT", f"https://default:{SECRET}@"),
    ("CLICKHOUSE_ENDPOINT", "chdb://relative/path"),
    ("CLICKHOUSE_ENDPOINT", "chdb:///srv/a?b"),
    ("CLICKHOUSE_S3_ROLE_ARN", "llm-traces-reader"),
    ("CLICKHOUSE_S3_ROLE_ARN", "arn:aws:iam::123456789012:role/it's"),
    ("CLICKHOUSE_CA_CERT", "/no/such/ca.pem"),
    ("CLICKHOUSE_CLIENT_CERT", "/no/such/client.pem"),
    ("CLICKHOUSE_CLIENT_KEY", "/no/such/client.key"),
    ("CLICKHOUSE_VERIFY", "perhaps"),
    ("LLM_TRACES_START", "2026-03-01"),
    ("LLM_TRACES_START", "2026-03-01-09:30"),
    ("LLM_TRACES_START", "2026-02-30-00:00"),
    ("LLM_TRACES_START", "2026-03-01T09:00:00Z"),
    ("LLM_TRACES_START", "yesterday\nat noon"),
    ("LLM_TRACES_SCHEDULE_MINUTE", "60"),
    ("LLM_TRACES_SCHEDULE_MINUTE", "-1"),
    ("LLM_TRACES_SCHEDULE_MINUTE", "ten"),
    ("EXTRACT_CONNECTIONS", "0"),
    ("LLM_TRACES_PRICES", "/no/such/file"),
    ("EXTRACT_CONNECTIONS", "1.5"),
    ("EXTRACT_CONNECTIONS", "many"),
    ("ALERT_WEBHOOK_URL", f"hooks.example.com/{SECRET}"),
    ("ALERT_WEBHOOK_URL", f"https://hooks.example.com:port/{SECRET}"),
    ("ALERT_WEBHOOK_URL", f"https://hooks.example.com/ {SECRET}"),
    ("DAGSTER_UI_URL", "dagster.internal:3000"),
    ("DAGSTER_UI_URL", "http://dagster.internal/?page=1"),
    ("LLM_TRACES_OWNERS", "oncall"),
    ("LLM_TRACES_OWNERS", "oncall@example.com, team:"),
]
# Whether these are right is for the file system, PostgreSQL and ClickHouse to say.
ANY_TEXT = {
    "OPERATIONAL_DATABASE_URL",
    "CLICKHOUSE_USERNAME",
    "CLICKHOUSE_PASSWORD",
    "CLICKHOUSE_DATABASE",
}


def refusal(environment: dict[str, str]) -> str:
    """Return the message by which an environment is refused."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment(environment)
    return str(caught.value)


def without_ours(**values: str) -> dict[str, str]:
    """Return this process's environment with no setting but the given ones."""
    return {name: text for name, text in os.environ.items() if name not in VARIABLES} | values


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{n}={v}" for n, v in WRONG])
def test_a_wrong_value_is_one_line_that_names_its_variable(name: str, value: str) -> None:
    message = refusal({name: value})
    assert message.startswith(f"{name}: ")
    assert "\n" not in message
    assert SECRET not in message


@pytest.mark.parametrize(
    "name",
    ["CLICKHOUSE_CA_CERT", "CLICKHOUSE_CLIENT_CERT", "CLICKHOUSE_CLIENT_KEY", "LLM_TRACES_PRICES"],
)
def test_a_file_that_is_missing_is_named(name: str) -> None:
    assert refusal({name: "/no/such/file"}) == f"{name}: must be a file, not '/no/such/file'"


def test_a_wrong_value_of_every_variable_is_tried() -> None:
    assert {name for name, _ in WRONG} == VARIABLES - ANY_TEXT


def test_a_wrong_value_beside_secrets_shows_none_of_them() -> None:
    message = refusal(
        {
            "OPERATIONAL_DATABASE_URL": URL,
            "CLICKHOUSE_PASSWORD": SECRET,
            "LLM_TRACES_START": "2026-03-01-00:00",
            "EXTRACT_CONNECTIONS": "many",
        }
    )
    assert message.startswith("EXTRACT_CONNECTIONS: ")
    assert SECRET not in message


def test_secrets_do_not_show_in_the_settings_themselves() -> None:
    settings = Settings.from_environment(
        {
            "OPERATIONAL_DATABASE_URL": URL,
            "CLICKHOUSE_PASSWORD": SECRET,
            "LLM_TRACES_START": "2026-03-01-00:00",
        }
    )
    assert SECRET not in f"{settings!r} {settings} {settings.model_dump_json()}"
    assert settings.operational_database_url is not None
    assert settings.operational_database_url.get_secret_value() == URL
    assert settings.clickhouse_password.get_secret_value() == SECRET


def test_a_variable_that_is_set_to_nothing_counts_as_unset() -> None:
    assert Settings.from_environment(dict.fromkeys(VARIABLES, "")) == Settings.from_environment({})


def test_variables_of_others_are_none_of_ours() -> None:
    assert Settings.from_environment({"PATH": "/bin"}) == Settings.from_environment({})


def test_without_a_database_it_is_the_demo() -> None:
    assert Settings.from_environment({}).is_demo
    assert not Settings.from_environment(
        {"OPERATIONAL_DATABASE_URL": URL, "LLM_TRACES_START": "2026-03-01-00:00"}
    ).is_demo


def test_a_database_needs_a_first_hour() -> None:
    message = refusal({"OPERATIONAL_DATABASE_URL": URL})
    assert message.startswith("LLM_TRACES_START: must be set where OPERATIONAL_DATABASE_URL is")
    assert "\n" not in message
    assert SECRET not in message


def test_the_first_hour_is_one_of_utc() -> None:
    settings = Settings.from_environment({"LLM_TRACES_START": "2026-03-01-09:00"})
    assert settings.first_hour == datetime(2026, 3, 1, 9, tzinfo=UTC)


def test_the_embedded_stores_lie_in_the_state_folder(tmp_path: Path) -> None:
    settings = Settings.from_environment({"LLM_TRACES_STATE": str(tmp_path)})
    assert settings.state_dir == tmp_path
    assert settings.trace_batch_uri == str(tmp_path / "batches")
    assert settings.clickhouse_endpoint == f"chdb://{tmp_path / 'clickhouse'}"


def test_a_relative_folder_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.from_environment({"LLM_TRACES_STATE": "state", "TRACE_BATCH_URI": "traces"})
    assert settings.clickhouse_endpoint == f"chdb://{tmp_path}/state/clickhouse"
    assert settings.trace_batch_uri == str(tmp_path / "traces")


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("postgresql+asyncpg://u:p@db/letta", "postgresql://u:p@db/letta"),
        ("postgresql+pg8000://u:p@db:5432/letta", "postgresql://u:p@db:5432/letta"),
        ("postgres+psycopg2://u@db/letta", "postgresql://u@db/letta"),
        ("postgres://u@db/letta?ssl=require", "postgresql://u@db/letta?sslmode=require"),
        ("postgres://u@db/letta?a=b&ssl=true", "postgresql://u@db/letta?a=b&sslmode=require"),
        ("postgres://u@db/letta?ssl=false&a=b", "postgresql://u@db/letta?sslmode=disable&a=b"),
        ("postgresql:///letta?ssl=verify-full", "postgresql:///letta?sslmode=verify-full"),
        ("postgresql://u@db/ssl=require", "postgresql://u@db/ssl=require"),
        ("postgresql://u@h1:1,[::1]:2/letta", "postgresql://u@h1:1,[::1]:2/letta"),
        ("postgresql:///letta?password=p@ss", "postgresql:///letta?password=p@ss"),
        # libpq takes these as they are.
        ("postgresql+asyncpg://u:a:b#c?ssl=d@db/letta", "postgresql://u:a:b#c?ssl=d@db/letta"),
        ("host=db dbname=letta", "host=db dbname=letta"),
    ],
)
def test_a_url_of_a_driver_is_read_as_what_it_means(url: str, read: str) -> None:
    settings = Settings.from_environment(
        {"OPERATIONAL_DATABASE_URL": url, "LLM_TRACES_START": "2026-03-01-00:00"}
    )
    assert settings.operational_database_url is not None
    assert settings.operational_database_url.get_secret_value() == read


@pytest.mark.parametrize(
    ("password", "raw", "encoded"),
    [
        (f"{SECRET}@x", "@", "%40"),
        (f"x@{SECRET}", "@", "%40"),
        (f"x/{SECRET}", "/", "%2F"),
        (f"{SECRET}%x", "%", "%25"),
        (f"{SECRET}%", "%", "%25"),
        (f"1/{SECRET}@{SECRET}", "/", "%2F"),
    ],
)
def test_a_password_that_is_no_part_of_a_url_is_told_by_its_character(
    password: str, raw: str, encoded: str
) -> None:
    url = f"postgresql+asyncpg://reader:{password}@db.internal/letta?ssl=require"
    assert refusal({"OPERATIONAL_DATABASE_URL": url}) == (
        f"OPERATIONAL_DATABASE_URL: must have {raw} as {encoded} in its user and its password"
    )


@pytest.mark.parametrize(
    ("uri", "kept"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://my.bucket-1/some/pre_fix=1.0/", "s3://my.bucket-1/some/pre_fix=1.0"),
    ],
)
def test_a_bucket_may_have_a_prefix(uri: str, kept: str) -> None:
    assert Settings.from_environment({"TRACE_BATCH_URI": uri}).trace_batch_uri == kept


def test_the_endpoint_of_s3_comes_before_that_of_all_services() -> None:
    of_all, of_s3 = "http://localhost:9000", "https://minio.internal"
    assert Settings.from_environment({}).s3_endpoint is None
    one = {"AWS_ENDPOINT_URL": f"{of_all}/"}
    assert Settings.from_environment(one).s3_endpoint == of_all
    both = one | {"AWS_ENDPOINT_URL_S3": of_s3}
    assert Settings.from_environment(both).s3_endpoint == of_s3


def test_dagster_shows_a_wrong_first_hour_as_the_last_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import llm_trace_pipeline.definitions"],
        env=without_ours(LLM_TRACES_START="2026-03-01"),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "llm_trace_pipeline.errors.SettingsError: LLM_TRACES_START: must be an hour such as "
        "2026-03-01-09:00 (UTC), not '2026-03-01'"
    )


def test_the_owners_are_those_of_every_asset_and_job() -> None:
    code = (
        "from llm_trace_pipeline.definitions import defs\n"
        "nodes = defs.resolve_asset_graph().asset_nodes\n"
        "print({tuple(node.owners) for node in nodes})\n"
        "jobs = [job for job in defs.resolve_all_job_defs() if job.name[0] != '_']\n"
        "print({tuple(job.owners or ()) for job in jobs})"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=without_ours(LLM_TRACES_OWNERS="oncall@example.com, team:data"),
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["{('oncall@example.com', 'team:data')}"] * 2
