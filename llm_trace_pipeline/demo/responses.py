"""What is asked and answered: the demo's kinds of calls, one a line of `RECIPES`.

Requests and responses are templates, in the shapes that the agent server stores. A string such as
"$reply" stands for the value of that name, which `draw_call` draws. A further kind of call is one
more line; what is new in it is merged into a template, as in `_CHAT | {"service_tier": "flex"}`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec

from llm_trace_pipeline.demo.text import passage, random_uuid

Json = dict[str, Any]
_NAME = re.compile(r'"\$(\w+)"')

# Requests without their tools: nothing reads those.
_ASK_CHAT: Json = {"model": "$model", "messages": "$messages"}
_ASK_RESPONSES: Json = {"model": "$model", "instructions": "$system", "input": "$turns"}
_ASK_CLAUDE: Json = {"model": "$model", "system": "$system", "messages": "$turns"}
# The model stands in the URL of a request to Google; the server does not store URLs.
_ASK_GEMINI: Json = {"system_instruction": "$system", "contents": "$contents"}

_CHAT_USAGE: Json = {
    "prompt_tokens": "$prompt",
    "completion_tokens": "$completion",
    "total_tokens": "$total",
}
_OPENAI_USAGE: Json = _CHAT_USAGE | {
    "prompt_tokens_details": {"cached_tokens": "$cached"},
    "completion_tokens_details": {"reasoning_tokens": "$reasoning"},
}
# xAI bills reasoning beside the completion; only the total includes it.
_XAI_USAGE: Json = _OPENAI_USAGE | {"completion_tokens": "$visible"}
_OPENROUTER_USAGE: Json = _OPENAI_USAGE | {
    "prompt_tokens_details": {"cached_tokens": "$cached", "cache_write_tokens": "$written"},
    "cost": "$cost",
}
_CLAUDE_USAGE: Json = {
    "input_tokens": "$fresh",
    "cache_creation_input_tokens": "$written",
    "cache_read_input_tokens": "$cached",
    "output_tokens": "$completion",
}

_CALLED = {"name": "send_message", "arguments": "$arguments"}
_TOOL_CALL = {"id": "$key", "type": "function", "function": _CALLED}
_MESSAGE = {"role": "assistant", "content": None, "tool_calls": [_TOOL_CALL]}
_CHOICE = {"finish_reason": "tool_calls", "index": 0, "message": _MESSAGE}
_CHAT: Json = {"id": "$key", "choices": [_CHOICE], "model": "$model", "usage": _OPENAI_USAGE}
_RESPONSE: Json = {
    "id": "$key",
    "error": None,
    "model": "$model",
    "output": [{"type": "reasoning", "summary": []}, {"type": "function_call"} | _CALLED],
    "status": "completed",
    "usage": {
        "input_tokens": "$prompt",
        "input_tokens_details": {"cached_tokens": "$cached"},
        "output_tokens": "$completion",
        "output_tokens_details": {"reasoning_tokens": "$reasoning"},
        "total_tokens": "$total",
    },
}
_TEXT = {"text": "$reply"}
_CLAUDE: Json = {
    "id": "$key",
    "content": [{"type": "text"} | _TEXT],
    "model": "$model",
    "stop_reason": "end_turn",
    "usage": _CLAUDE_USAGE | {"service_tier": "standard"},
}
_THINKING: Json = _CLAUDE | {
    "content": [{"type": "thinking", "thinking": "$reply"}, {"type": "text"} | _TEXT],
    "usage": _CLAUDE_USAGE | {"output_tokens_details": {"thinking_tokens": "$reasoning"}},
}
_CONVERSE: Json = {
    "output": {"message": {"role": "assistant", "content": [_TEXT]}},
    "stopReason": "end_turn",
    "usage": {
        "inputTokens": "$fresh",
        "cacheReadInputTokens": "$cached",
        "cacheWriteInputTokens": "$written",
        "outputTokens": "$completion",
        "totalTokens": "$total",
    },
}
_GEMINI: Json = {
    "candidates": [{"content": {"parts": [_TEXT], "role": "model"}, "finish_reason": "STOP"}],
    "model_version": "$model",
    "usage_metadata": {
        "prompt_token_count": "$prompt",
        "cached_content_token_count": "$cached",
        "candidates_token_count": "$visible",
        "thoughts_token_count": "$reasoning",
        "total_token_count": "$total",
    },
}
_GEMINI_USAGE: Json = _GEMINI["usage_metadata"]
_HEARD: Json = {"modality": "AUDIO", "token_count": "$heard"}
_READ: Json = {"modality": "TEXT", "token_count": "$rest"}
_CACHED: Json = {"modality": "TEXT", "token_count": "$cached"}
_DRAWN: Json = {"modality": "IMAGE", "token_count": "$visible"}
_SEARCH: Json = {"type": "web_search_call", "action": {"type": "search", "query": "$key"}}
_AUDIO_USAGE: Json = _CHAT_USAGE | {"prompt_tokens_details": {"audio_tokens": "$heard"}}
_FOR_AN_HOUR: Json = {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": "$written"}
_SONAR_COST: Json = {"request_cost": 0.005, "total_cost": "$cost_with_fee"}


def _with_usage(response: Json, **more: object) -> Json:
    """Return a response whose usage object states more."""
    return response | {"usage": response["usage"] | more}


# The agent server's own records: of a streamed answer, in one shape for all providers; of a
# summary that it streamed from Anthropic; of calls that were cancelled or failed.
_STREAMED: Json = {"content": {"tool_call": _TOOL_CALL, "content": []}, "model": "$model"}
_SUMMARY: Json = {"content": "$reply", "model": "$model", "usage": _CLAUDE_USAGE}
CANCELLED: Json = {"error": None, "error_type": None}
ERRORS: tuple[Json, ...] = (
    {"error": "Rate limited by the provider: too many requests", "error_type": "LLMRateLimitError"},
    {"error": "The provider failed: 503 Service Unavailable", "error_type": "LLMServerError"},
    {"error": "", "error_type": "TimeoutError"},
    {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A kind of call to a provider's model."""

    weight: int  # the share of the calls
    provider: str
    model: str
    request: Json
    response: Json
    endpoint_type: str = ""  # in the agent's configuration, where it is not the provider's name
    call_type: str = "agent_step"

    def states(self, name: str) -> bool:
        """Return whether the response states a value, such as ``cached``."""
        return f'"${name}"' in json_text(self.response)


RECIPES = (
    Recipe(16, "openai", "gpt-4o-mini", _ASK_CHAT, _CHAT),
    Recipe(10, "openai", "gpt-4o-mini", _ASK_CHAT, _STREAMED | {"usage": _OPENAI_USAGE}),
    Recipe(16, "openai", "gpt-5.1", _ASK_RESPONSES, _RESPONSE),
    Recipe(12, "anthropic", "claude-sonnet-4-5", _ASK_CLAUDE, _CLAUDE),
    Recipe(6, "anthropic", "claude-sonnet-4-5", _ASK_CLAUDE, _STREAMED | {"usage": _CLAUDE_USAGE}),
    Recipe(4, "anthropic", "claude-sonnet-4-5", _ASK_CLAUDE, _SUMMARY, call_type="summarization"),
    Recipe(7, "anthropic", "claude-opus-4-5", _ASK_CLAUDE, _THINKING),
    Recipe(4, "bedrock", "amazon.nova-pro-v1:0", _ASK_CLAUDE, _CONVERSE),
    Recipe(15, "google_ai", "gemini-2.5-flash", _ASK_GEMINI, _GEMINI),
    Recipe(3, "xai", "grok-4", _ASK_CHAT, _CHAT | {"usage": _XAI_USAGE}),
    Recipe(4, "openrouter", "z-ai/glm-5", _ASK_CHAT, _CHAT | {"usage": _OPENROUTER_USAGE}),
    # Asked through OpenAI's endpoint type: only the provider's name tells who answered.
    Recipe(3, "vllm", "Qwen/Qwen3-32B", _ASK_CHAT, _CHAT | {"usage": _CHAT_USAGE}, "openai"),
    Recipe(1, "mistral", "mistral-medium-latest", _ASK_CHAT, _CHAT, "openai"),
    # An answer that cost more or less than its tokens do at the standard price: by its tier, its
    # speed, its region, by how long its cache lasts, by media and searches.
    Recipe(1, "openai", "gpt-5-nano", _ASK_RESPONSES, _RESPONSE | {"service_tier": "flex"}),
    Recipe(
        *(1, "openai", "gpt-5.4-fast", _ASK_RESPONSES),
        _RESPONSE | {"model": "gpt-5.4-2026-03-05", "service_tier": "priority"},
    ),
    Recipe(
        *(1, "openai", "gpt-5", _ASK_RESPONSES),
        _RESPONSE | {"output": [_SEARCH, _SEARCH, *_RESPONSE["output"]]},
    ),
    Recipe(1, "openai", "gpt-audio", _ASK_CHAT, _CHAT | {"usage": _AUDIO_USAGE}),
    Recipe(
        *(1, "anthropic", "claude-sonnet-4-5", _ASK_CLAUDE),
        _with_usage(_CLAUDE, cache_creation=_FOR_AN_HOUR),
    ),
    Recipe(
        *(1, "anthropic", "claude-sonnet-4-5", _ASK_CLAUDE),
        _with_usage(_CLAUDE, server_tool_use={"web_search_requests": "$searches"}),
    ),
    Recipe(1, "anthropic", "claude-opus-5", _ASK_CLAUDE, _with_usage(_CLAUDE, speed="fast")),
    Recipe(
        *(1, "anthropic", "claude-opus-4-6", _ASK_CLAUDE),
        _with_usage(_CLAUDE, inference_geo="us"),
    ),
    Recipe(
        *(1, "bedrock", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", _ASK_CLAUDE),
        _with_usage(_CONVERSE, cacheDetails=[{"ttl": "1h", "inputTokens": "$written"}]),
    ),
    Recipe(
        *(1, "google_ai", "gemini-2.5-flash", _ASK_GEMINI),
        _GEMINI
        | {
            "usage_metadata": _GEMINI_USAGE
            | {"prompt_tokens_details": [_HEARD, _READ], "cache_tokens_details": [_CACHED]}
        },
    ),
    Recipe(
        *(1, "google_ai", "gemini-2.5-flash-image", _ASK_GEMINI),
        _GEMINI | {"usage_metadata": _GEMINI_USAGE | {"candidates_tokens_details": [_DRAWN]}},
    ),
    # The answer says what was charged, or which model stands behind a name.
    Recipe(
        *(1, "openrouter", "openrouter/auto", _ASK_CHAT),
        _CHAT | {"model": "openai/gpt-5-mini", "usage": _OPENROUTER_USAGE},
    ),
    Recipe(
        *(1, "perplexity", "sonar", _ASK_CHAT),
        _CHAT | {"usage": _CHAT_USAGE | {"search_context_size": "low", "cost": _SONAR_COST}},
    ),
    Recipe(1, "azure", "prod-chat", _ASK_CHAT, _CHAT | {"model": "gpt-4o-2024-08-06"}),
    # A stream that ended without its usage: the step knows it, where there is one.
    Recipe(2, "openai", "gpt-4o-mini", _ASK_CHAT, _STREAMED | {"usage": None}),
)


def draw_call(rng: Random, recipe: Recipe, system: str, asked: int, answered: int) -> Json:
    """Return the values of a call, by their names in the templates; a count not stated is None.

    The messages have ``asked`` characters in all, the reply has ``answered``.
    """
    size = rng.choice((1, 1, 3, 3, 5, 7))
    texts = [(number % 2, passage(rng, asked // size)) for number in range(size)]
    return values_of_call(
        rng, recipe, system, texts, passage(rng, answered), length=len(system) + asked
    )


def values_of_call(
    rng: Random,
    recipe: Recipe,
    system: str,
    texts: Sequence[tuple[int, str]],
    reply: str,
    *,
    length: int,
) -> Json:
    """Return the values of a call with these messages; the rest is drawn. Costs are dollars.

    Args:
        rng: draws the counts.
        recipe: the kind of the call.
        system: the system prompt.
        texts: the messages: 0 for the user or 1 for the assistant, and the text.
        reply: the answer.
        length: characters of all that is sent.
    """
    prompt = length // 4 + rng.randrange(50, 600)  # all input
    cached = int(prompt * rng.choice((0, 0, 0.5, 0.8))) if recipe.states("cached") else None
    written = int(prompt * rng.choice((0, 0.1, 0.19))) if recipe.states("written") else None
    reasoning = rng.choice((0, rng.randrange(2000))) if recipe.states("reasoning") else None
    visible = len(reply) // 4 + rng.randrange(1, 40)
    completion = visible + (reasoning or 0)  # all billed output
    turns = [{"role": ("user", "assistant")[side], "content": text} for side, text in texts]
    return {
        "key": random_uuid(rng).hex,
        "model": recipe.model,
        "system": system,
        "turns": turns,
        "messages": [{"role": "system", "content": system}, *turns],
        "contents": [
            {"role": ("user", "model")[side], "parts": [{"text": text}]} for side, text in texts
        ],
        "reply": reply,
        "arguments": json_text({"message": reply, "request_heartbeat": False}),
        "prompt": prompt,
        "fresh": prompt - (cached or 0) - (written or 0),
        "cached": cached,
        "written": written,
        "completion": completion,
        "visible": visible,
        "reasoning": reasoning,
        "total": prompt + completion,
        "cost": round((prompt + completion) * 2.1e-6, 8),
        "cost_with_fee": round((prompt + completion) * 1e-6 + 0.005, 8),
        "heard": prompt // 5,  # of the prompt; the cache holds the text before it
        "rest": prompt - prompt // 5,
        "searches": rng.randrange(1, 4),
    }


def step_counts(call: Json) -> Json:
    """Return the token columns of a step; without values, {}, it counts no tokens."""
    return {
        "prompt_tokens": call.get("prompt", 0),
        "completion_tokens": call.get("completion", 0),
        "total_tokens": call.get("total", 0),
        "cached_input_tokens": call.get("cached"),
        "cache_write_tokens": call.get("written"),
        "reasoning_tokens": call.get("reasoning"),
    }


def fill(template: Json, call: Json) -> str:
    """Return a template as JSON text, with the values of a call in it."""
    return _NAME.sub(lambda name: json_text(call[name[1]]), json_text(template))


def json_text(value: object) -> str:
    """Return a value as JSON text."""
    return msgspec.json.encode(value).decode()
