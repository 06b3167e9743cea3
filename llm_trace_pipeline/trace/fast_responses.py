"""What the response of a call says, read fast: plain answers by their types, others by the rules.

Most responses are plain answers: nothing in them is out of the ordinary, and their usage has one of
the three most common vocabularies. msgspec decodes such an answer into structs. A response that
does not fit the structs in type or value (an error, usage in another place, a count that is a
string) is left to ``responses.py``. A plain answer is read exactly as the rules would read it.
"""

from typing import Annotated, Any, Final

import msgspec

from llm_trace_pipeline.trace.json_values import INT64_MAX, UINT64_MAX
from llm_trace_pipeline.trace.responses import ResponseReading, read_any_response
from llm_trace_pipeline.trace.usage import Tokens

_Count = Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)] | None


class _Details(msgspec.Struct):
    cached_tokens: _Count = None
    cache_write_tokens: _Count = None
    reasoning_tokens: _Count = None
    thinking_tokens: _Count = None


class PlainUsage(msgspec.Struct):
    """The usage object of a plain answer."""

    prompt_tokens: _Count = None
    completion_tokens: _Count = None
    total_tokens: _Count = None
    prompt_tokens_details: _Details | list[Any] | None = None  # Gemini's is a list
    completion_tokens_details: _Details | None = None
    cached_tokens: _Count = None
    prompt_cache_hit_tokens: _Count = None
    reasoning_tokens: _Count = None
    input_tokens: _Count = None
    output_tokens: _Count = None
    cache_read_input_tokens: _Count = None
    cache_creation_input_tokens: _Count = None
    input_tokens_details: _Details | None = None
    input_token_details: _Details | None = None
    output_tokens_details: _Details | None = None
    prompt_token_count: _Count = None
    tool_use_prompt_token_count: _Count = None
    candidates_token_count: _Count = None
    thoughts_token_count: _Count = None
    total_token_count: _Count = None
    cached_content_token_count: _Count = None
    iterations: None = None


class _Choice(msgspec.Struct):
    usage: None = None
    error: None = None


class _Answer(msgspec.Struct):
    """A plain answer. A key of type None, where the rules look too, must be absent or null."""

    usage: PlainUsage | None = None
    usage_metadata: PlainUsage | None = None
    model: str | None = None
    model_version: str | None = None
    object: str | None = None
    type: str | None = None
    choices: list[_Choice] | None = None
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


_ANSWER: Final = msgspec.json.Decoder(_Answer)
_NO_DETAILS: Final = _Details()


def read_response(text: bytes | memoryview) -> ResponseReading:
    """Read usage, error and model of a response, whatever the provider."""
    return read_plain(text) or read_any_response(text)


def read_plain(text: bytes | memoryview) -> ResponseReading | None:
    """Read a plain answer; None if the response is not one."""
    try:
        answer = _ANSWER.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    usage = answer.usage or answer.usage_metadata
    if usage is None or "error" in (answer.object, answer.type):
        return None
    if usage.prompt_tokens is not None or usage.completion_tokens is not None:
        tokens = _of_chat(usage)
    elif (
        usage.input_tokens is not None
        or usage.output_tokens is not None
        or usage.cache_read_input_tokens is not None
        or usage.cache_creation_input_tokens is not None
    ):
        tokens = _of_responses_and_anthropic(usage)
    elif usage.prompt_token_count is not None or usage.candidates_token_count is not None:
        tokens = _of_gemini(usage)
    else:
        return None
    prompt, completion, total, cached, written, reasoning = tokens
    if reasoning and total == prompt + completion + reasoning:  # see usage.py
        completion += reasoning
    if prompt + completion > UINT64_MAX:
        return None
    model = answer.model or answer.model_version or ""
    total = total or prompt + completion
    return ResponseReading(
        prompt, completion, total, cached, written, reasoning, False, "", "", model
    )


def _of_chat(usage: PlainUsage) -> Tokens:
    details = usage.prompt_tokens_details
    if not isinstance(details, _Details):
        details = _NO_DETAILS
    reasoning = (usage.completion_tokens_details or _NO_DETAILS).reasoning_tokens
    return (
        usage.prompt_tokens or 0,
        usage.completion_tokens or 0,
        usage.total_tokens or 0,
        _first(
            details.cached_tokens,
            usage.cached_tokens,
            usage.prompt_cache_hit_tokens,
            usage.cache_read_input_tokens,
        ),
        _first(details.cache_write_tokens, usage.cache_creation_input_tokens),
        _first(reasoning, usage.reasoning_tokens),
    )


def _of_responses_and_anthropic(usage: PlainUsage) -> Tokens:
    read, written = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
    details = usage.input_tokens_details or _NO_DETAILS
    realtime = usage.input_token_details or _NO_DETAILS
    outputs = usage.output_tokens_details or _NO_DETAILS
    return (
        (usage.input_tokens or 0) + (read or 0) + (written or 0),
        usage.output_tokens or 0,
        usage.total_tokens or 0,
        _first(read, details.cached_tokens, realtime.cached_tokens),
        _first(written, details.cache_write_tokens),
        _first(outputs.reasoning_tokens, outputs.thinking_tokens),
    )


def _of_gemini(usage: PlainUsage) -> Tokens:
    return (
        (usage.prompt_token_count or 0) + (usage.tool_use_prompt_token_count or 0),
        (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0),
        usage.total_token_count or 0,
        usage.cached_content_token_count,
        None,
        usage.thoughts_token_count,
    )


def _first(*counts: int | None) -> int | None:
    """Return the first count that was reported."""
    for count in counts:
        if count is not None:
            return count
    return None
