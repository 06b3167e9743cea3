"""What the response of a call says, read fast: plain answers by their types, others by the rules.

Most responses are plain answers: nothing in them is out of the ordinary, and their usage has one of
the four most common vocabularies. msgspec decodes such an answer into structs. A response that
does not fit the structs in type or value (an error, usage in another place, a count that is a
string, anything that changes the price beside the token counts, the tier and the charge) is left to
``responses.py``. A plain answer is read exactly as the rules would read it.
"""

from typing import Annotated, Final, Literal

import msgspec

from llm_trace_pipeline.trace.details import STANDARD, charges_in, text_of_details, tier_named
from llm_trace_pipeline.trace.json_values import MOST_DOLLARS, MOST_TOKENS, Object
from llm_trace_pipeline.trace.responses import ResponseReading, read_any_response
from llm_trace_pipeline.trace.usage import Tokens

_Count = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)] | None
_Zero = Annotated[int, msgspec.Meta(ge=0, le=0)] | None
_Dollars = Annotated[float, msgspec.Meta(ge=0, lt=MOST_DOLLARS)] | None


class _Details(msgspec.Struct, gc=False):
    audio_tokens: _Zero = None
    image_tokens: _Zero = None
    video_tokens: _Zero = None
    cached_tokens_details: None = None
    cache_creation_token_details: None = None
    cached_tokens: _Count = None
    cache_write_tokens: _Count = None
    reasoning_tokens: _Count = None
    thinking_tokens: _Count = None


class _Text(msgspec.Struct, gc=False):
    modality: Literal["TEXT"]


class _CacheCreation(msgspec.Struct, gc=False):
    ephemeral_1h_input_tokens: _Zero = None


class _ServerTools(msgspec.Struct, gc=False):
    web_search_requests: _Zero = None


class _CostDetails(msgspec.Struct, gc=False):
    upstream_inference_prompt_cost: _Dollars = None
    upstream_inference_completions_cost: _Dollars = None


class PlainUsage(msgspec.Struct, gc=False):
    """The usage object of a plain answer."""

    prompt_tokens: _Count = None
    completion_tokens: _Count = None
    total_tokens: _Count = None
    prompt_tokens_details: _Details | list[_Text] | None = None  # Gemini's is a list
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
    output_token_details: _Details | None = None
    prompt_token_count: _Count = None
    tool_use_prompt_token_count: _Count = None
    candidates_token_count: _Count = None
    thoughts_token_count: _Count = None
    total_token_count: _Count = None
    cached_content_token_count: _Count = None
    iterations: None = None
    tool_use_prompt_tokens_details: list[_Text] | None = None
    candidates_tokens_details: list[_Text] | None = None
    cache_tokens_details: list[_Text] | None = None
    cache_creation: _CacheCreation | None = None
    server_tool_use: _ServerTools | None = None
    service_tier: str | None = None
    traffic_type: Literal["ON_DEMAND"] | None = None
    speed: Literal["standard"] | None = None
    inference_geo: Literal["global", "not_available"] | None = None
    search_context_size: None = None
    num_search_queries: _Zero = None
    num_sources_used: _Zero = None
    server_side_tool_usage_details: None = None
    citation_tokens: _Zero = None
    prompt_audio_seconds: _Zero = None
    cost: _Dollars = None
    cost_details: _CostDetails | None = None
    is_byok: bool | None = None
    market_cost: None = None
    estimated_cost: None = None
    cost_in_usd_ticks: None = None
    inputTokens: _Count = None  # noqa: N815 -- Bedrock's
    outputTokens: _Count = None  # noqa: N815 -- Bedrock's
    totalTokens: _Count = None  # noqa: N815 -- Bedrock's
    cacheReadInputTokens: _Count = None  # noqa: N815 -- Bedrock's
    cacheWriteInputTokens: _Count = None  # noqa: N815 -- Bedrock's
    serviceTier: None = None  # noqa: N815 -- Bedrock's
    trafficType: None = None  # noqa: N815 -- Vertex's
    promptTokenCount: None = None  # noqa: N815 -- Gemini's
    toolUsePromptTokenCount: None = None  # noqa: N815 -- Gemini's
    candidatesTokenCount: None = None  # noqa: N815 -- Gemini's
    thoughtsTokenCount: None = None  # noqa: N815 -- Gemini's
    cacheDetails: None = None  # noqa: N815 -- Bedrock's
    promptTokensDetails: None = None  # noqa: N815 -- Gemini's
    toolUsePromptTokensDetails: None = None  # noqa: N815 -- Gemini's
    candidatesTokensDetails: None = None  # noqa: N815 -- Gemini's
    cacheTokensDetails: None = None  # noqa: N815 -- Gemini's


class _Choice(msgspec.Struct, gc=False):
    usage: None = None
    error: None = None


class _Item(msgspec.Struct, gc=False):
    type: Literal["message", "reasoning", "function_call", "custom_tool_call"] | None = None


class _Converse(msgspec.Struct, gc=False):
    """The output of Bedrock, of which nothing is read."""


class _Candidate(msgspec.Struct, gc=False):
    grounding_metadata: None = None
    groundingMetadata: None = None  # noqa: N815 -- Gemini's


class _Searches(msgspec.Struct, gc=False):
    num_requests: _Zero = None


class _ToolUsage(msgspec.Struct, gc=False):
    web_search: _Searches | None = None


class _Answer(msgspec.Struct, gc=False):
    """A plain answer. A key of type None, where the rules look too, must be absent or null."""

    usage: PlainUsage | None = None
    usage_metadata: PlainUsage | None = None
    model: str | None = None
    model_version: str | None = None
    object: str | None = None
    type: str | None = None
    choices: list[_Choice] | None = None
    output: list[_Item] | _Converse | None = None
    candidates: list[_Candidate] | None = None
    service_tier: str | None = None
    serviceTier: None = None  # noqa: N815 -- Bedrock's
    tool_usage: _ToolUsage | None = None
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
    if usage is None or usage.is_byok or "error" in (answer.object, answer.type):
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
    elif usage.inputTokens is not None or usage.outputTokens is not None:
        if usage.tool_use_prompt_token_count is not None or usage.thoughts_token_count is not None:
            return None
        tokens = _of_bedrock(usage)
    else:
        return None
    prompt, completion, total, cached, written, reasoning = tokens
    if reasoning and total == prompt + completion + reasoning:  # see usage.py
        completion += reasoning
    total = total or prompt + completion
    if not 0 < prompt + completion <= MOST_TOKENS or total > MOST_TOKENS:
        return None
    model = answer.model or answer.model_version or ""
    tier = (
        (usage.service_tier and tier_named(usage.service_tier))
        or (usage.traffic_type and STANDARD)
        or (answer.service_tier and tier_named(answer.service_tier))
        or ""
    )
    details = "" if usage.cost is None else _charge(usage.cost, usage.cost_details)
    return ResponseReading(
        *(prompt, completion, total, cached, written, reasoning),
        model=model,
        usage_source="response",
        service_tier=tier,
        usage_details=details,
    )


def _charge(cost: float, details: _CostDetails | None) -> str:
    stated: Object = {"cost": cost}
    if details:
        stated = {**stated, "cost_details": msgspec.structs.asdict(details)}
    return text_of_details(dict(charges_in(stated)))


def _of_chat(usage: PlainUsage) -> Tokens:
    details = usage.prompt_tokens_details
    if not isinstance(details, _Details):
        details = _NO_DETAILS
    cached, written = details.cached_tokens, details.cache_write_tokens
    if cached is None:
        cached = _first(
            usage.cached_tokens, usage.prompt_cache_hit_tokens, usage.cache_read_input_tokens
        )
    if written is None:
        written = usage.cache_creation_input_tokens
    reasoning = (usage.completion_tokens_details or _NO_DETAILS).reasoning_tokens
    if reasoning is None:
        reasoning = usage.reasoning_tokens
    return (
        usage.prompt_tokens or 0,
        usage.completion_tokens or 0,
        usage.total_tokens or 0,
        cached,
        written,
        reasoning,
    )


def _of_responses_and_anthropic(usage: PlainUsage) -> Tokens:
    read, written = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
    details = usage.input_tokens_details or _NO_DETAILS
    outputs = usage.output_tokens_details or _NO_DETAILS
    prompt = (usage.input_tokens or 0) + (read or 0) + (written or 0)
    if read is None:
        read = _first(
            details.cached_tokens, (usage.input_token_details or _NO_DETAILS).cached_tokens
        )
    if written is None:
        written = details.cache_write_tokens
    reasoning = outputs.reasoning_tokens
    if reasoning is None:
        reasoning = outputs.thinking_tokens
    return (
        prompt,
        usage.output_tokens or 0,
        usage.total_tokens or 0,
        read,
        written,
        reasoning,
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


def _of_bedrock(usage: PlainUsage) -> Tokens:
    read, written = usage.cacheReadInputTokens, usage.cacheWriteInputTokens
    return (
        (usage.inputTokens or 0) + (read or 0) + (written or 0),
        usage.outputTokens or 0,
        usage.totalTokens or 0,
        read,
        written,
        None,
    )


def _first(*counts: int | None) -> int | None:
    """Return the first count that was reported."""
    for count in counts:
        if count is not None:
            return count
    return None
