"""What each provider answers, as an agent server stores it: the demo's recipes.

A call is drawn once, as token counts that hold for every provider (all input, all billed output,
and what of them was cached, written to a cache, or thought). A recipe says in which words its
provider reports them.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import msgspec

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a call used; the last three are parts of the first two, None where not reported."""

    prompt: int
    completion: int
    cached: int | None
    written: int | None
    reasoning: int | None

    @property
    def total(self) -> int:
        """All that is billed."""
        return self.prompt + self.completion

    @property
    def fresh(self) -> int:
        """The input that no cache had to do with."""
        return self.prompt - (self.cached or 0) - (self.written or 0)


@dataclass(frozen=True, slots=True)
class Call:
    """One call to a model, before it is put into the words of its provider."""

    rng: random.Random
    key: str
    at: datetime
    model: str
    system: str
    messages: list[str]
    reply: str
    tool: str | None
    tokens: Tokens

    @property
    def seconds(self) -> int:
        """When the call was made, as providers put it."""
        return int(self.at.timestamp())

    @property
    def arguments(self) -> str:
        """The arguments of the tool that the model called, as JSON text."""
        heartbeat = bool(self.rng.getrandbits(1))
        return _text({"message": self.reply, "request_heartbeat": heartbeat})


Usage = Callable[[Tokens], Json]
Body = Callable[[Call, Json], Json]
Request = Callable[[Call], Json]
Failure = Callable[[Call], Json]


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()


# ---- requests


TOOLS = ("send_message", "conversation_search", "archival_memory_insert", "memory_replace")
_TOOL_SCHEMAS = [
    {
        "name": name,
        "description": f"Use {name} where the user or your own notes ask for it.",
        "parameters": {
            "type": "object",
            "properties": {"message": {"type": "string"}, "request_heartbeat": {"type": "boolean"}},
            "required": ["message"],
        },
    }
    for name in TOOLS
]
_CHAT_TOOLS = [{"type": "function", "function": schema} for schema in _TOOL_SCHEMAS]
_ANTHROPIC_TOOLS = [
    {"name": s["name"], "description": s["description"], "input_schema": s["parameters"]}
    for s in _TOOL_SCHEMAS
]


def _turns(call: Call, assistant: str = "assistant") -> list[tuple[str, str]]:
    """Return the conversation: turns that end with one of the user's."""
    last = len(call.messages) - 1
    return [
        ("user" if (last - index) % 2 == 0 else assistant, text)
        for index, text in enumerate(call.messages)
    ]


def chat_request(call: Call) -> Json:
    """Return a chat completion request."""
    messages = [{"role": "system", "content": call.system}]
    messages += [{"role": role, "content": text} for role, text in _turns(call)]
    request: Json = {
        "model": call.model,
        "messages": messages,
        "temperature": 1.0,
        "user": call.key,
    }
    if call.tool:
        request |= {"tools": _CHAT_TOOLS, "tool_choice": "auto", "parallel_tool_calls": False}
    return request


def _responses_request(call: Call) -> Json:
    turns = [{"role": role, "content": text} for role, text in _turns(call)]
    request: Json = {"model": call.model, "instructions": call.system, "input": turns}
    if call.tool:
        request["tools"] = [{"type": "function", **schema} for schema in _TOOL_SCHEMAS]
    return request | {"store": False, "include": ["reasoning.encrypted_content"]}


def _anthropic_request(call: Call) -> Json:
    cached = {"cache_control": {"type": "ephemeral"}}
    request: Json = {
        "model": call.model,
        "max_tokens": 8192,
        "system": [{"type": "text", "text": call.system, **cached}],
        "messages": [{"role": role, "content": text} for role, text in _turns(call)],
    }
    return request | {"tools": _ANTHROPIC_TOOLS} if call.tool else request


def _bedrock_request(call: Call) -> Json:
    # The inference profile, which is not the model that the agent's configuration names.
    return _anthropic_request(call) | {"model": f"us.{call.model}"}


def _google_request(call: Call) -> Json:
    # The model is in the URL, and so not in what is stored.
    contents = [{"role": role, "parts": [{"text": text}]} for role, text in _turns(call, "model")]
    config: Json = {"system_instruction": call.system, "temperature": 1.0}
    if call.tool:
        config["tools"] = [{"function_declarations": _TOOL_SCHEMAS}]
    return {"contents": contents, "config": config}


def _realtime_request(call: Call) -> Json:
    response = {"output_modalities": ["audio"], "instructions": call.system}
    return {"type": "response.create", "model": call.model, "response": response}


def _embeddings_request(call: Call) -> Json:
    return {"model": call.model, "input": call.messages, "encoding_format": "float"}


def _prompt_request(call: Call) -> Json:
    return {"model": call.model, "prompt": "\n".join([call.system, *call.messages])}


# ---- usage


def _plain(tokens: Tokens) -> Json:
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "total_tokens": tokens.total,
    }


def _null_details(tokens: Tokens) -> Json:
    return _plain(tokens) | {"prompt_tokens_details": None, "completion_tokens_details": None}


def _details(tokens: Tokens) -> Json:
    usage = _plain(tokens)
    if tokens.cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": tokens.cached}
    if tokens.reasoning is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": tokens.reasoning}
    return usage


def _openai(tokens: Tokens) -> Json:
    return _plain(tokens) | {
        "completion_tokens_details": {
            "accepted_prediction_tokens": 0,
            "audio_tokens": 0,
            "reasoning_tokens": tokens.reasoning,
            "rejected_prediction_tokens": 0,
        },
        "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": tokens.cached},
    }


def _responses(tokens: Tokens) -> Json:
    return {
        "input_tokens": tokens.prompt,
        "input_tokens_details": {"cached_tokens": tokens.cached},
        "output_tokens": tokens.completion,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
        "total_tokens": tokens.total,
    }


def _realtime(tokens: Tokens) -> Json:
    return {
        "total_tokens": tokens.total,
        "input_tokens": tokens.prompt,
        "output_tokens": tokens.completion,
        "input_token_details": {"text_tokens": tokens.prompt, "cached_tokens": tokens.cached},
        "output_token_details": {"text_tokens": 0, "audio_tokens": tokens.completion},
    }


def _embedded(tokens: Tokens) -> Json:
    return {"prompt_tokens": tokens.prompt, "total_tokens": tokens.prompt}


def _anthropic(tokens: Tokens) -> Json:
    return {
        "cache_creation": {
            "ephemeral_1h_input_tokens": 0,
            "ephemeral_5m_input_tokens": tokens.written,
        },
        "cache_creation_input_tokens": tokens.written,
        "cache_read_input_tokens": tokens.cached,
        "input_tokens": tokens.fresh,
        "output_tokens": tokens.completion,
        "server_tool_use": None,
        "service_tier": "standard",
    }


def _thinking(tokens: Tokens) -> Json:
    details = {"thinking_tokens": tokens.reasoning}
    return _anthropic(tokens) | {"output_tokens_details": details}


def _compacted(tokens: Tokens) -> Json:
    # The top level leaves out what compaction used.
    compaction = {"input_tokens": tokens.fresh // 2, "output_tokens": tokens.completion // 3}
    usage = _anthropic(tokens)
    usage["input_tokens"] -= compaction["input_tokens"]
    usage["output_tokens"] -= compaction["output_tokens"]
    no_cache = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    message = {key: usage[key] for key in (*compaction, *no_cache)}
    iterations = [{"type": "compaction", **compaction, **no_cache}, {"type": "message", **message}]
    return usage | {"iterations": iterations}


def _converse(tokens: Tokens) -> Json:
    return {
        "inputTokens": tokens.fresh,
        "outputTokens": tokens.completion,
        "totalTokens": tokens.total,
        "cacheReadInputTokens": tokens.cached,
        "cacheWriteInputTokens": tokens.written,
    }


def _invoked(tokens: Tokens) -> Json:
    return {
        "inputTokenCount": tokens.fresh,
        "outputTokenCount": tokens.completion,
        "invocationLatency": 900 + tokens.completion,
        "firstByteLatency": 310,
        "cacheReadInputTokenCount": tokens.cached,
        "cacheWriteInputTokenCount": tokens.written,
    }


def _gemini(tokens: Tokens) -> Json:
    counts = {
        "promptTokenCount": tokens.prompt,
        "candidatesTokenCount": tokens.completion - (tokens.reasoning or 0),
        "thoughtsTokenCount": tokens.reasoning,
        "cachedContentTokenCount": tokens.cached,
    }
    # Zeros are left out, and so one cannot tell them from what is not reported.
    return {key: count for key, count in counts.items() if count} | {
        "totalTokenCount": tokens.total,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": tokens.prompt}],
    }


def _gemini_sdk(tokens: Tokens) -> Json:
    return {
        "cache_tokens_details": None,
        "cached_content_token_count": tokens.cached or None,
        "candidates_token_count": tokens.completion - (tokens.reasoning or 0),
        "candidates_tokens_details": None,
        "prompt_token_count": tokens.prompt,
        "prompt_tokens_details": [{"modality": "TEXT", "token_count": tokens.prompt}],
        "thoughts_token_count": tokens.reasoning or None,
        "tool_use_prompt_token_count": None,
        "total_token_count": tokens.total,
        "traffic_type": None,
    }


def _xai(tokens: Tokens) -> Json:
    # The reasoning is billed beside the completion, and the total shows it.
    visible = tokens.completion - (tokens.reasoning or 0)
    return _openai(tokens) | {"completion_tokens": visible, "num_sources_used": 0}


def _deepseek(tokens: Tokens) -> Json:
    return _details(tokens) | {
        "prompt_cache_hit_tokens": tokens.cached,
        "prompt_cache_miss_tokens": tokens.fresh,
    }


def _groq(tokens: Tokens) -> Json:
    times = {"queue_time": 0.037, "prompt_time": 0.0006, "completion_time": 0.4, "total_time": 0.44}
    return _details(tokens) | times


def _top_level_cache(tokens: Tokens) -> Json:
    return _plain(tokens) | {"cached_tokens": tokens.cached}


def _openrouter(tokens: Tokens) -> Json:
    cache = {
        "cached_tokens": tokens.cached,
        "cache_write_tokens": tokens.written,
        "audio_tokens": 0,
    }
    cost = {"cost": round(tokens.total * 2.1e-6, 8), "is_byok": False}
    return _details(tokens) | {"prompt_tokens_details": cache} | cost


def _litellm(tokens: Tokens) -> Json:
    # Anthropic's words beside OpenAI's; prompt_tokens has them all already.
    return _details(tokens) | {
        "cache_creation_input_tokens": tokens.written,
        "cache_read_input_tokens": tokens.cached,
    }


def _ollama(tokens: Tokens) -> Json:
    return {
        "total_duration": 5_043_500_667,
        "load_duration": 5_025_959,
        "prompt_eval_count": tokens.prompt,
        "prompt_eval_duration": 325_953_000,
        "eval_count": tokens.completion,
        "eval_duration": 4_709_213_000,
    }


def _sglang(tokens: Tokens) -> Json:
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "cached_tokens": tokens.cached,
        "finish_reason": {"type": "stop", "matched": 151645},
        "e2e_latency": 1.7,
    }


def _cohere(tokens: Tokens) -> Json:
    counts = {"input_tokens": tokens.prompt, "output_tokens": tokens.completion}
    return {"billed_units": counts, "tokens": counts}


def _perplexity(tokens: Tokens) -> Json:
    searched = {"citation_tokens": 0, "num_search_queries": 4, "search_context_size": "low"}
    return _plain(tokens) | {"reasoning_tokens": tokens.reasoning} | searched


def _ai_sdk(tokens: Tokens) -> Json:
    return {
        "promptTokens": tokens.prompt,
        "completionTokens": tokens.completion,
        "totalTokens": tokens.total,
    }


# ---- bodies


def _chat(call: Call, usage: Json) -> Json:
    """Return a chat completion as the SDK dumps it, what is unset being null."""
    calls = None
    if call.tool:
        function = {"arguments": call.arguments, "name": call.tool}
        calls = [{"id": f"call_{call.key[:24]}", "function": function, "type": "function"}]
    message = {
        "content": None if calls else call.reply,
        "refusal": None,
        "role": "assistant",
        "annotations": None,
        "audio": None,
        "function_call": None,
        "tool_calls": calls,
    }
    reason = "tool_calls" if calls else "stop"
    return {
        "id": f"chatcmpl-{call.key}",
        "choices": [{"finish_reason": reason, "index": 0, "logprobs": None, "message": message}],
        "created": call.seconds,
        "model": call.model,
        "object": "chat.completion",
        "service_tier": None,
        "system_fingerprint": f"fp_{call.key[:10]}",
        "usage": usage,
    }


def _chat_with(**extra: object) -> Body:
    """Return a maker of chat completions with fields of the provider's own."""
    return lambda call, usage: _chat(call, usage) | extra


def _responses_body(call: Call, usage: Json) -> Json:
    content: Json = {"type": "output_text", "text": call.reply, "annotations": [], "logprobs": None}
    message = {
        "type": "message",
        "id": f"msg_{call.key}",
        "role": "assistant",
        "content": [content],
    }
    reasoning: Json = {"type": "reasoning", "id": f"rs_{call.key}", "summary": [], "status": None}
    output: list[Json] = [reasoning, message | {"status": "completed"}]
    if call.tool:
        function = {"type": "function_call", "name": call.tool, "arguments": call.arguments}
        output[1] = function | {"call_id": f"call_{call.key[:24]}", "status": "completed"}
    return {
        "id": f"resp_{call.key}",
        "created_at": float(call.seconds),
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "model": call.model,
        "object": "response",
        "output": output,
        "parallel_tool_calls": True,
        "status": "completed",
        "usage": usage,
    }


def _realtime_body(call: Call, usage: Json) -> Json:
    content = [{"type": "output_audio", "transcript": call.reply}]
    response = {
        "object": "realtime.response",
        "id": f"resp_{call.key}",
        "status": "completed",
        "output": [{"type": "message", "role": "assistant", "content": content}],
        "usage": usage,
    }
    return {"type": "response.done", "event_id": f"event_{call.key}", "response": response}


def _embeddings_body(call: Call, usage: Json) -> Json:
    vector = [round(call.rng.uniform(-0.1, 0.1), 7) for _ in range(48)]
    data = [{"object": "embedding", "index": 0, "embedding": vector}]
    return {"object": "list", "data": data, "model": call.model, "usage": usage}


def _anthropic_body(call: Call, usage: Json) -> Json:
    content: list[Json] = [{"citations": None, "text": call.reply, "type": "text"}]
    if call.tokens.reasoning:
        content.insert(
            0, {"signature": call.key, "thinking": call.messages[-1], "type": "thinking"}
        )
    if call.tool:
        tool = {"id": f"toolu_{call.key[:24]}", "name": call.tool, "type": "tool_use"}
        content.append(tool | {"input": {"message": call.reply}})
    return {
        "id": f"msg_{call.key[:24]}",
        "content": content,
        "model": call.model,
        "role": "assistant",
        "stop_reason": "tool_use" if call.tool else "end_turn",
        "stop_sequence": None,
        "type": "message",
        "usage": usage,
    }


def _converse_body(call: Call, usage: Json) -> Json:
    message = {"role": "assistant", "content": [{"text": call.reply}]}
    return {
        "output": {"message": message},
        "stopReason": "end_turn",
        "usage": usage,
        "metrics": {"latencyMs": 1275},
    }


def _invoked_body(call: Call, usage: Json) -> Json:
    return {"type": "message_stop", "completion": call.reply} | {
        "amazon-bedrock-invocationMetrics": usage
    }


def _gemini_body(call: Call, usage: Json) -> Json:
    content = {"parts": [{"text": call.reply}], "role": "model"}
    return {
        "candidates": [{"content": content, "finishReason": "STOP", "index": 0}],
        "usageMetadata": usage,
        "modelVersion": call.model,
        "responseId": call.key,
    }


def _gemini_sdk_body(call: Call, usage: Json) -> Json:
    part = {"text": call.reply, "thought": None, "thought_signature": None, "function_call": None}
    candidate = {"content": {"parts": [part], "role": "model"}, "finish_reason": "STOP", "index": 0}
    return {
        "sdk_http_response": None,
        "candidates": [candidate],
        "create_time": None,
        "model_version": call.model,
        "prompt_feedback": None,
        "response_id": call.key,
        "usage_metadata": usage,
        "automatic_function_calling_history": None,
        "parsed": None,
    }


def _ollama_body(call: Call, usage: Json) -> Json:
    head = {"model": call.model, "created_at": call.at.isoformat(), "done": True}
    return head | {"message": {"role": "assistant", "content": call.reply}} | usage


def _ollama_generated(call: Call, usage: Json) -> Json:
    return {"model": call.model, "response": call.reply, "done": True, "context": [1, 2, 3]} | usage


def _sglang_body(call: Call, usage: Json) -> Json:
    return {"text": call.reply, "output_ids": [9707, 0], "meta_info": {"id": call.key} | usage}


def _cohere_body(call: Call, usage: Json) -> Json:
    message = {"role": "assistant", "content": [{"type": "text", "text": call.reply}]}
    return {"id": call.key, "finish_reason": "COMPLETE", "message": message, "usage": usage}


def _ai_sdk_body(call: Call, usage: Json) -> Json:
    return {"text": call.reply, "finishReason": "stop", "usage": usage, "warnings": []}


def streamed(call: Call, usage: Json) -> Json:
    """Return what the agent server itself writes of a streamed answer, for every provider alike."""
    tool = None
    if call.tool:
        function = {"name": call.tool, "arguments": call.arguments}
        tool = {"id": f"call_{call.key[:24]}", "function": function, "type": "function"}
    text = [] if tool else [_text({"type": "text", "text": call.reply, "signature": None})]
    return {
        "content": {"tool_call": tool, "content": text},
        "id": f"msg-{call.key}",
        "model": call.model,
        "role": "assistant",
        "type": "message",
        "usage": _without_nulls(usage),
    }


def summarized(call: Call) -> Json:
    """Return what the agent server writes of a summary that it streams from Anthropic."""
    keys = ("input_tokens", "output_tokens", "cache_read_input_tokens")
    usage = {key: _anthropic(call.tokens)[key] for key in (*keys, "cache_creation_input_tokens")}
    return {"content": call.reply, "model": call.model, "usage": usage}


def _without_nulls(value: Mapping[str, Any]) -> Json:
    return {
        key: _without_nulls(item) if isinstance(item, dict) else item
        for key, item in value.items()
        if item is not None
    }


# ---- failures


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
    """Return what the agent server writes of an exception; some have no message."""
    name, message = call.rng.choice(_SERVER_ERRORS)
    return {"error": message.format(model=call.model, key=call.key), "error_type": name}


def _openai_error(call: Call) -> Json:
    message = f"This model's maximum context length is 128000 tokens. ({call.key[:8]})"
    code = "context_length_exceeded"
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return {"error": error}


def _azure_error(_call: Call) -> Json:
    message = "The response was filtered due to the prompt triggering the content policy."
    inner = {"code": "ResponsibleAIPolicyViolation"}
    error = {"message": message, "type": None, "param": "prompt", "code": "content_filter"}
    return {"error": error | {"status": 400, "innererror": inner}}


def _responses_error(call: Call) -> Json:
    error = {"code": "server_error", "message": "The model failed to generate a response."}
    failed: Json = {"status": "failed", "error": error, "output": [], "usage": None}
    return _responses_body(call, {}) | failed


def _anthropic_error(call: Call) -> Json:
    error = {"type": "overloaded_error", "message": "Overloaded"}
    return {"type": "error", "error": error, "request_id": f"req_{call.key[:24]}"}


def _google_error(_call: Call) -> Json:
    message = "Resource has been exhausted (e.g. check quota)."
    return {"error": {"code": 429, "message": message, "status": "RESOURCE_EXHAUSTED"}}


def _openrouter_error(call: Call) -> Json:
    error = {"message": "Provider returned error", "code": 502, "metadata": {"provider_name": "X"}}
    if call.rng.getrandbits(1):
        choice = {"index": 0, "finish_reason": "error", "error": error, "message": {"content": ""}}
        return _chat(call, {}) | {"choices": [choice], "usage": None}
    nulls = dict.fromkeys(("id", "choices", "created", "model", "object", "usage"))
    return nulls | {"error": error, "user_id": None}


def _vllm_error(_call: Call) -> Json:
    message = "This model's maximum context length is 32768 tokens."
    return {"object": "error", "message": message, "type": "BadRequestError", "code": 400}


def _ollama_error(_call: Call) -> Json:
    return {"error": "model requires more system memory (9.1 GiB) than is available (7.4 GiB)"}


def _aws_error(_call: Call) -> Json:
    return {"__type": "ThrottlingException", "message": "Too many tokens, please wait."}


# ---- the providers


@dataclass(frozen=True, slots=True)
class Dialect:
    """What providers that speak the same API have in common."""

    usage: Usage
    body: Body
    request: Request
    failure: Failure
    reports: str  # of "c" (cached), "w" (written to the cache), "r" (reasoning)


_CHAT = Dialect(_plain, _chat, chat_request, _openai_error, "")
_FULL_CHAT = replace(_CHAT, usage=_openai, reports="cr")
_NULL_CHAT = replace(_CHAT, usage=_null_details)
_CACHING_CHAT = replace(_CHAT, usage=_details, reports="c")
_TOP_LEVEL_CHAT = replace(_CHAT, usage=_top_level_cache, reports="c")
_REALTIME = Dialect(_realtime, _realtime_body, _realtime_request, _openai_error, "c")
_EMBEDDINGS = Dialect(_embedded, _embeddings_body, _embeddings_request, _openai_error, "")
_RESPONSES = Dialect(_responses, _responses_body, _responses_request, _responses_error, "cr")
_CLAUDE = Dialect(_anthropic, _anthropic_body, _anthropic_request, _anthropic_error, "cw")
_THINKING = replace(_CLAUDE, usage=_thinking, reports="cwr")
_BEDROCK = replace(_CLAUDE, request=_bedrock_request, failure=_aws_error)
_CONVERSE = replace(_BEDROCK, usage=_converse, body=_converse_body)
_INVOKED = replace(_BEDROCK, usage=_invoked, body=_invoked_body)
_GEMINI = Dialect(_gemini_sdk, _gemini_sdk_body, _google_request, _google_error, "cr")
_GEMINI_REST = replace(_GEMINI, usage=_gemini, body=_gemini_body)
_OLLAMA = Dialect(_ollama, _ollama_body, chat_request, _ollama_error, "")
_OLLAMA_GENERATE = replace(_OLLAMA, body=_ollama_generated, request=_prompt_request)
_SGLANG = Dialect(_sglang, _sglang_body, _prompt_request, _openai_error, "c")
_OPENROUTER = Dialect(_openrouter, _chat, chat_request, _openrouter_error, "cwr")
_PERPLEXITY = replace(_CHAT, usage=_perplexity, body=_chat_with(citations=[]), reports="r")
_GROQ = replace(_CHAT, usage=_groq, body=_chat_with(x_groq={"id": "req_01"}), reports="c")
_CEREBRAS = replace(_CACHING_CHAT, body=_chat_with(time_info={"total_time": 0.04}))
_FIREWORKS = replace(_CACHING_CHAT, body=_chat_with(perf_metrics={"server-ttft": "0.21"}))


def _chat_plus(**extra: object) -> Dialect:
    return replace(_CHAT, body=_chat_with(**extra))


@dataclass(frozen=True, slots=True)
class Recipe:
    """How often a provider's model is called, and in which words; no two recipes share a model.

    `provider` is what the step names, `endpoint_type` what the agent's configuration names.
    """

    provider: str
    endpoint_type: str
    model: str
    weight: int
    dialect: Dialect
    streams: bool = False


# Many are asked through OpenAI's endpoint type: only the step's provider name tells them apart.
RECIPES = (
    Recipe("openai", "openai", "gpt-4o-mini", 20, _FULL_CHAT, streams=True),
    Recipe("openai", "openai", "gpt-5.1", 14, _RESPONSES, streams=True),
    Recipe("openai", "openai", "gpt-realtime", 1, _REALTIME),
    Recipe("openai", "openai", "text-embedding-3-small", 2, _EMBEDDINGS),
    Recipe("azure", "azure", "gpt-4o", 5, replace(_FULL_CHAT, failure=_azure_error)),
    Recipe("chatgpt_oauth", "chatgpt_oauth", "gpt-5.2-codex", 1, _chat_plus(model="")),
    Recipe("anthropic", "anthropic", "claude-sonnet-4-5", 18, _CLAUDE, streams=True),
    Recipe("anthropic", "anthropic", "claude-haiku-4-5", 8, _CLAUDE, streams=True),
    Recipe("anthropic", "anthropic", "claude-opus-4-5", 5, _THINKING, streams=True),
    Recipe("anthropic", "anthropic", "claude-opus-4-6", 2, replace(_CLAUDE, usage=_compacted)),
    Recipe("minimax", "minimax", "MiniMax-M2.1", 1, _CLAUDE),
    Recipe("bedrock", "bedrock", "anthropic.claude-sonnet-4-v1:0", 2, _BEDROCK),
    Recipe("bedrock", "bedrock", "amazon.nova-pro-v1:0", 2, _CONVERSE),
    Recipe("bedrock", "bedrock", "amazon.nova-lite-v1:0", 1, _INVOKED),
    Recipe("google_ai", "google_ai", "gemini-2.5-flash", 10, _GEMINI, streams=True),
    Recipe("google_ai", "google_ai", "gemini-2.0-flash", 2, _GEMINI_REST),
    Recipe("google_vertex", "google_vertex", "gemini-2.5-pro", 3, _GEMINI, streams=True),
    Recipe("xai", "xai", "grok-4", 2, replace(_FULL_CHAT, usage=_xai)),
    Recipe("deepseek", "deepseek", "deepseek-reasoner", 2, replace(_FULL_CHAT, usage=_deepseek)),
    Recipe("groq", "groq", "llama-3.3-70b-versatile", 2, _GROQ),
    Recipe("together", "together", "meta-llama/Llama-4-Maverick", 1, _TOP_LEVEL_CHAT),
    Recipe("moonshot", "openai", "kimi-k2.6", 1, _TOP_LEVEL_CHAT),
    Recipe("openrouter", "openrouter", "z-ai/glm-5", 3, _OPENROUTER),
    Recipe("mistral", "openai", "mistral-large-latest", 2, _NULL_CHAT),
    Recipe("vllm", "openai", "Qwen/Qwen3-32B", 1, replace(_NULL_CHAT, failure=_vllm_error)),
    Recipe("ollama", "openai", "llama3.1:8b", 1, _chat_plus(system_fingerprint="fp_ollama")),
    Recipe("ollama", "ollama", "llama3.2:3b", 1, _OLLAMA),
    Recipe("ollama", "ollama", "gemma3:4b", 1, _OLLAMA_GENERATE),
    Recipe("lmstudio_openai", "openai", "qwen2.5-7b-instruct", 1, _chat_plus(stats={})),
    Recipe("cerebras", "openai", "llama-4-scout", 1, _CEREBRAS),
    Recipe("sglang", "openai", "Qwen/Qwen3-8B", 1, _SGLANG),
    Recipe("sglang", "openai", "Qwen/Qwen3-14B", 1, _chat_plus(metadata={"weight_version": "1"})),
    Recipe("fireworks", "fireworks", "accounts/fireworks/models/glm-5", 1, _FIREWORKS),
    Recipe("zai", "zai", "glm-4.7", 1, _CACHING_CHAT),
    Recipe("litellm", "openai", "claude-4", 2, replace(_CHAT, usage=_litellm, reports="cw")),
    Recipe("cohere", "openai", "command-a", 1, replace(_CHAT, usage=_cohere, body=_cohere_body)),
    Recipe("perplexity", "openai", "sonar-deep-research", 1, _PERPLEXITY),
    Recipe("aisdk", "openai", "gpt-4.1-mini", 1, replace(_CHAT, usage=_ai_sdk, body=_ai_sdk_body)),
)
