"""What is posted to ``ALERT_WEBHOOK_URL``. The address is a secret: no line of text has it."""

import http.client
import urllib.error
import urllib.request
from typing import Literal

from pydantic import BaseModel, SecretStr, computed_field

from llm_trace_pipeline.errors import PipelineError

_SECONDS = 5.0
_LENGTH = 1000  # of a message; Slack cuts a text at 4,000


class WebhookError(PipelineError):
    """The receiver did not take an alert."""


class Alert(BaseModel):
    """One thing that somebody has to know, as the receiver gets it."""

    kind: Literal["run_failed", "check_failed", "schedule_late"]
    title: str
    job: str
    hours: list[str]
    message: str
    what_to_do: str
    url: str

    @computed_field  # type: ignore[prop-decorator]  # mypy knows no property below a decorator
    @property
    def text(self) -> str:
        """All of it to read, which Slack and its like show as it is."""
        return "\n".join([self.title, self.message, f"Do: {self.what_to_do}", self.url])


def first_line(text: str) -> str:
    """Return the line of a message that names an hour, else its first line."""
    lines = text.strip().splitlines() or [""]
    return next((line for line in lines if line.startswith("hour ")), lines[0])[:_LENGTH]


def post(address: SecretStr, alert: Alert) -> None:
    """Post an alert as JSON.

    Raises:
        WebhookError: the receiver is down, or answered that it did not take the alert.
    """
    request = urllib.request.Request(  # noqa: S310 -- the settings take http and https alone
        address.get_secret_value(),
        data=alert.model_dump_json().encode(),
        headers={"Content-Type": "application/json", "User-Agent": "llm-trace-pipeline"},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS):  # noqa: S310 -- as above
            return
    except urllib.error.HTTPError as error:
        reason = f"HTTP status {error.code}"
    except urllib.error.URLError as error:
        reason = type(error.reason).__name__ if error.reason else "no answer"
    except (OSError, http.client.HTTPException) as error:
        reason = type(error).__name__
    # From None: a library's own words may have the address.
    raise WebhookError(
        f"ALERT_WEBHOOK_URL did not take an alert ({reason}); it is posted again in a minute"
    ) from None
