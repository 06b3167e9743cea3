"""What the JSON of one LLM call says: its token usage, its error, its model, its tags.

Every provider puts its usage elsewhere and names it differently, and an OpenAI-compatible server
may answer in any of these vocabularies. So the keys of the usage object decide how it is read,
never the provider and never `type`: Letta writes `"type": "message"` for all of them.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, NamedTuple, TypedDict

import msgspec

_INT64_MAX: Final = 2**63 - 1
_UINT64_MAX: Final = 2**64 - 1


class ResponseReading(NamedTuple):
    """What one `response_json` says; '' and None stand for what it does not say."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    is_error: bool = False
    error_type: str = ""
    error_message: str = ""
    model: str = ""
    is_readable: bool = True


class ConfigReading(NamedTuple):
    """What one `llm_config` says; '' stands for missing, empty or not a string."""

    provider: str
    model: str
    provider_category: str


def read_response(text: bytes | memoryview) -> ResponseReading:
    """Read usage, error and model, whatever the provider."""
    return _read_plain(text) or read_any_response(text)


def read_any_response(text: bytes | memoryview) -> ResponseReading:
    """Read a response by the rules for all of them; 11 µs where a plain one takes 3."""
    top = _parse(_RESPONSE, text)
    if not isinstance(top, dict):
        return ResponseReading(is_readable=top is not _UNREADABLE)
    bodies = _bodies(top)
    return ResponseReading(*_tokens(bodies), *_error(bodies), _model(bodies))


def read_llm_config(text: bytes | memoryview) -> ConfigReading:
    """Read what a `llm_config` says about the provider and the model."""
    config = _parse(_CONFIG, text)
    if not isinstance(config, dict):
        return ConfigReading("", "", "")
    return ConfigReading(
        _string(config.get("model_endpoint_type")),
        _string(config.get("model")),
        _string(config.get("provider_category")),
    )


def read_request_model(text: bytes | memoryview) -> str:
    """Read the model that a `request_json` asks for."""
    request = _parse(_REQUEST, text)
    return _string(request.get("model")) if isinstance(request, dict) else ""


def read_agent_tags(text: bytes | memoryview) -> list[str]:
    """Read the tags of an agent; a tag that is no string becomes its JSON text."""
    tags = _parse(_ANY, text)
    return [_text(tag) for tag in tags if tag is not None] if isinstance(tags, list) else []


def read_billing_context(text: bytes | memoryview) -> tuple[str, str, str] | None:
    """Read plan type, cost source and customer id; None if none of them is stated."""
    context = _parse(_ANY, text)
    if not isinstance(context, dict):
        return None
    plan_type, cost_source, customer_id = (
        "" if isinstance(value, bool | dict | list) else _text(value)
        for value in map(context.get, ("plan_type", "cost_source", "customer_id"))
    )
    stated = plan_type or cost_source or customer_id
    return (plan_type, cost_source, customer_id) if stated else None


# --- JSON -----------------------------------------------------------------------------------------

# What is needed of a response; msgspec skips all other keys without building objects (as fast as
# with its structs). TypedDicts, because the slow path yields dicts too: one set of rules for both.


class _Choice(TypedDict, total=False):
    usage: Any
    error: Any


_Response = TypedDict(
    "_Response",
    {
        "usage": Any,
        "usage_metadata": Any,
        "usageMetadata": Any,
        "meta_info": Any,
        "amazon-bedrock-invocationMetrics": Any,
        "prompt_eval_count": Any,
        "prompt_eval_cached_count": Any,
        "eval_count": Any,
        "choices": list[_Choice] | None,
        "x_groq": Any,
        "response": Any,
        "result": Any,
        "model": Any,
        "model_version": Any,
        "modelVersion": Any,
        "error": Any,
        "error_type": Any,
        "object": Any,
        "type": Any,
        "code": Any,
        "message": Any,
        "__type": Any,
        "detail": None,  # any other value takes the slow path, which sees what stands beside it
    },
    total=False,
)


class _Config(TypedDict, total=False):
    model_endpoint_type: Any
    model: Any
    provider_category: Any


class _Request(TypedDict, total=False):
    model: Any


_RESPONSE: Final = msgspec.json.Decoder(_Response)
_CONFIG: Final = msgspec.json.Decoder(_Config)
_REQUEST: Final = msgspec.json.Decoder(_Request)
_ANY: Final = msgspec.json.Decoder()

_UNREADABLE: Final = object()
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_DIGITS: Final = re.compile("[0-9]{1,19}")


def _parse(decoder: msgspec.json.Decoder[Any], text: bytes | memoryview) -> object:
    r"""Decode quickly what fits the decoder's type, and slowly, as a whole, any other JSON.

    msgspec refuses lone surrogates (`"\ud83d"`), which PostgreSQL's json keeps, and numbers out of
    range. Neither parser goes deeper than Python's recursion limit: such a text is unreadable.
    Strings that are skipped are not checked to be UTF-8; PostgreSQL did that.
    """
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return json.loads(str(text, "utf-8"), parse_int=_parse_int)
    except (ValueError, RecursionError):
        return _UNREADABLE


def _parse_int(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:  # more than 4,300 digits (CVE-2020-10735): infinite, hence no count
        return float(digits)


def _text(value: object) -> str:
    """Return a string as it is, another value as its JSON text, null as ''."""
    if value is None:
        return ""
    if not isinstance(value, str):
        try:
            value = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        except RecursionError:  # it was parsed a few stack frames higher up
            return ""
    return value if value.isascii() else _LONE_SURROGATE.sub("\ufffd", value)


def _string(value: object) -> str:
    return _text(value) if isinstance(value, str) else ""


def _count(value: object) -> int | None:
    """Return a token count; what cannot be one counts as not reported."""
    if type(value) is not int:  # not isinstance, to which a bool is an int
        if isinstance(value, str):
            value = int(value) if _DIGITS.fullmatch(value) else None
        elif isinstance(value, float):
            value = int(value) if value.is_integer() else None
        else:
            return None
    return value if value is not None and 0 <= value <= _INT64_MAX else None


# --- where things stand ---------------------------------------------------------------------------

_Object = Mapping[str, Any]


def _object(value: object) -> _Object:
    return value if isinstance(value, dict) else {}


def _bodies(top: _Object) -> list[_Object]:
    """Return the objects that may hold usage or an error, the outermost first."""
    bodies = [top]
    if isinstance(choices := top.get("choices"), list):
        # Moonshot streams put the usage here, OpenRouter the error of one choice
        bodies += [
            {"usage": choice.get("usage"), "error": choice.get("error")}
            for choice in choices
            if isinstance(choice, dict) and (choice.get("usage") or choice.get("error"))
        ]
    if groq := _object(top.get("x_groq")):
        bodies.append(groq)
    # events of OpenAI Responses streams, OpenAI batches; a string in Ollama's /api/generate
    if response := _object(top.get("response")):
        bodies += [response, _object(response.get("body"))]
    if result := _object(top.get("result")):  # Anthropic batches
        bodies += [result, _object(result.get("message"))]
    return bodies


def _model(bodies: list[_Object]) -> str:
    for body in bodies:
        for key in ("model", "model_version", "modelVersion"):
            if model := _string(body.get(key)):
                return model
    return ""


# --- usage ----------------------------------------------------------------------------------------

_PLACES: Final = (
    "usage",
    "usage_metadata",  # google-genai
    "usageMetadata",  # Gemini REST
    "meta_info",  # SGLang /generate
    "amazon-bedrock-invocationMetrics",  # Bedrock InvokeModel streams
)
# Ollama's own API has no usage object.
_OLLAMA_KEYS: Final = ("prompt_eval_count", "prompt_eval_cached_count", "eval_count")


class _Tokens(NamedTuple):
    prompt: int
    completion: int
    total: int
    cached: int | None
    cache_write: int | None
    reasoning: int | None


_Paths = tuple[tuple[str, str], ...]


def _paths(*paths: str) -> _Paths:
    """Split `details.key` into the two; the details of a plain key are ''."""
    return tuple((details, key) for details, _, key in (path.rpartition(".") for path in paths))


class _Vocabulary(NamedTuple):
    """The keys of one way to report usage.

    The counts of `prompt` and of `completion` add up; of the other three, which are subsets of
    these, the first one reported is taken.
    """

    prompt: tuple[str, ...]
    completion: tuple[str, ...] = ()
    total: str | None = None
    cached: _Paths = ()
    cache_write: _Paths = ()
    reasoning: _Paths = ()


# The first one of which the usage object has a key is taken.
_VOCABULARIES: Final = (
    # Chat completions: prompt_tokens contains the cache, also where LiteLLM adds Anthropic's keys
    _Vocabulary(
        prompt=("prompt_tokens",),
        completion=("completion_tokens",),
        total="total_tokens",
        cached=_paths(
            "prompt_tokens_details.cached_tokens",
            "cached_tokens",  # Moonshot, Together, SGLang
            "prompt_cache_hit_tokens",  # DeepSeek
            "cache_read_input_tokens",
        ),
        cache_write=_paths(
            "prompt_tokens_details.cache_write_tokens", "cache_creation_input_tokens"
        ),
        reasoning=_paths("completion_tokens_details.reasoning_tokens", "reasoning_tokens"),
    ),
    # OpenAI Responses, whose input_tokens contains the cache, and Anthropic, whose does not: only
    # Anthropic has the cache_* keys. cache_creation.ephemeral_* is a breakdown, not more tokens.
    _Vocabulary(
        prompt=("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"),
        completion=("output_tokens",),
        total="total_tokens",
        cached=_paths(
            "cache_read_input_tokens",
            "input_tokens_details.cached_tokens",
            "input_token_details.cached_tokens",  # OpenAI Realtime
        ),
        cache_write=_paths(
            "cache_creation_input_tokens", "input_tokens_details.cache_write_tokens"
        ),
        reasoning=_paths(
            "output_tokens_details.reasoning_tokens",
            "output_tokens_details.thinking_tokens",  # Anthropic
        ),
    ),
    # Gemini: thinking is not among the candidates; the prompt contains what came from the cache
    _Vocabulary(
        prompt=("prompt_token_count", "tool_use_prompt_token_count"),
        completion=("candidates_token_count", "thoughts_token_count"),
        total="total_token_count",
        cached=_paths("cached_content_token_count"),
        reasoning=_paths("thoughts_token_count"),
    ),
    _Vocabulary(
        prompt=("promptTokenCount", "toolUsePromptTokenCount"),
        completion=("candidatesTokenCount", "thoughtsTokenCount"),
        total="totalTokenCount",
        cached=_paths("cachedContentTokenCount"),
        reasoning=_paths("thoughtsTokenCount"),
    ),
    # Bedrock Converse and InvokeModel: the input is without the cache (BerriAI/litellm#15292)
    _Vocabulary(
        prompt=("inputTokens", "cacheReadInputTokens", "cacheWriteInputTokens"),
        completion=("outputTokens",),
        total="totalTokens",
        cached=_paths("cacheReadInputTokens"),
        cache_write=_paths("cacheWriteInputTokens"),
    ),
    _Vocabulary(
        prompt=("inputTokenCount", "cacheReadInputTokenCount", "cacheWriteInputTokenCount"),
        completion=("outputTokenCount",),
        cached=_paths("cacheReadInputTokenCount"),
        cache_write=_paths("cacheWriteInputTokenCount"),
    ),
    # Ollama's own API, whose prompt contains the cached ones
    _Vocabulary(
        prompt=("prompt_eval_count",),
        completion=("eval_count",),
        cached=_paths("prompt_eval_cached_count"),
    ),
    # Vercel's AI SDK
    _Vocabulary(prompt=("promptTokens",), completion=("completionTokens",), total="totalTokens"),
    # Voyage embeddings: nothing but a total, and all of it is input
    _Vocabulary(prompt=("total_tokens",), total="total_tokens"),
)


_NOTHING: Final = _Tokens(0, 0, 0, None, None, None)


def _tokens(bodies: list[_Object]) -> _Tokens:
    for body in bodies:
        for place in _PLACES:
            usage = body.get(place)
            if usage and isinstance(usage, dict) and (tokens := _read_usage(usage)):
                return tokens
        if "prompt_eval_count" in body or "eval_count" in body:
            usage = {key: body.get(key) for key in _OLLAMA_KEYS}
            if tokens := _read_usage(usage):
                return tokens
    return _NOTHING


def _read_usage(usage: _Object) -> _Tokens | None:
    if names := _vocabulary(usage):
        return _read_as(names, usage)
    # Cohere v2 has two objects inside, which differ on input: what the model read comes before
    # what is billed.
    for part in (_object(usage.get("tokens")), _object(usage.get("billed_units"))):
        if names := _vocabulary(part):
            return _read_as(names, part)
    return None


def _vocabulary(usage: _Object) -> _Vocabulary | None:
    for names in _VOCABULARIES:
        for key in names.prompt + names.completion:
            # null is what SDK dumps fill in for a key that was not sent
            if usage.get(key) is not None:
                return names
    return None


def _read_as(names: _Vocabulary, usage: _Object) -> _Tokens:
    prompt = _sum(names.prompt, usage)
    completion = _sum(names.completion, usage)
    cached = _first(names.cached, usage)
    cache_write = _first(names.cache_write, usage)
    reasoning = _first(names.reasoning, usage)
    total = _count(usage.get(names.total)) if names.total else None
    # xAI and Gemini's compatible endpoint leave thinking out of the completion, others do not;
    # only the total tells (vercel/ai#12425)
    if reasoning and total == prompt + completion + reasoning:
        completion += reasoning
    iterations = usage.get("iterations")
    if iterations and isinstance(iterations, list):
        for iteration in iterations:
            # Anthropic leaves compactions out of the top level; the other iterations are in it
            if isinstance(iteration, dict) and iteration.get("type") == "compaction":
                prompt += _sum(names.prompt, iteration)
                completion += _sum(names.completion, iteration)
                cached = _add(cached, _first(names.cached, iteration))
                cache_write = _add(cache_write, _first(names.cache_write, iteration))
                reasoning = _add(reasoning, _first(names.reasoning, iteration))
    return _Tokens(
        min(prompt, _UINT64_MAX),
        min(completion, _UINT64_MAX),
        total or min(prompt + completion, _UINT64_MAX),
        cached,
        cache_write,
        reasoning,
    )


def _sum(keys: tuple[str, ...], usage: _Object) -> int:
    total = 0
    for key in keys:
        total += _count(usage.get(key)) or 0
    return total


def _first(paths: _Paths, usage: _Object) -> int | None:
    for details, key in paths:
        holder = usage.get(details) if details else usage
        if isinstance(holder, dict) and (count := _count(holder.get(key))) is not None:
            return count
    return None


def _add(left: int | None, right: int | None) -> int | None:
    return left if right is None else min((left or 0) + right, _UINT64_MAX)


# --- plain answers --------------------------------------------------------------------------------

# Most responses are answers without anything that is out of the ordinary, in one of three
# vocabularies. msgspec decodes these into structs; whatever does not fit them in type or value (an
# error, usage in another place, a count that is a string) is left to the rules above.

_Count = Annotated[int, msgspec.Meta(ge=0, le=_INT64_MAX)] | None


class _PlainDetails(msgspec.Struct):
    cached_tokens: _Count = None
    cache_write_tokens: _Count = None
    reasoning_tokens: _Count = None
    thinking_tokens: _Count = None


class _PlainUsage(msgspec.Struct):
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
    usage: _PlainUsage | None = None
    usage_metadata: _PlainUsage | None = None
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


def _read_plain(text: bytes | memoryview) -> ResponseReading | None:
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
    if prompt + completion > _UINT64_MAX:
        return None
    model = answer.model or answer.model_version or ""
    total = total or prompt + completion
    return ResponseReading(
        prompt, completion, total, cached, written, reasoning, False, "", "", model
    )


_PlainTokens = tuple[int, int, int | None, int | None, int | None, int | None]


def _plain_chat(usage: _PlainUsage) -> _PlainTokens:
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


def _plain_input(usage: _PlainUsage) -> _PlainTokens:
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


def _plain_gemini(usage: _PlainUsage) -> _PlainTokens:
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


# --- errors ---------------------------------------------------------------------------------------

# Beside one of these, `detail` is a part of an answer and not FastAPI's error.
_ANSWER_KEYS: Final = {*_PLACES, "choices", "candidates", "content", "output", "text", "message"}


def _error(bodies: list[_Object]) -> tuple[bool, str, str]:
    for body in bodies:
        if stated := _stated_error(body):
            error_type, message = stated
            return True, _text(error_type or None), _text(message)
    return False, "", ""


def _stated_error(body: _Object) -> tuple[object, object] | None:
    """Return type and message as stated, None if there is no error."""
    error, error_type = body.get("error"), body.get("error_type")
    if isinstance(error, dict):
        while "message" not in error and isinstance(error.get("error"), dict):  # Anthropic batches
            error = error["error"]
        if any(error.values()):
            status = error.get("status")  # Google's is a name, Azure's the HTTP status again
            name = error.get("type") or (isinstance(status, str) and status) or error.get("code")
            return name or error_type, error.get("message")
        error = None
    # Letta: the message of a TimeoutError is "", and a cancelled task has null for both
    if error or error_type:
        return error_type, error
    # older vLLM and Mistral; the error event of OpenAI Responses streams
    kind = body.get("type")
    if "error" in (body.get("object"), kind):
        return (kind if kind != "error" else None) or body.get("code"), body.get("message")
    if body.get("__type"):  # AWS
        return body["__type"], body.get("message")
    if body.get("detail") and body.keys().isdisjoint(_ANSWER_KEYS):  # FastAPI
        return None, body["detail"]
    return None
