"""Who served a call: the provider, or a host behind a provider's interface."""

import re
from functools import lru_cache
from typing import Final

from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, Provider

from llm_trace_pipeline.trace.context import Names

# An endpoint type that says which interface is spoken, and not who speaks it: Letta gives it to
# cerebras, mistral, vllm and others (letta/schemas/providers).
_CATCH_ALLS: Final = ("", "openai")
# Letta's names of providers, where genai-prices has another one.
_LISTED: Final = {
    "google_ai": "google",
    "google_vertex": "google",
    "vertex_ai": "google",
    "gemini": "google",
    "bedrock": "aws",
    "xai": "x-ai",
    "moonshot": "moonshotai",
    "azure_openai": "azure",
}
# Software by which a deployment serves models itself, and services that charge no tokens: they have
# no list price. `openai-proxy` is Letta's name for any server behind OPENAI_BASE_URL.
_UNLISTED: Final = (
    *("vllm", "ollama", "lmstudio", "sglang", "llamacpp", "koboldcpp", "webui", "localai", "letta"),
    *("openai-proxy", "lm-studio", "lm_studio", "llama.cpp", "llama-cpp", "chatgpt_oauth"),
    "zai_coding",
)
_PROXY: Final = "openai-proxy"
_WORDS: Final = re.compile(r"[^a-z0-9]+")


@lru_cache(maxsize=4096)
def served_by(provider: str, names: Names) -> str:
    """Return the provider or host that served a call.

    Args:
        provider: the column of a row, which may come from the step.
        names: of the call's `llm_config`, or of its step.
    """
    if provider not in _CATCH_ALLS:
        return provider
    head = names.handle.partition("/")[0] if "/" in names.handle else ""
    name = head if head == _PROXY else names.provider_name or head or provider
    # OpenAI's interface is spoken at other addresses too, and an own key has a name of its owner's.
    # There the address tells.
    is_open = name in ("openai", _PROXY) or names.provider_category == "byok" or not _is_known(name)
    if not is_open or not names.endpoint:
        return name
    if at := _provider_at(names.endpoint):
        return name if listed_provider(name) is at else at.id
    return _PROXY if listed_provider(name) else name


def _is_known(name: str) -> bool:
    lowered = name.lower()
    return lowered in _UNLISTED or lowered in _LISTED or lowered in _ids()


@lru_cache(maxsize=1)
def _ids() -> dict[str, Provider]:
    return {provider.id: provider for provider in get_snapshot().providers}


@lru_cache(maxsize=4096)
def listed_provider(name: str) -> Provider | None:
    """Return the provider of genai-prices that a name stands for; None: it has no list prices.

    A name of an own key's owner, such as `my-openai`, stands for the one provider that is a word of
    it.
    """
    lowered = name.lower()
    words = set(_WORDS.split(lowered))
    if lowered in _UNLISTED or words & set(_UNLISTED):
        return None
    if exact := _ids().get(_LISTED.get(lowered, lowered)):
        return exact
    found = [provider for word, provider in _ids().items() if word in words]
    return found[0] if len(found) == 1 else None


@lru_cache(maxsize=4096)
def listed_model(provider: str, model: str) -> ModelInfo | None:
    """Return the model of genai-prices that a provider's name stands for; None: it knows none."""
    try:
        return get_snapshot().find_provider_model(model, None, provider, None)[1]
    except LookupError:
        return None


def plain_of_fast(provider: Provider, model: str) -> str | None:
    """Return the model behind the server's own name for it with `-fast`, None: it is none.

    The server asks for the model without that ending, with priority
    (letta/llm_api/openai_client.py).
    """
    plain = model.removesuffix("-fast")
    is_own_name = plain != model and not listed_model(provider.id, model)
    return plain if is_own_name and listed_model(provider.id, plain) else None


def asked_tier(server: str, model: str) -> str:
    """Return the tier that the name of a model asks for, where the response states none.

    Args:
        server: who served the call.
        model: the model that was asked for.
    """
    provider = listed_provider(server)
    return "priority" if provider and plain_of_fast(provider, model.lower()) else ""


@lru_cache(maxsize=4096)
def _provider_at(url: str) -> Provider | None:
    try:
        return get_snapshot().find_provider(None, None, url)
    except LookupError:
        return None
