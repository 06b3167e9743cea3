"""Dagster's web server, asked by GraphQL."""

import json
from contextlib import closing
from datetime import datetime
from http.client import HTTPConnection
from typing import Any

from llm_trace_pipeline.defs.runs import tags_of
from llm_trace_pipeline.hours import Window
from tests.harness.processes import PATIENCE_SECONDS

_LAUNCH = """mutation ($run: ExecutionParams!) { launchRun(executionParams: $run) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""


def query(port: int, text: str, **variables: Any) -> Any:
    """Return what the server answers."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)) as connection:
        body = json.dumps({"query": text, "variables": variables})
        connection.request("POST", "/graphql", body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
    assert "errors" not in answer, answer
    return answer["data"]


def launch_run(port: int, location: str, first: datetime, last: datetime) -> str:
    """Launch a run of the hourly job over a range of hours, and return its id."""
    tags = tags_of(Window.of([first, last]))
    run = {
        "selector": {
            "repositoryLocationName": location,
            "repositoryName": "__repository__",
            "jobName": "hourly_llm_traces",
        },
        "executionMetadata": {
            "tags": [{"key": name, "value": value} for name, value in tags.items()]
        },
    }
    launched = query(port, _LAUNCH, run=run)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    return str(launched["run"]["runId"])
