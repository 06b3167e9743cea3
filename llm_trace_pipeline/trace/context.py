"""What a trace says beside its response: configuration, requested model, tags, billing context.

A text that is no JSON, or has another shape than expected, says nothing.
"""

from typing import Any, Final, NamedTuple, TypedDict

import msgspec

from llm_trace_pipeline.trace.json_values import parse, string_of, text_of


class ConfigReading(NamedTuple):
    """What one `llm_config` says; '' stands for missing, empty or not a string."""

    provider: str
    model: str
    provider_category: str


class _Config(TypedDict, total=False):
    model_endpoint_type: Any
    model: Any
    provider_category: Any


class _Request(TypedDict, total=False):
    model: Any


_CONFIG: Final = msgspec.json.Decoder(_Config)
_REQUEST: Final = msgspec.json.Decoder(_Request)
_ANY: Final = msgspec.json.Decoder()


def read_llm_config(text: bytes | memoryview) -> ConfigReading:
    """Read provider, model and provider category of a `llm_config`."""
    config = parse(_CONFIG, text)
    if not isinstance(config, dict):
        return ConfigReading("", "", "")
    return ConfigReading(
        string_of(config.get("model_endpoint_type")),
        string_of(config.get("model")),
        string_of(config.get("provider_category")),
    )


def read_request_model(text: bytes | memoryview) -> str:
    """Read the model that a `request_json` asks for; '' if it names none."""
    request = parse(_REQUEST, text)
    return string_of(request.get("model")) if isinstance(request, dict) else ""


def read_agent_tags(text: bytes | memoryview) -> list[str]:
    """Read the tags of an agent: nulls are left out, a tag that is no string is its JSON text."""
    tags = parse(_ANY, text)
    return [text_of(tag) for tag in tags if tag is not None] if isinstance(tags, list) else []


def read_billing_context(text: bytes | memoryview) -> tuple[str, str, str] | None:
    """Read plan type, cost source and customer id; None if the context states none of them."""
    context = parse(_ANY, text)
    if not isinstance(context, dict):
        return None
    plan_type, cost_source, customer_id = (
        "" if isinstance(value, bool | dict | list) else text_of(value)
        for value in map(context.get, ("plan_type", "cost_source", "customer_id"))
    )
    stated = plan_type or cost_source or customer_id
    return (plan_type, cost_source, customer_id) if stated else None
