"""The list prices: those of genai-prices, and what it lacks of ``own_prices.py``."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from importlib.metadata import version
from typing import Final, NamedTuple

from genai_prices.types import (
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    PriceVariant,
    Provider,
    StartDateConstraint,
    Tier,
    TieredPrices,
    TimeOfDateConstraint,
    Usage,
)

from llm_trace_pipeline.trace.costs import NOT_KNOWN, UNITS, CallNames, Priced, Prices
from llm_trace_pipeline.trace.details import BATCH
from llm_trace_pipeline.trace.own_prices import (
    OWN_PRICES,
    charges_one_search,
    is_free,
    multiplier,
    with_additions,
)
from llm_trace_pipeline.trace.serving import listed_model, listed_provider, plain_of_fast

LIST_VERSION: Final = f"genai-prices {version('genai-prices')} + {OWN_PRICES}"

_MOST_KNOWN = 4096
_TOKENS: Final = {
    unit.price_key for unit in UNITS.values() if unit.dimensions["family"] == "tokens"
}


class _Listed(NamedTuple):
    provider: Provider
    name: str  # by which the model was found, in lower case
    model: ModelInfo
    context: dict[str, str]


def listed_price(call: CallNames, at: datetime) -> Priced:
    """Return the list price of a call at a moment; ``NOT_KNOWN`` where it has none.

    A way of being served that has no price of its own at the moment makes the price unknown: the
    standard price would be another one.
    """
    if not (found := _find(call)):
        return NOT_KNOWN
    provider, name, model, context = found
    # A model that a provider shares with another one has that one's standard prices alone.
    is_own = any(model is each for each in provider.models)
    asked = _package_context(context) if is_own else {}
    price = model.get_prices(at, asked)
    if not _is_valid(price):
        return NOT_KNOWN
    factor = Decimal(1)
    in_variants: dict[str, str] = {}
    for key, value in context.items():
        own_key, own_value = _package_key(key, value)
        if is_own and _has_variant(model, {own_key: own_value}, asked, at):
            in_variants[own_key] = own_value
            continue
        own = multiplier(provider.id, key, value)
        if own is None:
            return NOT_KNOWN
        factor *= own
    if len(in_variants) > 1 and not _has_variant(model, in_variants, asked, at):
        return NOT_KNOWN  # no price is for all of it
    prices: Prices = {
        key: value
        for key, value in vars(price).items()
        if isinstance(value, Decimal | TieredPrices)
    }
    if prices.keys().isdisjoint(_TOKENS) and not is_free(provider.id, model.id):
        return NOT_KNOWN  # charged by the hour, by a subscription, or by a price that is missing
    prices = {
        key: _multiplied(value, factor) if key in _TOKENS else value
        for key, value in with_additions(provider.id, name, prices, context).items()
    }
    how = [f"{key}={value}" for key, value in context.items()]
    return Priced(
        prices,
        LIST_VERSION,
        "list",
        " ".join([f"{provider.id}/{model.id}", *how]),
        charges_one_search=charges_one_search(provider.id, name),
    )


def is_charged_one_search(call: CallNames) -> bool:
    """Whether a call's searches are charged once a request, whoever's price it has."""
    found = _find(call)
    return found is not None and charges_one_search(found.provider.id, found.name)


def list_price_changes(call: CallNames, start: datetime, end: datetime) -> Iterator[datetime]:
    """Hand out the moments at which a call's list price may change, around a span of time."""
    if not (found := _find(call)):
        return
    conditional = found.model.prices if isinstance(found.model.prices, list) else []
    for price in conditional:
        yield from _changes_of(price, start, end)
    for variant in found.model.price_variants or []:
        yield from _changes_of(variant, start, end)


def _changes_of(
    price: ConditionalPrice | PriceVariant, start: datetime, end: datetime
) -> Iterator[datetime]:
    constraint = price.constraint
    if isinstance(constraint, StartDateConstraint):
        yield moment(constraint.start_date)
    elif isinstance(constraint, TimeOfDateConstraint):
        # A day more on both sides: the constraint's day may begin in another time zone.
        for day in range(-1, (end - start).days + 3):
            for at in (constraint.start_time, constraint.end_time):
                yield moment(start.date() + timedelta(days=day), at)


def moment(day: date, at: time = time.min) -> datetime:
    """Return a time of a day; UTC unless the time names another zone."""
    return datetime.combine(day, at, at.tzinfo or UTC).astimezone(UTC)


@lru_cache(maxsize=_MOST_KNOWN)
def _find(call: CallNames) -> _Listed | None:
    """Return what the package knows of the model that served a call."""
    if not (provider := listed_provider(call.served_by or call.provider)):
        return None
    for name in _names(provider, call):
        if model := listed_model(provider.id, name):
            return _Listed(provider, name, model, call.context)
    return None


def _names(provider: Provider, call: CallNames) -> list[str]:
    """Return the names by which a call is priced, the best first, in lower case.

    The model that the response states is the one that served it. Where the list lacks it, the model
    that was asked for stands for it only if it is another name of the same: a gateway may have
    served something else. Of Bedrock, only the name that was asked for tells the region, which has
    a price of its own.
    """
    requested = call.requested_model or call.model
    asked, served = (_plain_name(provider, name) for name in (requested, call.served_model))
    asked = plain_of_fast(provider, asked) or asked
    if provider.id == "aws" or not served:
        return [asked] if asked else []
    is_same = asked and served.startswith(asked.removesuffix("-latest"))
    return [served, asked] if is_same else [served]


def _plain_name(provider: Provider, name: str) -> str:
    """Return a model's name in lower case, without what Google and AWS put before it."""
    name = name.lower()
    is_path = name.startswith("arn:") or provider.id == "google"
    return name.rpartition("/")[2] if is_path else name


def _package_key(name: str, value: str) -> tuple[str, str]:
    """Return a way of being served as the package names it."""
    is_batch = (name, value) == ("service_tier", BATCH)
    return ("processing", BATCH) if is_batch else (name, value)


def _package_context(context: dict[str, str]) -> dict[str, str]:
    return dict(_package_key(name, value) for name, value in context.items())


def _has_variant(
    model: ModelInfo, how: dict[str, str], context: dict[str, str], at: datetime
) -> bool:
    """Whether a model has a price at a moment for calls that were served so."""
    return any(
        how.items() <= variant.when.items() <= context.items()
        and (variant.constraint is None or variant.constraint.active(at))
        for variant in model.price_variants or []
    )


def _multiplied(price: Decimal | TieredPrices, factor: Decimal) -> Decimal | TieredPrices:
    if isinstance(price, TieredPrices):
        tiers = [Tier(tier.start, tier.price * factor) for tier in price.tiers]
        return TieredPrices(price.base * factor, tiers)
    return price * factor


def _is_valid(price: ModelPrice) -> bool:
    """Whether the package computes with a price at all."""
    try:
        price.calc_price(Usage())
    except ValueError:
        return False
    return True
