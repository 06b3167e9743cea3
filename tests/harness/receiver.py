"""A receiver of alerts, on a port of this machine."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

PATH = "/services/T0/B0/s3cr3t-of-the-webhook"


class Receiver:
    """Keeps what is posted; answers with a status that a test sets."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}{PATH}"
        self.status = 200
        self.posted: list[dict[str, Any]] = []
        self.refused: list[dict[str, Any]] = []

    def take(self) -> list[dict[str, Any]]:
        """Return what was posted since the last time."""
        taken, self.posted = self.posted, []
        return taken


@contextmanager
def running_receiver() -> Iterator[Receiver]:
    """Run a receiver until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert (self.path, self.headers["Content-Type"]) == (PATH, "application/json")
            (receiver.posted if receiver.status < 400 else receiver.refused).append(body)
            self.send_response(receiver.status)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- its name there
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver(server.server_port)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
