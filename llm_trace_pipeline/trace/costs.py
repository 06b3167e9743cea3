"""What calls cost: the rates that hold for a call, and the arithmetic for a batch of calls at once.

A cost is the amount that ``ModelPrice.calc_price`` of genai-prices computes. A count that belongs
to a narrower unit with a price of its own (tokens from the cache, of audio, or both) is charged by
that price alone, and the whole input of the call chooses a tier. Arrow's decimals compute it
exactly. Input, output and the rest are rounded half to even at the 18th decimal of a US dollar.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from genai_prices.data_units import unit_data
from genai_prices.types import TieredPrices

from llm_trace_pipeline.trace.columns import COST_TYPE
from llm_trace_pipeline.trace.details import LEAST_INPUT, MEDIA


class Unit(NamedTuple):
    """Something that is counted and charged."""

    price_key: str
    per: int  # a price is USD for so many of them
    dimensions: Mapping[str, str]

    def covers(self, other: "Unit") -> bool:
        """Whether every count of the other unit is part of this one's."""
        return self != other and self.dimensions.items() <= other.dimensions.items()


def _unit(name: str) -> Unit:
    known = unit_data[name]
    return Unit(known.get("price_key", name), known["per"], known["dimensions"])


# The counts of a row's columns, by the package's names. Where a row has no such count, it is 0.
COLUMN_UNITS: Final = {
    "input_tokens": "prompt_tokens",
    "output_tokens": "completion_tokens",
    "cache_read_tokens": "cached_input_tokens",
    "cache_write_tokens": "cache_write_tokens",
    "output_reasoning_tokens": "reasoning_tokens",
}
UNITS: Final[Mapping[str, Unit]] = {
    **{name: _unit(name) for name in COLUMN_UNITS},
    **{
        name: _unit(name)
        for name in (
            "cache_write_1h_tokens",
            *(f"input_{medium}_tokens" for medium in MEDIA),
            *(f"cache_{medium}_read_tokens" for medium in MEDIA),
            *(f"output_{medium}_tokens" for medium in MEDIA),
            *("output_citation_tokens", "audio_seconds", "input_audio_seconds"),
            *("web_searches", "social_searches", "storage_searches", "code_executions"),
            "requests",
        )
    },
    # What the package has no unit for; see own_prices.py and price_file.py.
    **{
        name: Unit(f"{name}_kcount", 1000, {"family": name})
        for name in (
            *("web_search_previews", "search_sources", "document_searches", "map_searches"),
            "image_generations",
        )
    },
}
# The narrowest units first: their counts are taken out of those that cover them.
_NARROW_FIRST: Final = sorted(UNITS, key=lambda name: -len(UNITS[name].dimensions))
_COVERED: Final = {
    name: [other for other in _NARROW_FIRST if UNITS[name].covers(UNITS[other])] for name in UNITS
}
# A count of both kinds that the response must tell, where the price distinguishes it.
JOINS: Final = {
    f"cache_{medium}_read_tokens": ("cache_read_tokens", f"input_{medium}_tokens")
    for medium in MEDIA
}
# Uses that are charged one by one. A use without a price is not free.
_FEES: Final = [name for name, unit in UNITS.items() if "direction" not in unit.dimensions]
_CACHED: Final = [
    name for name in UNITS if UNITS[name].dimensions.get("token_type") == "cache_read"
]
_WRITTEN: Final = [
    name for name in UNITS if UNITS[name].dimensions.get("token_type") == "cache_write"
]

# A cost is computed in 128 bits, which hold 38 digits, where rates are narrow, and else in 256
# bits, which takes three times as long. No packaged price of tokens has more than 18 decimals for a
# million; nearly all have at most six, and a narrow rate. No count is above 10**12.
_COUNT: Final = pa.decimal128(13)
_ROUNDED: Final = pa.decimal128(36, 18)  # two sums make it as wide as a cost
_NOTHING: Final = pa.scalar(Decimal(0), COST_TYPE)
_NARROW_RATE, _WIDE_RATE = pa.decimal128(18, 18), pa.decimal256(36, 24)

_Value = TypeVar("_Value")
Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
_NO_COUNT: Final[Counts] = np.zeros(1, np.int64)
# Ascending limits and the values between them: ``values[n]`` holds above n of the limits.
Steps = tuple[Sequence[int], Sequence[_Value]]
Rates = tuple[Decimal | None, ...]  # one for each of UNITS; None where the price lacks the key
Prices = Mapping[str, Decimal | TieredPrices]  # by price key


class CallNames(NamedTuple):
    """What decides which price a call has, beside its moment; '' stands for none."""

    provider: str
    served_by: str
    model: str
    served_model: str
    service_tier: str
    speed: str = ""
    inference_geo: str = ""
    search_context_size: str = ""
    requested_model: str = ""  # where it is another one than the configuration's

    @property
    def context(self) -> dict[str, str]:
        """How the call was served, as far as it is not the usual way."""
        names = ("service_tier", "speed", "inference_geo", "search_context_size")
        return {name: value for name in names if (value := getattr(self, name))}


class Priced(NamedTuple):
    """The price that a call has, and where it comes from."""

    prices: Prices
    version: str  # of the prices; '' stands for a price that is not known
    basis: str = ""
    entry: str = ""
    overrides_reported: bool = False
    charges_one_search: bool = False  # however many there were


NOT_KNOWN: Final = Priced({}, "")
Periods = Steps[Priced]  # by microseconds since 1970


def rates_by_input(prices: Prices) -> Steps[Rates]:
    """Return the rates of a price by the tokens of the whole input."""
    tiered = [price for price in prices.values() if isinstance(price, TieredPrices)]
    starts = sorted({tier.start for price in tiered for tier in price.tiers})
    return starts, [
        tuple(_rate(prices.get(unit.price_key), unit.per, start) for unit in UNITS.values())
        for start in (-1, *starts)
    ]


def _rate(price: Decimal | TieredPrices | None, per: int, start: int) -> Decimal | None:
    if isinstance(price, TieredPrices):
        price = [price.base, *(tier.price for tier in price.tiers if tier.start <= start)][-1]
    return None if price is None else round(price / per, _WIDE_RATE.scale)


class RateTable:
    """The rates of models, laid out so that one index picks the rates of every call."""

    def __init__(self, models: Sequence[Periods]) -> None:
        """Lay out the periods of all models."""
        periods = [period for _, periods in models for period in periods]
        by_input = [rates_by_input(period.prices) for period in periods]
        self._changes = _Limits([changes for changes, _ in models])
        self._starts = _Limits([starts for starts, _ in by_input])
        rates = [each for _, tiers in by_input for each in tiers]
        known = {rate for each in rates for rate in each if rate is not None}
        is_narrow = all(rate < 1 and rate == round(rate, _NARROW_RATE.scale) for rate in known)
        rate_type = _NARROW_RATE if is_narrow else _WIDE_RATE
        has = np.array([[rate is not None for rate in each] for each in rates]).T
        self._has = {name: has[place] for place, name in enumerate(UNITS) if has[place].any()}
        self._rates = {
            name: pc.fill_null(pa.array(column, rate_type), 0)
            for name, column in zip(UNITS, zip(*rates, strict=True), strict=True)
            if name in self._has
        }
        rows = [p for p, (_, tiers) in zip(periods, by_input, strict=True) for _ in tiers]
        self._is_known = np.array([bool(row.version) for row in rows])
        self._one_search = np.array([row.charges_one_search for row in rows])
        self._overrides = np.array([row.overrides_reported for row in rows])
        self._labels = pa.record_batch(
            {
                name: pa.array([getattr(row, name) for row in rows], pa.string())
                for name in ("version", "basis", "entry")
            }
        )

    def costs(
        self,
        model: Counts,
        at: Counts,
        counts: Mapping[str, Counts],
        told: Mapping[str, Flags],
    ) -> "Costs":
        """Return the costs of calls.

        Args:
            model: the place of the call's model among the models.
            at: when the call was made, in microseconds since 1970.
            counts: by unit: those of ``COLUMN_UNITS``, and the others that are not all 0. None is
                above 10**12.
            told: by unit, whether the response told a count, be it 0; absent: none did.
        """
        period = self._changes.place(model, at)
        row = self._starts.place(period, counts["input_tokens"])
        has = {name: each[row] for name, each in self._has.items()}
        counts = {**counts, "requests": np.ones(len(row), np.int64)}
        if "web_searches" in counts and self._one_search.any():
            searches = counts["web_searches"]
            counts["web_searches"] = np.where(self._one_search[row], searches.clip(0, 1), searches)
        charged, is_known = _charged(counts, has)
        is_known &= self._is_known[row] & _is_told(counts, has, told)
        if LEAST_INPUT in counts:  # all requests must have the tier of their sum
            least = np.where(told[LEAST_INPUT], counts[LEAST_INPUT], counts["input_tokens"])
            is_known &= self._starts.place(period, least) == row
        products = {
            name: _product(left, self._rates[name].take(pa.array(row)))
            for name, left in charged.items()
            if left.any()
        }
        prompt = counts["input_tokens"]
        cached = np.minimum(counts["cache_read_tokens"], prompt)
        written = np.minimum(counts["cache_write_tokens"], prompt - cached)
        parts = [self._sum(products, direction) for direction in ("input", "output", None)]
        amounts = [
            _total([part for part in parts if part is not None]),
            *(parts[0], self._part(products, _CACHED, has, cached, row)),
            *(self._part(products, _WRITTEN, has, written, row), *parts[1:]),
        ]
        return Costs(
            is_known=is_known,
            amounts=[
                pa.repeat(_NOTHING, len(row)) if amount is None else amount.cast(COST_TYPE)
                for amount in amounts
            ],
            overrides=self._overrides[row],
            labels=self._labels.take(pa.array(row)),
        )

    def _sum(self, products: Mapping[str, pa.Array], direction: str | None) -> pa.Array | None:
        return _total(
            [
                product
                for name, product in products.items()
                if UNITS[name].dimensions.get("direction") == direction
            ]
        )

    def _part(
        self,
        products: Mapping[str, pa.Array],
        names: Sequence[str],
        has: Mapping[str, Flags],
        counts: Counts,
        row: Counts,
    ) -> pa.Array | None:
        """Return what some tokens of the input cost, as other input where they have no rate."""
        own = _total([products[name] for name in names if name in products])
        lacks = ~has.get(names[0], np.zeros(len(row), bool))  # the broadest
        if (as_other := counts * lacks).any() and "input_tokens" in has:
            rates = self._rates["input_tokens"].take(pa.array(row))
            as_input = _rounded(_product(as_other, rates))
            own = as_input if own is None else pc.if_else(pa.array(lacks), as_input, own)
        return own


def _charged(
    counts: Mapping[str, Counts], has: Mapping[str, Flags]
) -> tuple[Mapping[str, Counts], Flags]:
    """Return how many of every unit are charged at its own rate, and whether none is below 0."""
    charged: dict[str, Counts] = {}
    is_possible = np.ones(len(counts["input_tokens"]), bool)
    for name in _NARROW_FIRST:
        if name in has:
            left = counts.get(name, _NO_COUNT) * has[name]
            for part in _COVERED[name]:
                if part in charged:
                    left = left - charged[part] * has[name]
            charged[name] = left
            is_possible &= left >= 0
    return charged, is_possible


def _is_told(
    counts: Mapping[str, Counts], has: Mapping[str, Flags], told: Mapping[str, Flags]
) -> Flags:
    """Return whether the response tells every count that the price distinguishes."""
    is_told = np.ones(len(counts["input_tokens"]), bool)
    for name, (one, other) in JOINS.items():
        if name in has and one in counts and other in counts:
            is_both = (counts[one] > 0) & (counts[other] > 0) & has[name]
            is_told &= ~is_both | told.get(name, np.False_)
    for name in _FEES:
        if name in counts and name != "requests":
            is_told &= (counts[name] == 0) | has.get(name, np.False_)
    return is_told


class Costs(NamedTuple):
    """The costs of calls, in USD."""

    is_known: Flags  # False: the price is not known, or counts contradict each other
    amounts: list[pa.Array]  # all, input, cached and written of the input, output, other
    overrides: Flags  # the price comes before a reported cost
    labels: pa.RecordBatch  # version, basis, entry


def _total(amounts: list[pa.Array]) -> pa.Array | None:
    """Return the sum; in pairs, since every addition widens its decimals by a digit."""
    while len(amounts) > 1:
        amounts = [
            pc.add(*amounts[n : n + 2]) if n + 1 < len(amounts) else amounts[n]
            for n in range(0, len(amounts), 2)
        ]
    return _rounded(amounts[0]) if amounts else None


def _product(counts: Counts, rates: pa.Array) -> pa.Array:
    # A decimal is 128 bits, little-endian. A cast takes 10 µs for a thousand counts, this 3.
    octets = np.zeros((len(counts), 2), np.int64)
    octets[:, 0] = counts
    octets[:, 1] = counts >> 63
    buffers = [None, pa.py_buffer(octets)]
    return pc.multiply(pa.Array.from_buffers(_COUNT, len(counts), buffers), rates)


def _rounded(amounts: pa.Array) -> pa.Array:
    if amounts.type.scale > COST_TYPE.scale:
        return pc.round(amounts, COST_TYPE.scale, "half_to_even").cast(_ROUNDED)
    return amounts


class _Limits:
    """Lists of ascending limits, laid out to find the places of many values at once."""

    def __init__(self, lists: Sequence[Sequence[int]]) -> None:
        longest, beyond = max(map(len, lists)), np.iinfo(np.int64).max
        filled = [[*limits, *[beyond] * (longest - len(limits))] for limits in lists]
        self._limits = np.array(filled, np.int64)
        self._first = np.cumsum([0, *(len(limits) + 1 for limits in lists)])

    def place(self, which: Counts, values: Counts) -> Counts:
        """Return the place of every value between the limits of its list, counted on over lists."""
        passed = (values[:, None] > self._limits[which]).sum(axis=1)
        places: Counts = self._first[which] + passed
        return places
