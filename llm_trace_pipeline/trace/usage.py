"""What the response of a call says: its token usage, its error, its model, by the JSON's keys.

Every provider puts its usage elsewhere and names it differently, and an OpenAI-compatible server
may answer in any of these vocabularies. So the keys of the usage object decide how it is read,
never the provider and never `type`: Letta writes `"type": "message"` for all of them.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypedDict

import msgspec

from llm_trace_pipeline.trace.json_values import UNREADABLE, count_of, parse, string_of, text_of

UINT64_MAX: Final = 2**64 - 1


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


def read_any_response(text: bytes | memoryview) -> ResponseReading:
    """Read a response by the rules for all of them; 11 µs where a plain one takes 3."""
    top = parse(_RESPONSE, text)
    if not isinstance(top, dict):
        return ResponseReading(is_readable=top is not UNREADABLE)
    bodies = _bodies(top)
    return ResponseReading(*_tokens(bodies), *_error(bodies), _model(bodies))


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


_RESPONSE: Final = msgspec.json.Decoder(_Response)

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
            if model := string_of(body.get(key)):
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
    total = count_of(usage.get(names.total)) if names.total else None
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
        min(prompt, UINT64_MAX),
        min(completion, UINT64_MAX),
        total or min(prompt + completion, UINT64_MAX),
        cached,
        cache_write,
        reasoning,
    )


def _sum(keys: tuple[str, ...], usage: _Object) -> int:
    total = 0
    for key in keys:
        total += count_of(usage.get(key)) or 0
    return total


def _first(paths: _Paths, usage: _Object) -> int | None:
    for details, key in paths:
        holder = usage.get(details) if details else usage
        if isinstance(holder, dict) and (count := count_of(holder.get(key))) is not None:
            return count
    return None


def _add(left: int | None, right: int | None) -> int | None:
    return left if right is None else min((left or 0) + right, UINT64_MAX)


# --- errors ---------------------------------------------------------------------------------------

# Beside one of these, `detail` is a part of an answer and not FastAPI's error.
_ANSWER_KEYS: Final = {*_PLACES, "choices", "candidates", "content", "output", "text", "message"}


def _error(bodies: list[_Object]) -> tuple[bool, str, str]:
    for body in bodies:
        if stated := _stated_error(body):
            error_type, message = stated
            return True, text_of(error_type or None), text_of(message)
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
