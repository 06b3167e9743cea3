"""What of a response decides its price beside the token counts: media, searches, tiers, charges.

To add a provider's details, add their keys to the tables below. ``docs/costs.md`` lists what is
read and what is not.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

import msgspec

from llm_trace_pipeline.trace.json_values import (
    MOST_TOKENS,
    Object,
    amount_of,
    count_of,
    decimal_of,
    object_of,
    string_of,
)

# A detail's name, and its count or its text. Counts are named as genai-prices names its units.
Details = dict[str, int | str]
_Counts = defaultdict[str, int]  # not a Counter, which takes 0.6 µs to be made

REPORTED_COST: Final = "reported_cost_usd"
REPORTED_INPUT: Final = "reported_input_cost_usd"
REPORTED_OUTPUT: Final = "reported_output_cost_usd"
# The details that say how a call was served; a price may hold for one value alone. The model that
# was requested is one where it is another one than the configuration's: of Bedrock, the profile.
CONTEXT: Final = ("speed", "inference_geo", "search_context_size", "requested_model")
# Of an answer that several requests made, the tokens of the smallest one's input: each request has
# the tier of its own input.
LEAST_INPUT: Final = "least_input_tokens"
# The detail of a failed call that had answered before it failed, without usage.
UNMETERED: Final = "unmetered_answers"

STANDARD: Final = "standard"  # the tier that a response states where it is no other
BATCH: Final = "batch"
_STANDARD_TIERS: Final = ("standard", "default", "auto", "on_demand", "traffic_type_unspecified")
_TIERS: Final = ("service_tier", "serviceTier")
_USAGE_TIERS: Final = (*_TIERS, "traffic_type", "trafficType")  # the last two are Vertex's
_STANDARD_GEOS: Final = ("global", "not_available")

MEDIA: Final = ("audio", "image", "video")
_INPUT: Final = {f"{medium}_tokens": f"input_{medium}_tokens" for medium in MEDIA}
_OUTPUT: Final = {f"{medium}_tokens": f"output_{medium}_tokens" for medium in MEDIA}
_CACHE: Final = {f"{medium}_tokens": f"cache_{medium}_read_tokens" for medium in MEDIA}
_NO_UNITS: Final[dict[str, str]] = {}
_XAI_TOOLS: Final = "server_side_tool_usage_details"
_LIFETIMES: Final = {"ephemeral_1h_input_tokens": "cache_write_1h_tokens"}
# The objects of a usage object, or inside those, and their counts.
_OBJECTS: Final = {
    "prompt_tokens_details": _INPUT,  # OpenAI
    "input_tokens_details": _INPUT,
    "input_token_details": _INPUT,  # Realtime
    "completion_tokens_details": _OUTPUT,
    "output_tokens_details": _OUTPUT,
    "output_token_details": _OUTPUT,  # Realtime
    "cached_tokens_details": _CACHE,  # Realtime, inside its input's
    "cache_creation": _LIFETIMES,  # Anthropic
    "cache_creation_token_details": _LIFETIMES,  # LiteLLM, inside the prompt's
    "server_tool_use": {"web_search_requests": "web_searches"},  # Anthropic
    _XAI_TOOLS: {
        "web_search_calls": "web_searches",
        "x_search_calls": "social_searches",
        "code_interpreter_calls": "code_executions",
        "file_search_calls": "storage_searches",
        "document_search_calls": "document_searches",
        "image_generation_calls": "image_generations",
    },
}
# Gemini's lists, of objects with a modality and its count.
_LISTS: Final = {
    "prompt_tokens_details": _INPUT,
    "promptTokensDetails": _INPUT,
    "tool_use_prompt_tokens_details": _INPUT,
    "toolUsePromptTokensDetails": _INPUT,
    "candidates_tokens_details": _OUTPUT,
    "candidatesTokensDetails": _OUTPUT,
    "cache_tokens_details": _CACHE,
    "cacheTokensDetails": _CACHE,
}
_CACHE_LISTS: Final = [key for key, units in _LISTS.items() if units is _CACHE]
_MODALITIES: Final = {
    "AUDIO": "audio_tokens",
    "IMAGE": "image_tokens",
    "DOCUMENT": "image_tokens",
    "VIDEO": "video_tokens",
}
# Counts that stand in the usage object itself.
_COUNTS: Final = {
    "num_search_queries": ("web_searches",),  # Perplexity
    "citation_tokens": ("output_citation_tokens",),  # Perplexity
    "num_sources_used": ("search_sources",),  # xAI's live search
    "prompt_audio_seconds": ("audio_seconds", "input_audio_seconds"),  # Mistral
}
# The items of an OpenAI Responses output that are charged one by one.
_ITEMS: Final = {
    "file_search_call": "storage_searches",
    "code_interpreter_call": "code_executions",
    "image_generation_call": "image_generations",
}
# Only beside one of these keys does a usage object say what was charged.
_CHARGES: Final = ("cost", "is_byok", "estimated_cost", "cost_in_usd_ticks")
_TICKS_PER_USD: Final = 10**10


class HugeCountError(Exception):
    """A count is larger than any call's: the usage beside it is not known."""


def text_of_details(details: Details) -> str:
    """Return details as a JSON object, in the order of their names; '' if there are none."""
    return msgspec.json.encode(details, order="sorted").decode() if details else ""


def details_of_text(text: str) -> Details:
    """Return the details of ``text_of_details``."""
    return msgspec.json.decode(text) if text else {}


def details_in(usage: Object, bodies: Sequence[Object], cached: int | None) -> Details:
    """Return the details of a response.

    Args:
        usage: the object that the tokens were read from; {} if none.
        bodies: the objects of the response that may hold them.
        cached: tokens that came from the cache.

    Raises:
        HugeCountError: a count is above ``MOST_TOKENS``.
    """
    counts = _counts(usage, bodies)
    if counts and max(counts.values()) > MOST_TOKENS:
        raise HugeCountError
    details: Details = {name: count for name, count in counts.items() if count}
    if cached and counts:  # where a price tells cached audio from other audio: see costs.py
        tells_all = any(isinstance(usage.get(key), list) for key in _CACHE_LISTS)
        for key, unit in _CACHE.items():
            if _INPUT[key] in details and (tells_all or unit in counts):
                details[unit] = counts[unit]  # 0 is a statement
    if usage.get("iterations") and (compactions := [*compactions_of(usage)]):
        details[LEAST_INPUT] = min(map(_input_of, (usage, *compactions)))
    details.update(_context(usage))
    details.update(charges_in(usage))
    return details


def _counts(usage: Object, bodies: Sequence[Object]) -> _Counts:
    """Return what a response counts beside its tokens."""
    counts = _counts_of(usage)
    if usage.get("iterations"):
        for compaction in compactions_of(usage):
            for unit, count in _counts_of(compaction).items():
                counts[unit] += count
    for body in bodies:
        # xAI's own counts are those of the items too.
        if (body.get("output") or body.get("tool_usage")) and not usage.get(_XAI_TOOLS):
            for unit, count in _tool_calls(body):
                counts[unit] += count
        if body.get("candidates"):
            for candidate in _objects(body["candidates"]):
                for unit, count in _grounding(candidate):
                    counts[unit] += count
    return counts


def _counts_of(usage: Object) -> _Counts:
    """Return the counts of a usage object."""
    counts: _Counts = defaultdict(int)
    for key, value in usage.items():
        if not value:
            continue
        if isinstance(value, dict):
            _add_counts_in(counts, key, value)
        elif isinstance(value, list):
            _add_counts_of_list(counts, key, value)
        elif key in _COUNTS:
            for unit in _COUNTS[key]:
                counts[unit] += count_of(value) or 0
    return counts


def _add_counts_in(counts: _Counts, key: str, holder: Object) -> None:
    """Add the counts of an object inside a usage object; two objects may state the same one."""
    units = _OBJECTS.get(key, _NO_UNITS)
    for name, value in holder.items():
        if isinstance(value, dict):
            _add_counts_in(counts, name, value)
        elif name in units and (count := count_of(value)) is not None:
            counts[units[name]] = max(counts[units[name]], count)


def _add_counts_of_list(counts: _Counts, key: str, items: list[object]) -> None:
    """Add the counts of a list inside a usage object."""
    units = _LISTS.get(key)
    for item in _objects(items):
        if units and (name := _MODALITIES.get(string_of(item.get("modality")).upper())):
            counts[units[name]] += count_of(item.get("token_count", item.get("tokenCount"))) or 0
        elif key == "cacheDetails" and item.get("ttl") == "1h":  # Bedrock Converse
            counts["cache_write_1h_tokens"] += count_of(item.get("inputTokens")) or 0


def _objects(value: object) -> Iterator[Object]:
    if isinstance(value, list):
        yield from (each for each in value if isinstance(each, dict))


def compactions_of(usage: Object) -> Iterator[Object]:
    """Hand out the iterations that Anthropic's top level leaves out; it contains all others."""
    for iteration in _objects(usage.get("iterations")):
        if iteration.get("type") == "compaction":
            yield iteration


def _input_of(request: Object) -> int:
    """Return the tokens of the input of one of Anthropic's requests."""
    keys = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    return min(sum(count_of(request.get(key)) or 0 for key in keys), MOST_TOKENS)


def _tool_calls(body: Object) -> Iterator[tuple[str, int]]:
    """Hand out the charged tool calls of an OpenAI Responses answer.

    The answer may state the charged searches itself (BerriAI/litellm#39610). Else they are counted:
    a search is charged, opening a page that it found is not. An older tool, which a request must
    name itself, has another price. Source: OpenAI's guide "Web search", as of 2026-10.
    """
    is_preview = any(
        string_of(tool.get("type")).startswith("web_search_preview")
        for tool in _objects(body.get("tools"))
    )
    searches = "web_search_previews" if is_preview else "web_searches"
    used = object_of(body.get("tool_usage"))
    stated = count_of(object_of(used.get("web_search")).get("num_requests"))
    if stated is not None:
        yield searches, stated
    for item in _objects(body.get("output")):
        kind, action = item.get("type"), object_of(item.get("action")).get("type")
        if item.get("status") == "failed":
            continue
        if kind == "web_search_call":
            if stated is None and action not in ("open_page", "find_in_page", "find"):
                yield searches, 1
        elif unit := _ITEMS.get(string_of(kind)):
            yield unit, 1


def _grounding(candidate: Object) -> Iterator[tuple[str, int]]:
    """Hand out the different searches by which Gemini grounded an answer, and its use of maps."""
    for key in ("grounding_metadata", "groundingMetadata"):
        metadata = object_of(candidate.get(key))
        for name in ("web_search_queries", "webSearchQueries"):
            if isinstance(queries := metadata.get(name), list):
                yield "web_searches", len({string_of(query) for query in queries} - {""})
        for name in ("grounding_chunks", "groundingChunks"):
            uses_maps = any(chunk.get("maps") for chunk in _objects(metadata.get(name)))
            yield "map_searches", int(uses_maps)


def _context(usage: Object) -> Iterator[tuple[str, str]]:
    """Hand out how the call was served, as far as it is not the usual way."""
    if usage.keys().isdisjoint(CONTEXT):
        return
    speed = string_of(usage.get("speed")).lower()
    if speed and speed != STANDARD:
        yield "speed", speed
    geo = string_of(usage.get("inference_geo")).lower()
    if geo and geo not in _STANDARD_GEOS:
        yield "inference_geo", geo
    if size := string_of(usage.get("search_context_size")).lower():
        yield "search_context_size", size


def charges_in(usage: Object) -> Iterator[tuple[str, str]]:
    """Hand out what the response says was charged, in USD."""
    if usage.keys().isdisjoint(_CHARGES):
        return
    cost = usage.get("cost")
    details = object_of(usage.get("cost_details"))
    if isinstance(cost, dict):  # Perplexity
        total = amount_of(cost.get("total_cost"))
        parts = cost.get("input_tokens_cost"), cost.get("output_tokens_cost")
    else:  # OpenRouter, Vercel AI Gateway
        total = amount_of(cost)
        parts = (
            details.get("upstream_inference_prompt_cost"),
            details.get("upstream_inference_completions_cost"),
        )
        if usage.get("is_byok") is True:
            # The provider charges the owner of the key, the gateway its own fee.
            upstream = amount_of(details.get("upstream_inference_cost"))
            if upstream is None:
                upstream = amount_of(usage.get("market_cost"))  # Vercel's
            total = None if upstream is None else upstream + (total or 0)
    if total is None:
        total = amount_of(usage.get("estimated_cost"))  # DeepInfra
        ticks = decimal_of(usage.get("cost_in_usd_ticks"))  # xAI
        if total is None and ticks is not None:
            total = amount_of(str(ticks / _TICKS_PER_USD))
    if total is None:
        return
    yield REPORTED_COST, f"{total.normalize():f}"
    of_input, of_output = map(amount_of, parts)
    if of_input is not None and of_output is not None and of_input + of_output <= total:
        yield REPORTED_INPUT, f"{of_input.normalize():f}"
        yield REPORTED_OUTPUT, f"{of_output.normalize():f}"


def tier_in(usage: Object, bodies: Sequence[Object]) -> str:
    """Return the tier that served a call, 'standard' where that is stated, '' where none is."""
    for holder, keys in ((usage, _USAGE_TIERS), *((body, _TIERS) for body in bodies)):
        for key in keys:
            if tier := holder.get(key):
                # Bedrock's is an object.
                name = tier.get("type") if isinstance(tier, dict) else tier
                if known := tier_named(string_of(name)):
                    return known
    return ""


@lru_cache(maxsize=256)
def tier_named(name: str) -> str:
    """Return a tier by its one name; the standard tier has several."""
    known = name.lower().removeprefix("on_demand_")
    return STANDARD if known in _STANDARD_TIERS else known
