"""What the response of a call says, by rules for all providers: its usage, its error, its model.

``fast_responses.py`` reads plain answers faster, and leaves all others to these rules.
"""

from typing import Any, Final, Literal, NamedTuple, TypedDict

import msgspec

from llm_trace_pipeline.trace.details import (
    BATCH,
    UNMETERED,
    HugeCountError,
    details_in,
    text_of_details,
    tier_in,
)
from llm_trace_pipeline.trace.json_values import (
    UNREADABLE,
    Object,
    counts_alone,
    object_of,
    parse,
    string_of,
    text_of,
)
from llm_trace_pipeline.trace.usage import NO_TOKENS, OLLAMA_KEYS, USAGE_PLACES, Tokens, usage_in

UsageSource = Literal["response", "step", "none"]


class ResponseReading(NamedTuple):
    """What one `response_json` says.

    Cached and cache-written tokens are part of the prompt, reasoning tokens of the completion. A
    count that the response does not report is None, or 0 in the first three. A missing text is ''.
    The error message is whole; rows keep its first 1,000 code points. The service tier is
    'standard' where the response states that, and '' where it states none. A response is not
    readable where it is no JSON, or where a count is larger than any call's. No call has 0 tokens:
    a response that says so does not state its usage.
    """

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
    usage_source: UsageSource = "none"
    service_tier: str = ""
    usage_details: str = ""  # see details.py
    is_readable: bool = True


# The keys that the rules look at. msgspec skips all other keys without building objects, as fast as
# with its structs. These are TypedDicts, since Python's own parser yields dicts too: one set of
# rules reads both.
_MODEL_KEYS: Final = ("model", "model_version", "modelVersion")
_ERROR_KEYS: Final = ("error", "error_type", "object", "type", "code", "message", "__type")
_HOLDERS: Final = ("x_groq", "response", "result")  # see ``_bodies``
_TIER_KEYS: Final = ("service_tier", "serviceTier", "tool_usage")
_READ: Final = (*USAGE_PLACES, *OLLAMA_KEYS, *_MODEL_KEYS, *_ERROR_KEYS, *_HOLDERS, *_TIER_KEYS)


class _Choice(TypedDict, total=False):
    usage: Any
    error: Any


class _Item(TypedDict, total=False):
    type: Any
    action: Any
    status: Any


class _Candidate(TypedDict, total=False):
    grounding_metadata: Any
    groundingMetadata: Any


_Response = TypedDict(
    "_Response",
    {
        **dict.fromkeys(_READ, Any),  # type: ignore[misc]  # mypy looks for the keys here
        "choices": list[_Choice] | None,
        "output": list[_Item] | _Item | str | None,  # of Bedrock Converse, an object
        "tools": list[_Item] | None,
        "candidates": list[_Candidate] | None,
        # Any other value is left to Python's parser, which keeps the keys that stand beside it.
        "detail": None,
    },
    total=False,
)
_METERED_WRONG: Final = text_of_details({UNMETERED: 1})
_RESPONSE: Final = msgspec.json.Decoder(_Response)


def read_any_response(text: bytes | memoryview) -> ResponseReading:
    """Read any response by the rules: 11 µs, where the fast reader of plain answers takes 3."""
    top = parse(_RESPONSE, text)
    if not isinstance(top, dict):
        return ResponseReading(is_readable=top is not UNREADABLE)
    bodies = _bodies(top)
    error, model = _error(bodies), _model(bodies)
    try:
        usage = usage_in(bodies)
        tokens, holder = usage.tokens, usage.source
        details = text_of_details(details_in(holder, bodies, tokens[3]))
    except HugeCountError:
        tokens, details = _believable_tokens(bodies), _METERED_WRONG if error[0] else ""
        return ResponseReading(*tokens, *error, model, usage_details=details, is_readable=False)
    if error[0] and not usage.is_whole:  # which is not the same as no usage
        details = _METERED_WRONG
    is_stated = usage.is_whole and (tokens[0] or tokens[1])
    tier = BATCH if _is_of_batch(top) else tier_in(holder, bodies)
    return ResponseReading(
        *tokens, *error, model, "response" if is_stated else "none", tier, details
    )


def _believable_tokens(bodies: list[Object]) -> Tokens:
    """Return the tokens without the values that no call's counts can be."""
    try:
        return usage_in([object_of(counts_alone(body)) for body in bodies]).tokens
    except HugeCountError:  # their sum is too large
        return NO_TOKENS


def _is_of_batch(top: Object) -> bool:
    """Whether a response is a line of a batch's results: OpenAI's, or Anthropic's."""
    return bool(
        object_of(object_of(top.get("response")).get("body"))
        or object_of(object_of(top.get("result")).get("message"))
    )


def _bodies(top: Object) -> list[Object]:
    """Return the objects that may hold usage, an error or a model, the outermost first."""
    bodies = [top]
    if isinstance(choices := top.get("choices"), list):
        # Moonshot's streams put the usage into a choice, OpenRouter the error of that choice.
        bodies += [
            {"usage": choice.get("usage"), "error": choice.get("error")}
            for choice in choices
            if isinstance(choice, dict) and (choice.get("usage") or choice.get("error"))
        ]
    if groq := object_of(top.get("x_groq")):
        bodies.append(groq)
    # Events of OpenAI Responses streams, OpenAI batches; a string in Ollama's /api/generate.
    if response := object_of(top.get("response")):
        bodies += [response, object_of(response.get("body"))]
    if result := object_of(top.get("result")):  # Anthropic batches
        bodies += [result, object_of(result.get("message"))]
    return bodies


def _model(bodies: list[Object]) -> str:
    for body in bodies:
        for key in _MODEL_KEYS:
            if model := string_of(body.get(key)):
                return model
    return ""


# Beside one of these keys, `detail` is a part of an answer and not FastAPI's error.
_ANSWER_KEYS: Final = {
    *USAGE_PLACES,
    *("choices", "candidates", "content", "output", "text", "message"),
}


def _error(bodies: list[Object]) -> tuple[bool, str, str]:
    """Return whether there is an error, its type and its message."""
    for body in bodies:
        if stated := _stated_error(body):
            error_type, message = stated
            return True, text_of(error_type or None), text_of(message)
    return False, "", ""


def _stated_error(body: Object) -> tuple[object, object] | None:
    """Return the type and the message of an object's error; None if it states no error."""
    error, error_type = body.get("error"), body.get("error_type")
    if isinstance(error, dict):
        while "message" not in error and isinstance(error.get("error"), dict):  # Anthropic batches
            error = error["error"]
        if any(error.values()):
            status = error.get("status")  # Google's is a name, Azure's the HTTP status again
            name = error.get("type") or (isinstance(status, str) and status) or error.get("code")
            return name or error_type, error.get("message")
        error = None
    # Letta: a TimeoutError has the message "", and a cancelled task has null for both.
    if error or error_type:
        return error_type, error
    # Older vLLM and Mistral; the error event of OpenAI Responses streams.
    kind = body.get("type")
    if "error" in (body.get("object"), kind):
        return (kind if kind != "error" else None) or body.get("code"), body.get("message")
    if body.get("__type"):  # AWS
        return body["__type"], body.get("message")
    if body.get("detail") and body.keys().isdisjoint(_ANSWER_KEYS):  # FastAPI
        return None, body["detail"]
    return None


_ANY: Final = msgspec.json.Decoder()
# The keys of a response, or inside it, that say something about the answer and are no part of it.
_ABOUT: Final = {
    *USAGE_PLACES,
    *OLLAMA_KEYS,
    *_MODEL_KEYS,
    *_TIER_KEYS,
    *("id", "response_id", "responseId", "object", "type", "role", "index", "status", "provider"),
    *("created", "created_at", "create_time", "createTime", "system_fingerprint", "metadata"),
    *("finish_reason", "finishReason", "native_finish_reason", "stop_reason", "stopReason"),
    *("stop_sequence", "done_reason", "error", "error_type", "code", "detail", "x_groq"),
}


def holds_answer(text: bytes) -> bool:
    """Whether a response holds something that a model wrote, or cannot be read."""
    value = parse(_ANY, text)
    return value is UNREADABLE or _holds_answer(value)


def _holds_answer(value: object) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, list):
        return any(map(_holds_answer, value))
    if isinstance(value, dict):
        return bool(value.get("tool_calls")) or any(
            _holds_answer(part) for key, part in value.items() if key not in _ABOUT
        )
    return False
