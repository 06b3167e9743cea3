"""What a trace says beside its response: provider and model, tags, billing context.

A text that is no JSON, or has another shape than expected, says nothing.
"""

from typing import Any, Final, NamedTuple, TypedDict

import msgspec

from llm_trace_pipeline.trace.json_values import object_of, parse, string_of, text_of


class Names(NamedTuple):
    """The names in a `llm_config` or a request; '' stands for missing, empty or not a string."""

    provider: str
    model: str
    provider_category: str
    provider_name: str = ""
    handle: str = ""
    endpoint: str = ""  # URL


class _Named(TypedDict, total=False):
    model_endpoint_type: Any
    model: Any
    provider_category: Any
    provider_name: Any
    handle: Any
    model_endpoint: Any


_KEYS: Final = tuple(_Named.__annotations__)  # in the order of Names
_NAMED: Final = msgspec.json.Decoder(_Named)
_ANY: Final = msgspec.json.Decoder()


def read_names(text: bytes | memoryview) -> Names:
    """Read the names that a `llm_config` states; a `request_json` states the model alone."""
    return Names(*map(string_of, map(object_of(parse(_NAMED, text)).get, _KEYS)))


def read_agent_tags(text: bytes | memoryview) -> list[str]:
    """Read the tags of an agent: nulls are left out, a tag that is no string is its JSON text."""
    tags = parse(_ANY, text)
    return [text_of(tag) for tag in tags if tag is not None] if isinstance(tags, list) else []


def read_billing_context(text: bytes | memoryview) -> tuple[str, str, str] | None:
    """Read plan type, cost source and customer id; None if the context states none of them."""
    context = object_of(parse(_ANY, text))
    plan_type, cost_source, customer_id = (
        "" if isinstance(value, bool | dict | list) else text_of(value)
        for value in map(context.get, ("plan_type", "cost_source", "customer_id"))
    )
    stated = plan_type or cost_source or customer_id
    return (plan_type, cost_source, customer_id) if stated else None
