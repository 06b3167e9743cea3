"""Usage objects of every vocabulary, and what is read of a response."""

import json
from typing import Any

from llm_trace_pipeline.trace.details import Details, details_of_text
from llm_trace_pipeline.trace.fast_responses import read_response
from llm_trace_pipeline.trace.responses import ResponseReading, read_any_response

Usage = dict[str, Any]
CHAT: Usage = {"prompt_tokens": 1_000, "completion_tokens": 100, "total_tokens": 1_100}
RESPONSES: Usage = {"input_tokens": 1_000, "output_tokens": 100, "total_tokens": 1_100}
ANTHROPIC: Usage = {"input_tokens": 100, "cache_creation_input_tokens": 900, "output_tokens": 100}
CONVERSE: Usage = {"inputTokens": 100, "cacheWriteInputTokens": 900, "outputTokens": 100}
GEMINI: Usage = {"prompt_token_count": 1_000, "candidates_token_count": 100}
GEMINI_REST: Usage = {"promptTokenCount": 1_000, "candidatesTokenCount": 100}


def read(response: Any) -> ResponseReading:
    """Read a response, which the fast reader and the rules read alike."""
    text = json.dumps(response).encode()
    reading = read_response(text)
    assert reading == read_any_response(text)
    return reading


def details_of(response: Any) -> Details:
    """Return the details that a response states."""
    return details_of_text(read(response).usage_details)


def details_in(usage: Any) -> Details:
    """Return the details that a usage object states."""
    return details_of({"usage": usage})
