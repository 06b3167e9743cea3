"""The policy of payloads: keep their whole text, keep it as the user's function leaves it, or not.

Only the user's own function is imported here; no file or other store is read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Self

import pyarrow as pa

from llm_trace_pipeline.errors import PipelineError, SettingsError
from llm_trace_pipeline.settings import Settings


class RedactionError(PipelineError):
    """The user's function failed; the message does not hold the text it was given."""


@dataclass(frozen=True)
class PayloadPolicy:
    """Decides which text of requests, responses and error messages a batch keeps."""

    keeps_payloads: bool = True  # False: requests and responses become '', error messages stay
    redact: Callable[[str], str] | None = None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the policy that ``LLM_TRACES_PAYLOADS`` and ``LLM_TRACES_REDACT`` set.

        Raises:
            SettingsError: the function cannot be imported.
        """
        name, function = settings.redact, None
        if name:
            module, _, attribute = name.partition(":")
            try:
                function = getattr(import_module(module), attribute)
            except (ImportError, AttributeError) as error:
                raise SettingsError(
                    f"LLM_TRACES_REDACT: {name} cannot be imported: {error}"
                ) from None
            if not callable(function):
                raise SettingsError(f"LLM_TRACES_REDACT: {name} is no function")
        return cls(settings.payloads != "none", function)

    @property
    def keeps_all(self) -> bool:
        """Whether every text stays as it is."""
        return self.keeps_payloads and self.redact is None

    def kept(self, payloads: pa.StringArray) -> pa.StringArray:
        """Return the text that is kept of requests or responses.

        Raises:
            RedactionError: the user's function failed.
        """
        if self.keeps_payloads:
            return self.redacted(payloads)
        return pa.repeat(pa.scalar("", pa.string()), len(payloads))

    def redacted(self, texts: pa.StringArray) -> pa.StringArray:
        """Return texts as the user's function leaves them; an empty text does not reach it.

        Raises:
            RedactionError: the user's function failed.
        """
        if self.redact is None:
            return texts
        try:
            kept = [text and self.redact(text) for text in texts.to_pylist()]
        except Exception as error:  # noqa: BLE001 -- of the user's function; it may quote the text
            raise RedactionError(
                f"LLM_TRACES_REDACT: the function raised {type(error).__name__}; nothing of this "
                "hour was written: mend it, then materialize trace_batches again"
            ) from None
        if not all(isinstance(text, str) for text in kept):
            raise RedactionError("LLM_TRACES_REDACT: the function must return a str, always")
        return pa.array(kept, pa.string())


KEEP_ALL = PayloadPolicy()
