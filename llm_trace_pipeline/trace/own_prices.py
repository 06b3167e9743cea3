"""What genai-prices 0.2.3 lacks: a small table of prices, with source and date.

Raise ``OWN_PRICES`` with a change, so that batches are priced anew. ``docs/costs.md`` names every
line for the users. Prices are USD for a million tokens, or for a thousand uses.
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Final, NamedTuple

from llm_trace_pipeline.trace.costs import Prices

OWN_PRICES: Final = "2026-11-27"


class Addition(NamedTuple):
    """Prices of some models of a provider that come before the package's."""

    providers: tuple[str, ...]  # the package's ids
    model: str  # a regular expression that the beginning of the name matches
    prices: Mapping[str, Decimal | None]  # by price key; None: not known
    context: Mapping[str, str] = {}  # how the call must have been served


def _usd(**prices: str | None) -> dict[str, Decimal | None]:
    return {key: None if price is None else Decimal(price) for key, price in prices.items()}


_SIZES: Final = ("low", "medium", "high")
# Of several that match, the first one with a key supplies it.
_ADDITIONS: Final = (
    # developers.openai.com/api/docs/models/gpt-4o-audio-preview; the first snapshot cost more.
    Addition(
        ("openai", "azure"),
        r"gpt-4o-audio-preview-2024-10-01",
        _usd(input_audio_mtok="100", output_audio_mtok="200"),
    ),
    Addition(
        ("openai", "azure"),
        r"gpt-4o-audio-preview",
        _usd(input_audio_mtok="40", output_audio_mtok="80"),
    ),
    Addition(
        ("openai", "azure"),
        r"gpt-4o-mini-audio-preview",
        _usd(input_audio_mtok="10", output_audio_mtok="20"),
    ),
    # developers.openai.com/api/docs/pricing, "Built-in tools", 2026-10: a search model searches
    # once a request; the older search tool costs 25 on models that do not reason.
    Addition(("openai",), r"gpt-4o(-mini)?-search-preview", _usd(requests_kcount="25")),
    Addition(("openai",), r"gpt-5-search-api", _usd(requests_kcount="10")),
    Addition(("openai",), r"gpt-4(o|\.1)", _usd(web_search_previews_kcount="25")),
    Addition(("openai",), r"", _usd(web_search_previews_kcount="10")),
    # Ibid.: a search by these is charged 8,000 tokens of input more, which no answer states.
    Addition(("openai",), r"gpt-4(o|\.1)-mini", _usd(web_searches_kcount=None)),
    # Azure's own price of a search is not published; the package takes OpenAI's.
    Addition(("azure",), r"", _usd(web_searches_kcount=None, storage_searches_kcount=None)),
    # docs.x.ai/developers/pricing, 2026-11; search_sources: Live Search, until January 2026.
    Addition(
        ("x-ai",),
        r"",
        _usd(
            web_searches_kcount="5",
            social_searches_kcount="5",
            code_executions_kcount="5",
            storage_searches_kcount="2.5",
            search_sources_kcount="25",
        ),
    ),
    # docs.perplexity.ai/getting-started/pricing, 2026: the package has the fee of the size "high".
    *(
        Addition(("perplexity",), model, _usd(requests_kcount=fee), {"search_context_size": size})
        for model, fees in (
            (r"sonar-(pro|reasoning-pro)", ("6", "10", "14")),
            (r"sonar($|-reasoning$)", ("5", "8", "12")),
        )
        for size, fee in zip(_SIZES, fees, strict=True)
    ),
    # Ibid.
    Addition(("perplexity",), r"sonar-deep-research", _usd(web_searches_kcount="5")),
)
# platform.claude.com/docs/en/manage-claude/data-residency, 2026-10: of all tokens, on top of any
# other modifier; models before 4.6 refuse the parameter.
_MULTIPLIERS: Final = {("anthropic", "inference_geo", "us"): Decimal("1.1")}
# A way of being served that changes no price. Groq: console.groq.com/docs/flex-processing, 2026.
_WITHOUT_EFFECT: Final = {("groq", "service_tier", "flex")}
# A search tool of these models is charged once a request (ai.google.dev/gemini-api/docs/pricing,
# 2026-09); later models are charged for every different search.
_ONE_SEARCH: Final = ("google", re.compile(r"gemini-[12]"))


def with_additions(provider: str, model: str, prices: Prices, context: Mapping[str, str]) -> Prices:
    """Return a price with the additions for a model, whose name is in lower case."""
    own: dict[str, Decimal | None] = {}
    for addition in _ADDITIONS:
        if (
            provider in addition.providers
            and re.match(addition.model, model)
            and addition.context.items() <= context.items()
        ):
            own = {**addition.prices, **own}
    known = {**prices, **own}
    return {key: price for key, price in known.items() if price is not None}


def multiplier(provider: str, name: str, value: str) -> Decimal | None:
    """Return by what the way in which a call was served multiplies the price of its tokens.

    None: this table does not know.
    """
    if (provider, name, value) in _WITHOUT_EFFECT:
        return Decimal(1)
    if name == "search_context_size":  # a fee of Perplexity's, and of no one else
        return Decimal(1) if provider != "perplexity" or value in _SIZES else None
    return _MULTIPLIERS.get((provider, name, value))


def charges_one_search(provider: str, model: str) -> bool:
    """Whether a model's searches are charged once a request."""
    name, models = _ONE_SEARCH
    return provider == name and bool(models.match(model))


def is_free(provider: str, model: str) -> bool:
    """Whether a model without a price costs nothing, by its name or its provider's page."""
    is_gemma = provider == "google" and model.startswith("gemma-")
    return model.endswith(":free") or is_gemma or (provider, model) == ("openai", "moderation")
