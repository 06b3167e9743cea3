"""``dev``: the Dagster UI with the hourly schedule and, in the demo, new traffic for it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from types import FrameType

import click
from adbc_driver_postgresql import dbapi

from llm_trace_pipeline.cli.instance import WORKSPACE, use_instance
from llm_trace_pipeline.demo.postgres import embedded_postgres
from llm_trace_pipeline.demo.traffic import add_traffic, first_hour_of
from llm_trace_pipeline.errors import PipelineError, SettingsError
from llm_trace_pipeline.settings import Settings

_TRAFFIC_EVERY_SECONDS = 60.0
_PATIENCE_SECONDS = 20.0


def serve_dagster(port: str) -> None:
    """Run Dagster until Ctrl-C or SIGTERM."""
    number = _free_port(port)
    settings = Settings.from_environment()
    use_instance(settings)
    os.environ.setdefault("DAGSTER_UI_URL", f"http://localhost:{number}")
    _on_signals(signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        click.echo(
            f"Open http://localhost:{number} in half a minute; there: Jobs, hourly_llm_traces, "
            "Materialize all, choose an hour, Launch.\nThe schedule loads each hour as it closes. "
            "Ctrl-C ends it."
        )
        if settings.is_demo:
            click.echo("Starting the embedded PostgreSQL, making demo traffic up to now")
            click.echo(f"{_add_traffic(settings):,} new traces")
        _serve(settings, number)


def _serve(settings: Settings, port: int) -> None:
    command = [sys.executable, "-W", "ignore:Function `dev_command`", "-m", "dagster", "dev"]
    # In a session of its own: Ctrl-C reaches the whole foreground, and Dagster's services, told to
    # end by both the terminal and their parent, would be cut in the middle of ending.
    with subprocess.Popen(  # noqa: S603 -- our own interpreter
        [*command, "-w", str(WORKSPACE), "--port", str(port)], start_new_session=True
    ) as dagster:
        try:
            while True:
                try:
                    status = dagster.wait(_TRAFFIC_EVERY_SECONDS)
                except subprocess.TimeoutExpired:
                    if settings.is_demo:
                        _top_up(settings)
                else:
                    raise PipelineError(f"Dagster ended with exit status {status}; see above")
        except KeyboardInterrupt:
            _on_signals(signal.SIG_IGN)
            dagster.send_signal(signal.SIGINT)
            dagster.wait()
            _end_runs(dagster.pid)


def _end_runs(group: int) -> None:
    """End the runs Dagster leaves behind; they record their failure and give up their pools."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.1)  # a group of processes cannot be waited for
        os.killpg(group, signal.SIGKILL)


def _on_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    # Set before Dagster is started: what it inherits from a script's background is SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handler)


def _free_port(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 2**16):
        raise SettingsError(f"PORT: must be a port such as 3000, not {text!r}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(text)))
        except OSError as error:
            raise SettingsError(
                f"PORT: {text} cannot be used ({error.strerror}); another one: make dev PORT=3001"
            ) from None
    return int(text)


def _add_traffic(settings: Settings) -> int:
    url = embedded_postgres(settings.state_dir)
    return add_traffic(url, first_hour_of(settings), datetime.now(UTC))


def _top_up(settings: Settings) -> None:
    """Keep the demo's traffic up to now; what fails is tried again a minute later."""
    try:
        _add_traffic(settings)
    except (PipelineError, dbapi.Error) as error:
        click.echo(f"No demo traffic was added: {error}")
