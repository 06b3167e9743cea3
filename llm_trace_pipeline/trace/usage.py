"""The token usage that a response reports, read by the keys of its usage object.

Every provider puts its usage elsewhere and names it differently, and an OpenAI-compatible server
may answer in any of these vocabularies. So the keys of the usage object decide how it is read,
never the provider and never `type`: Letta writes `"type": "message"` for all of them.

To add a provider's usage, add a vocabulary to ``_VOCABULARIES``, and a new place of it to
``USAGE_PLACES``. ``fast_responses.py`` repeats the three most common vocabularies, and a test
compares both.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from llm_trace_pipeline.trace.details import HugeCountError, compactions_of
from llm_trace_pipeline.trace.json_values import MOST_TOKENS, Object, count_of

# The keys of a response, or of an object inside it, that hold a usage object.
USAGE_PLACES: Final = (
    "usage",
    "usage_metadata",  # google-genai
    "usageMetadata",  # Gemini REST
    "meta_info",  # SGLang /generate
    "amazon-bedrock-invocationMetrics",  # Bedrock InvokeModel streams
)
# Ollama's own API has no usage object: these keys stand in the response itself.
OLLAMA_KEYS: Final = ("prompt_eval_count", "prompt_eval_cached_count", "eval_count")

# Prompt, completion, total, cached, cache-written, reasoning; see ``ResponseReading``.
Tokens = tuple[int, int, int, int | None, int | None, int | None]
_Paths = tuple[tuple[str, str], ...]


def _paths(*paths: str) -> _Paths:
    """Split every `details.key` into its two names; a plain `key` has '' as its details."""
    return tuple((details, key) for details, _, key in (path.rpartition(".") for path in paths))


class _Vocabulary(NamedTuple):
    """The keys of one way to report usage.

    The counts of all keys in `prompt` add up to the prompt, those in `completion` to the
    completion. The other three are subsets of these sums: the first key with a count supplies it.
    """

    prompt: tuple[str, ...]
    completion: tuple[str, ...] = ()
    total: str | None = None
    cached: _Paths = ()
    cache_write: _Paths = ()
    reasoning: _Paths = ()


# A usage object is read by the first vocabulary that has one of its keys as prompt or completion.
_VOCABULARIES: Final = (
    # Chat completions: prompt_tokens contains the cache, also where LiteLLM adds Anthropic's keys.
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
    # OpenAI Responses: input_tokens contains the cache. Anthropic: input_tokens is without it. Only
    # Anthropic has the cache_* keys; cache_creation.ephemeral_* is a breakdown, not more tokens.
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
    # Gemini: the candidates are without the thoughts; the prompt contains the cache.
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
    # Bedrock Converse and InvokeModel: the input is without the cache (BerriAI/litellm#15292).
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
    # Ollama's own API: the prompt contains the cache.
    _Vocabulary(
        prompt=("prompt_eval_count",),
        completion=("eval_count",),
        cached=_paths("prompt_eval_cached_count"),
    ),
    # Vercel's AI SDK.
    _Vocabulary(prompt=("promptTokens",), completion=("completionTokens",), total="totalTokens"),
    # Voyage embeddings: nothing but a total, and all of it is input.
    _Vocabulary(prompt=("total_tokens",), total="total_tokens"),
)


NO_TOKENS: Final[Tokens] = (0, 0, 0, None, None, None)


class Usage(NamedTuple):
    """What a response reports of its tokens."""

    tokens: Tokens
    source: Object  # the object that reports them
    is_whole: bool  # no count of the prompt or the completion is anything but a count


def usage_in(bodies: Sequence[Object]) -> Usage:
    """Return the usage of the first object that reports any.

    Where none does, the tokens are zeros and None, and the object is the first one that there is,
    which may say what was charged.

    Raises:
        HugeCountError: a count is above ``MOST_TOKENS``.
    """
    for body in bodies:
        for usage in map(body.get, USAGE_PLACES):
            if usage and isinstance(usage, dict) and (found := _read_usage(usage)):
                return found
        if "prompt_eval_count" in body or "eval_count" in body:
            usage = {key: body.get(key) for key in OLLAMA_KEYS}
            if found := _read_usage(usage):
                return found
    places = (body.get(place) for body in bodies for place in USAGE_PLACES)
    return Usage(NO_TOKENS, next((each for each in places if isinstance(each, dict)), {}), True)


def _read_usage(usage: Object) -> Usage | None:
    # Cohere v2 has two objects inside, which differ on input. The tokens that the model read come
    # before the billed ones.
    for part in (usage, usage.get("tokens"), usage.get("billed_units")):
        if not isinstance(part, dict):
            continue
        for names in _VOCABULARIES:
            is_sent, is_whole = False, True
            for key in names.prompt + names.completion:
                value = part.get(key)
                if value is not None:  # SDK dumps fill in null for a key that was not sent
                    is_sent = True
                    is_whole = is_whole and count_of(value) is not None
            if is_sent:
                return Usage(_read_as(names, part), usage, is_whole)
    return None


def _read_as(names: _Vocabulary, usage: Object) -> Tokens:
    prompt, completion, cached, written, reasoning = _counts(names, usage)
    total = count_of(usage.get(names.total)) if names.total else None
    # xAI and Gemini's compatible endpoint leave thinking out of the completion, others do not. Only
    # the total tells (vercel/ai#12425).
    if reasoning and total == prompt + completion + reasoning:
        completion += reasoning
    for iteration in compactions_of(usage):
        more = _counts(names, iteration)
        prompt, completion = prompt + more[0], completion + more[1]
        cached, written, reasoning = map(_add, (cached, written, reasoning), more[2:])
    tokens = prompt, completion, total or prompt + completion, cached, written, reasoning
    if any(count is not None and count > MOST_TOKENS for count in tokens):
        raise HugeCountError
    return tokens


def _counts(
    names: _Vocabulary, usage: Object
) -> tuple[int, int, int | None, int | None, int | None]:
    return (
        _sum(names.prompt, usage),
        _sum(names.completion, usage),
        _first(names.cached, usage),
        _first(names.cache_write, usage),
        _first(names.reasoning, usage),
    )


def _sum(keys: tuple[str, ...], usage: Object) -> int:
    total = 0
    for key in keys:  # sum() of a generator takes 0.7 µs instead of 0.4
        total += count_of(usage.get(key)) or 0
    return total


def _first(paths: _Paths, usage: Object) -> int | None:
    """Return the first count that is reported under one of the paths."""
    for details, key in paths:
        holder = usage.get(details) if details else usage
        if isinstance(holder, dict) and (count := count_of(holder.get(key))) is not None:
            return count
    return None


def _add(left: int | None, right: int | None) -> int | None:
    return left if right is None else (left or 0) + right
