"""A call to a model, and the request by which an agent server makes it."""

import random
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

Json = dict[str, Any]
TOOLS = ("send_message", "conversation_search", "archival_memory_insert", "memory_replace")

_ARGUMENTS = {"message": {"type": "string"}, "request_heartbeat": {"type": "boolean"}}
_SCHEMA = {"type": "object", "properties": _ARGUMENTS, "required": ["message"]}
_TOOLS: list[Json] = [
    {"name": name, "description": f"Use {name} where the user or your notes ask for it."}
    for name in TOOLS
]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The token counts of a call; None: the provider does not report the count."""

    prompt: int  # all input
    completion: int  # all billed output
    cached: int | None  # of the input: read from a cache
    written: int | None  # of the input: written to a cache
    reasoning: int | None  # of the output

    @property
    def total(self) -> int:
        """All billed tokens."""
        return self.prompt + self.completion

    @property
    def fresh(self) -> int:
        """The input that was neither read from a cache nor written to one."""
        return self.prompt - (self.cached or 0) - (self.written or 0)


@dataclass(frozen=True, slots=True)
class Call:
    """One call to a model, in no provider's words."""

    rng: random.Random
    key: str  # 32 hexadecimal digits, which make the ids of the response
    at: datetime
    model: str
    system: str
    messages: list[str]  # in turns; the last one is the user's
    reply: str
    tool: str | None  # the tool that the model calls
    tokens: Tokens


def json_text(value: object) -> str:
    """Return a value as JSON text."""
    return msgspec.json.encode(value).decode()


def _turns(call: Call) -> list[Json]:
    last = len(call.messages) - 1
    return [
        {"role": "assistant" if (last - number) % 2 else "user", "content": message}
        for number, message in enumerate(call.messages)
    ]


def chat_request(call: Call) -> Json:
    """Return a request for a chat completion, as most providers take it."""
    messages = [{"role": "system", "content": call.system}, *_turns(call)]
    request: Json = {"model": call.model, "messages": messages, "user": call.key}
    if call.tool:
        functions = [tool | {"parameters": _SCHEMA} for tool in _TOOLS]
        request["tools"] = [{"type": "function", "function": each} for each in functions]
    return request


def responses_request(call: Call) -> Json:
    """Return a request to OpenAI's Responses API."""
    request: Json = {"model": call.model, "instructions": call.system, "input": _turns(call)}
    if call.tool:
        request["tools"] = [{"type": "function", "parameters": _SCHEMA} | tool for tool in _TOOLS]
    return request | {"store": False, "include": ["reasoning.encrypted_content"]}


def anthropic_request(call: Call) -> Json:
    """Return a request to Anthropic."""
    system = {"type": "text", "text": call.system, "cache_control": {"type": "ephemeral"}}
    request: Json = {"model": call.model, "max_tokens": 8192, "system": [system]}
    if call.tool:
        request["tools"] = [tool | {"input_schema": _SCHEMA} for tool in _TOOLS]
    return request | {"messages": _turns(call)}


def bedrock_request(call: Call) -> Json:
    """Return a request to Bedrock.

    It names an inference profile, which is not the model that the agent's configuration names.
    """
    return anthropic_request(call) | {"model": f"us.{call.model}"}


def google_request(call: Call) -> Json:
    """Return a request to Google; its URL names the model, and the server does not store URLs."""
    roles = {"user": "user", "assistant": "model"}
    contents = [
        {"role": roles[turn["role"]], "parts": [{"text": turn["content"]}]} for turn in _turns(call)
    ]
    config: Json = {"system_instruction": call.system, "temperature": 1.0}
    if call.tool:
        functions = [tool | {"parameters": _SCHEMA} for tool in _TOOLS]
        config["tools"] = [{"function_declarations": functions}]
    return {"contents": contents, "config": config}
