"""What ``deploy/`` holds, and its services as processes of this machine."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from llm_trace_pipeline.hours import key_of
from tests.harness.processes import wait_for
from tests.harness.webserver import launch_run, query

ROOT = Path(__file__).parents[2]


DEPLOY = ROOT / "deploy"


COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


INSTANCE: dict[str, Any] = yaml.safe_load((DEPLOY / "dagster.yaml").read_text(encoding="utf-8"))


VALUES: dict[str, Any] = yaml.safe_load((DEPLOY / "values.yaml").read_text(encoding="utf-8"))


EXAMPLE = (DEPLOY / ".env.example").read_text(encoding="utf-8")


SERVICES = ("code-server", "dagster-daemon", "dagster-webserver")


DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


HOME_IN_IMAGE = "/opt/dagster/dagster_home"


ASSETS = ("trace_batches", "llm_traces", "llm_usage_hourly")


LAUNCH = """mutation ($backfill: LaunchBackfillParams!) {
    launchPartitionBackfill(backfillParams: $backfill) { __typename
        ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""


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
class Services:
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
        return query(self.ports["3000"], text, **variables)

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
        return launch_run(self.ports["3000"], "llm_traces", first, last)
