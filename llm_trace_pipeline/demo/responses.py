"""Responses of the providers, as an agent server stores them: the demo's recipes.

A recipe puts a call into the words of its provider. A further kind of call is one more line of
`RECIPES`; it needs a function of its own only where its provider has words of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from llm_trace_pipeline.demo.requests import (
    Call,
    Json,
    Tokens,
    anthropic_request,
    bedrock_request,
    chat_request,
    google_request,
    json_text,
    responses_request,
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """The words of an API, which several providers may share."""

    request: Callable[[Call], Json]
    usage: Callable[[Tokens], Json]
    body: Callable[[Call, Json], Json]  # of the call and its usage
    failure: Callable[[Call], Json]
    reports: str = ""  # the counts in the usage: "c" cached, "w" written to a cache, "r" reasoning


@dataclass(frozen=True, slots=True)
class Recipe:
    """A provider's model, and how often it is called; no two recipes share a model."""

    provider: str  # in the step
    endpoint_type: str  # in the agent's configuration
    model: str
    weight: int  # the share of the calls
    dialect: Dialect
    streams: bool = False  # whether some answers are streamed


def _chat_usage(tokens: Tokens) -> Json:
    counts = {"prompt_tokens": tokens.prompt, "completion_tokens": tokens.completion}
    return counts | {"total_tokens": tokens.total}


def _openai_usage(tokens: Tokens) -> Json:
    cached = {"audio_tokens": 0, "cached_tokens": tokens.cached}
    reasoning = {"audio_tokens": 0, "reasoning_tokens": tokens.reasoning}
    details = {"prompt_tokens_details": cached, "completion_tokens_details": reasoning}
    return _chat_usage(tokens) | details


def _responses_usage(tokens: Tokens) -> Json:
    return {
        "input_tokens": tokens.prompt,
        "input_tokens_details": {"cached_tokens": tokens.cached},
        "output_tokens": tokens.completion,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
        "total_tokens": tokens.total,
    }


def _anthropic_usage(tokens: Tokens) -> Json:
    written = {"ephemeral_1h_input_tokens": 0, "ephemeral_5m_input_tokens": tokens.written}
    return {
        "cache_creation": written,
        "cache_creation_input_tokens": tokens.written,
        "cache_read_input_tokens": tokens.cached,
        "input_tokens": tokens.fresh,
        "output_tokens": tokens.completion,
        "service_tier": "standard",
    }


def _thinking_usage(tokens: Tokens) -> Json:
    details = {"thinking_tokens": tokens.reasoning}
    return _anthropic_usage(tokens) | {"output_tokens_details": details}


def _converse_usage(tokens: Tokens) -> Json:
    return {
        "inputTokens": tokens.fresh,
        "outputTokens": tokens.completion,
        "totalTokens": tokens.total,
        "cacheReadInputTokens": tokens.cached,
        "cacheWriteInputTokens": tokens.written,
    }


def _gemini_usage(tokens: Tokens) -> Json:
    return {
        "cached_content_token_count": tokens.cached or None,
        "candidates_token_count": tokens.completion - (tokens.reasoning or 0),
        "prompt_token_count": tokens.prompt,
        "prompt_tokens_details": [{"modality": "TEXT", "token_count": tokens.prompt}],
        "thoughts_token_count": tokens.reasoning or None,
        "total_token_count": tokens.total,
    }


def _xai_usage(tokens: Tokens) -> Json:
    # The reasoning is billed beside the completion; only the total includes it.
    visible = tokens.completion - (tokens.reasoning or 0)
    return _openai_usage(tokens) | {"completion_tokens": visible, "num_sources_used": 0}


def _openrouter_usage(tokens: Tokens) -> Json:
    usage = _openai_usage(tokens) | {"cost": round(tokens.total * 2.1e-6, 8), "is_byok": False}
    usage["prompt_tokens_details"]["cache_write_tokens"] = tokens.written
    return usage


def _ollama_usage(tokens: Tokens) -> Json:
    times = {"total_duration": 5_043_500_667, "eval_duration": 4_709_213_000}
    return times | {"prompt_eval_count": tokens.prompt, "eval_count": tokens.completion}


def _tool_call(call: Call) -> Json | None:
    if call.tool is None:
        return None
    arguments = {"message": call.reply, "request_heartbeat": bool(call.rng.getrandbits(1))}
    function = {"arguments": json_text(arguments), "name": call.tool}
    return {"id": f"call_{call.key[:24]}", "function": function, "type": "function"}


def _chat(call: Call, usage: Json) -> Json:
    """Return a chat completion as the SDK dumps it: an unset field is null."""
    tool = _tool_call(call)
    message: Json = dict.fromkeys(("refusal", "annotations", "audio", "function_call"))
    message |= {"content": None if tool else call.reply, "role": "assistant"}
    choice = {
        "finish_reason": "tool_calls" if tool else "stop",
        "index": 0,
        "message": message | {"tool_calls": [tool] if tool else None},
    }
    return {
        "id": f"chatcmpl-{call.key}",
        "choices": [choice],
        "created": int(call.at.timestamp()),
        "model": call.model,
        "object": "chat.completion",
        "service_tier": None,
        "system_fingerprint": f"fp_{call.key[:10]}",
        "usage": usage,
    }


def _response(call: Call, usage: Json | None, error: Json | None = None) -> Json:
    content = {"type": "output_text", "text": call.reply, "annotations": []}
    message = {"type": "message", "id": f"msg_{call.key}", "content": [content]}
    reasoning: Json = {"type": "reasoning", "id": f"rs_{call.key}", "summary": []}
    if tool := _tool_call(call):
        message = {"type": "function_call"} | tool["function"]
    return {
        "id": f"resp_{call.key}",
        "created_at": call.at.timestamp(),
        "error": error,
        "model": call.model,
        "object": "response",
        "output": [] if error else [reasoning, message],
        "status": "failed" if error else "completed",
        "usage": usage,
    }


def _anthropic(call: Call, usage: Json) -> Json:
    content: list[Json] = [{"citations": None, "text": call.reply, "type": "text"}]
    if call.tokens.reasoning:
        thought = {"signature": call.key, "thinking": call.messages[-1], "type": "thinking"}
        content.insert(0, thought)
    if call.tool:
        tool = {"id": f"toolu_{call.key[:24]}", "name": call.tool, "type": "tool_use"}
        content.append(tool | {"input": {"message": call.reply}})
    return {
        "id": f"msg_{call.key[:24]}",
        "content": content,
        "model": call.model,
        "role": "assistant",
        "stop_reason": "tool_use" if call.tool else "end_turn",
        "type": "message",
        "usage": usage,
    }


def _converse(call: Call, usage: Json) -> Json:
    message = {"role": "assistant", "content": [{"text": call.reply}]}
    return {"output": {"message": message}, "stopReason": "end_turn", "usage": usage}


def _gemini(call: Call, usage: Json) -> Json:
    content = {"parts": [{"text": call.reply, "thought": None}], "role": "model"}
    return {
        "candidates": [{"content": content, "finish_reason": "STOP", "index": 0}],
        "model_version": call.model,
        "response_id": call.key,
        "usage_metadata": usage,
    }


def _ollama(call: Call, usage: Json) -> Json:
    head = {"model": call.model, "created_at": call.at.isoformat(), "done": True}
    return head | {"message": {"role": "assistant", "content": call.reply}} | usage


def streamed(call: Call, usage: Json) -> Json:
    """Return the agent server's own record of a streamed answer, alike for every provider."""
    tool = _tool_call(call)
    text = [] if tool else [json_text({"type": "text", "text": call.reply, "signature": None})]
    return {
        "content": {"tool_call": tool, "content": text},
        "id": f"msg-{call.key}",
        "model": call.model,
        "role": "assistant",
        "type": "message",
        "usage": {name: count for name, count in usage.items() if count is not None},
    }


def summarized(call: Call) -> Json:
    """Return the agent server's record of a summary that it streamed from Anthropic."""
    usage = _anthropic_usage(call.tokens)
    del usage["cache_creation"], usage["service_tier"]
    return {"content": call.reply, "model": call.model, "usage": usage}


CANCELLED: Json = {"error": None, "error_type": None}
_SERVER_ERRORS = (
    ("LLMRateLimitError", "Rate limited by the provider: too many requests for {model}"),
    ("LLMServerError", "The provider's server failed: 503 Service Unavailable"),
    ("TimeoutError", ""),
    ("ContextWindowExceededError", "The prompt of {key} is longer than the context of {model}"),
    ("LLMConnectionError", "Failed to connect to the provider: connection reset by peer"),
    ("LLMAuthenticationError", "The provider refused the API key that is configured for {model}"),
)


def server_error(call: Call) -> Json:
    """Return the agent server's record of an exception; a timeout has no message."""
    name, message = call.rng.choice(_SERVER_ERRORS)
    return {"error": message.format(model=call.model, key=call.key), "error_type": name}


def _openai_error(call: Call) -> Json:
    message = f"This model's maximum context length is 128000 tokens. ({call.key[:8]})"
    error = {"message": message, "type": "invalid_request_error", "param": None}
    return {"error": error | {"code": "context_length_exceeded"}}


def _responses_error(call: Call) -> Json:
    message = "The model failed to generate a response."
    return _response(call, None, {"code": "server_error", "message": message})


def _anthropic_error(call: Call) -> Json:
    error = {"type": "overloaded_error", "message": "Overloaded"}
    return {"type": "error", "error": error, "request_id": f"req_{call.key[:24]}"}


def _openrouter_error(call: Call) -> Json:
    error = {"message": "Provider returned error", "code": 502}
    if call.rng.getrandbits(1):
        return {"error": error, "user_id": None}
    choice = {"index": 0, "finish_reason": "error", "error": error, "message": {"content": ""}}
    return _chat(call, {}) | {"choices": [choice], "usage": None}


_GOOGLE_ERROR = {"code": 429, "message": "Quota exceeded.", "status": "RESOURCE_EXHAUSTED"}
_AWS_ERROR = {"__type": "ThrottlingException", "message": "Too many tokens, please wait."}
_OLLAMA_ERROR = "model requires more system memory (9.1 GiB) than is available (7.4 GiB)"

_PLAIN_CHAT = Dialect(chat_request, _chat_usage, _chat, _openai_error)
_CHAT = replace(_PLAIN_CHAT, usage=_openai_usage, reports="cr")
_RESPONSES = Dialect(responses_request, _responses_usage, _response, _responses_error, "cr")
_CLAUDE = Dialect(anthropic_request, _anthropic_usage, _anthropic, _anthropic_error, "cw")
_THINKING = replace(_CLAUDE, usage=_thinking_usage, reports="cwr")
_CONVERSE = Dialect(bedrock_request, _converse_usage, _converse, lambda _: _AWS_ERROR, "cw")
_GEMINI = Dialect(google_request, _gemini_usage, _gemini, lambda _: {"error": _GOOGLE_ERROR}, "cr")
_OPENROUTER = Dialect(chat_request, _openrouter_usage, _chat, _openrouter_error, "cwr")
_OLLAMA = Dialect(chat_request, _ollama_usage, _ollama, lambda _: {"error": _OLLAMA_ERROR})

RECIPES = (
    Recipe("openai", "openai", "gpt-4o-mini", 22, _CHAT, streams=True),
    Recipe("openai", "openai", "gpt-5.1", 16, _RESPONSES, streams=True),
    Recipe("azure", "azure", "gpt-4o", 5, _CHAT),
    Recipe("anthropic", "anthropic", "claude-sonnet-4-5", 20, _CLAUDE, streams=True),
    Recipe("anthropic", "anthropic", "claude-opus-4-5", 7, _THINKING, streams=True),
    Recipe("bedrock", "bedrock", "amazon.nova-pro-v1:0", 4, _CONVERSE),
    Recipe("google_ai", "google_ai", "gemini-2.5-flash", 12, _GEMINI, streams=True),
    Recipe("google_vertex", "google_vertex", "gemini-2.5-pro", 3, _GEMINI, streams=True),
    Recipe("xai", "xai", "grok-4", 3, replace(_CHAT, usage=_xai_usage)),
    Recipe("openrouter", "openrouter", "z-ai/glm-5", 4, _OPENROUTER),
    Recipe("ollama", "ollama", "llama3.1:8b", 2, _OLLAMA),
    # Asked through OpenAI's endpoint type: only the step's provider name tells who answered.
    Recipe("vllm", "openai", "Qwen/Qwen3-32B", 2, _PLAIN_CHAT),
)
