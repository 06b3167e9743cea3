"""What the response of a call says, read fast: plain answers by types, others by the rules."""

from typing import Annotated, Any, Final

import msgspec

from llm_trace_pipeline.trace.json_values import INT64_MAX
from llm_trace_pipeline.trace.usage import UINT64_MAX, ResponseReading, read_any_response


def read_response(text: bytes | memoryview) -> ResponseReading:
    """Read usage, error and model, whatever the provider."""
    return read_plain(text) or read_any_response(text)


# Most responses are answers without anything that is out of the ordinary, in one of three
# vocabularies. msgspec decodes these into structs; whatever does not fit them in type or value (an
# error, usage in another place, a count that is a string) is left to the rules above.

_Count = Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)] | None


class _PlainDetails(msgspec.Struct):
    cached_tokens: _Count = None
    cache_write_tokens: _Count = None
    reasoning_tokens: _Count = None
    thinking_tokens: _Count = None


class PlainUsage(msgspec.Struct):
    """The usage object of a plain answer."""

    prompt_tokens: _Count = None
    completion_tokens: _Count = None
    total_tokens: _Count = None
    prompt_tokens_details: _PlainDetails | list[Any] | None = None  # Gemini's is a list
    completion_tokens_details: _PlainDetails | None = None
    cached_tokens: _Count = None
    prompt_cache_hit_tokens: _Count = None
    reasoning_tokens: _Count = None
    input_tokens: _Count = None
    output_tokens: _Count = None
    cache_read_input_tokens: _Count = None
    cache_creation_input_tokens: _Count = None
    input_tokens_details: _PlainDetails | None = None
    input_token_details: _PlainDetails | None = None
    output_tokens_details: _PlainDetails | None = None
    prompt_token_count: _Count = None
    tool_use_prompt_token_count: _Count = None
    candidates_token_count: _Count = None
    thoughts_token_count: _Count = None
    total_token_count: _Count = None
    cached_content_token_count: _Count = None
    iterations: None = None


class _PlainChoice(msgspec.Struct):
    usage: None = None
    error: None = None


class _PlainResponse(msgspec.Struct):
    usage: PlainUsage | None = None
    usage_metadata: PlainUsage | None = None
    model: str | None = None
    model_version: str | None = None
    object: str | None = None
    type: str | None = None
    choices: list[_PlainChoice] | None = None
    usageMetadata: None = None  # noqa: N815 -- Gemini's
    modelVersion: None = None  # noqa: N815 -- Gemini's
    meta_info: None = None
    invocation_metrics: None = msgspec.field(default=None, name="amazon-bedrock-invocationMetrics")
    prompt_eval_count: None = None
    eval_count: None = None
    x_groq: None = None
    response: None = None
    result: None = None
    error: None = None
    error_type: None = None
    aws_type: None = msgspec.field(default=None, name="__type")
    detail: None = None


_PLAIN: Final = msgspec.json.Decoder(_PlainResponse)
_NO_DETAILS: Final = _PlainDetails()


def read_plain(text: bytes | memoryview) -> ResponseReading | None:
    """Read a plain answer; None where it is not one."""
    try:
        answer = _PLAIN.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    usage = answer.usage or answer.usage_metadata
    if usage is None or "error" in (answer.object, answer.type):
        return None
    if usage.prompt_tokens is not None or usage.completion_tokens is not None:
        tokens = _plain_chat(usage)
    elif (
        usage.input_tokens is not None
        or usage.output_tokens is not None
        or usage.cache_read_input_tokens is not None
        or usage.cache_creation_input_tokens is not None
    ):
        tokens = _plain_input(usage)
    elif usage.prompt_token_count is not None or usage.candidates_token_count is not None:
        tokens = _plain_gemini(usage)
    else:
        return None
    prompt, completion, total, cached, written, reasoning = tokens
    if reasoning and total == prompt + completion + reasoning:
        completion += reasoning
    if prompt + completion > UINT64_MAX:
        return None
    model = answer.model or answer.model_version or ""
    total = total or prompt + completion
    return ResponseReading(
        prompt, completion, total, cached, written, reasoning, False, "", "", model
    )


_PlainTokens = tuple[int, int, int | None, int | None, int | None, int | None]


def _plain_chat(usage: PlainUsage) -> _PlainTokens:
    details = usage.prompt_tokens_details
    if not isinstance(details, _PlainDetails):
        details = _NO_DETAILS
    reasoning = (usage.completion_tokens_details or _NO_DETAILS).reasoning_tokens
    return (
        usage.prompt_tokens or 0,
        usage.completion_tokens or 0,
        usage.total_tokens,
        _reported(
            details.cached_tokens,
            usage.cached_tokens,
            usage.prompt_cache_hit_tokens,
            usage.cache_read_input_tokens,
        ),
        _reported(details.cache_write_tokens, usage.cache_creation_input_tokens),
        _reported(reasoning, usage.reasoning_tokens),
    )


def _plain_input(usage: PlainUsage) -> _PlainTokens:
    read, written = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
    details = usage.input_tokens_details or _NO_DETAILS
    realtime = usage.input_token_details or _NO_DETAILS
    outputs = usage.output_tokens_details or _NO_DETAILS
    return (
        (usage.input_tokens or 0) + (read or 0) + (written or 0),
        usage.output_tokens or 0,
        usage.total_tokens,
        _reported(read, details.cached_tokens, realtime.cached_tokens),
        _reported(written, details.cache_write_tokens),
        _reported(outputs.reasoning_tokens, outputs.thinking_tokens),
    )


def _plain_gemini(usage: PlainUsage) -> _PlainTokens:
    return (
        (usage.prompt_token_count or 0) + (usage.tool_use_prompt_token_count or 0),
        (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0),
        usage.total_token_count,
        usage.cached_content_token_count,
        None,
        usage.thoughts_token_count,
    )


def _reported(*counts: int | None) -> int | None:
    """Return the first count that was reported."""
    for count in counts:
        if count is not None:
            return count
    return None
