"""What calls cost: the rates that hold for a call, and the arithmetic for a batch of calls at once.

A cost is the amount that ``ModelPrice.calc_price`` of genai-prices computes: cached and
cache-written tokens are part of the input, reasoning tokens are part of the output, and the whole
input of the call chooses a tier. Arrow's decimals compute it exactly. Input, output and fee are
rounded half to even at the 18th decimal of a US dollar.
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from genai_prices.types import ModelPrice, TieredPrices

from llm_trace_pipeline.trace.columns import COST_COLUMNS, COST_TYPE

# The counts that are charged, in the order in which ``RateTable.costs`` takes them.
PRICED_TOKENS = (
    *("prompt_tokens", "completion_tokens"),
    *("cached_input_tokens", "cache_write_tokens", "reasoning_tokens"),
)
# The keys of a ModelPrice, in the order in which ``RateTable.costs`` takes their rates. A price is
# USD for so many tokens or calls, a rate is USD for one.
_PIECES = {
    "input_mtok": 10**6,
    "cache_read_mtok": 10**6,
    "cache_write_mtok": 10**6,
    "output_mtok": 10**6,
    "output_reasoning_mtok": 10**6,
    "requests_kcount": 10**3,
}
# A cost is computed in 128 bits, which hold 38 digits, where rates and counts are narrow, and else
# in 256 bits, which takes three times as long. No packaged price has more than 18 decimals for a
# million tokens; nearly all have at most six, and a narrow rate.
_NARROW_RATE, _WIDE_RATE = pa.decimal128(18, 18), pa.decimal256(36, 24)
_NARROW_COUNT, _WIDE_COUNT = pa.decimal128(15), pa.decimal256(20)

_Value = TypeVar("_Value")
# Ascending limits and the values between them: ``values[n]`` holds above n of the limits.
Steps = tuple[Sequence[int], Sequence[_Value]]
Rates = tuple[Decimal | None, ...]  # one for each of _PIECES; None where the price lacks the key
# By microseconds since 1970, the version of a model's price and its rates by tokens of input. The
# version '' stands for a price that is not known.
Periods = Steps[tuple[str, Steps[Rates]]]


def rates_by_input(price: ModelPrice) -> Steps[Rates]:
    """Return the rates of a price by the tokens of the whole input."""
    prices = [(getattr(price, key), pieces) for key, pieces in _PIECES.items()]
    tiered = [each for each, _ in prices if isinstance(each, TieredPrices)]
    starts = sorted({tier.start for each in tiered for tier in each.tiers})
    return starts, [
        tuple(_rate(each, pieces, start) for each, pieces in prices) for start in (-1, *starts)
    ]


def _rate(price: Decimal | TieredPrices | None, pieces: int, start: int) -> Decimal | None:
    if isinstance(price, TieredPrices):
        price = [price.base, *(tier.price for tier in price.tiers if tier.start <= start)][-1]
    return None if price is None else round(price / pieces, _WIDE_RATE.scale)


class RateTable:
    """The rates of models, laid out so that one index picks the rates of every call."""

    def __init__(self, models: Sequence[Periods]) -> None:
        """Lay out the periods of all models."""
        periods = [period for _, periods in models for period in periods]
        self._changes = _Limits([changes for changes, _ in models], np.int64)
        self._starts = _Limits([starts for _, (starts, _) in periods], np.uint64)
        rates = [rates for _, (_, tiers) in periods for rates in tiers]
        self._has = np.array([[rate is not None for rate in each] for each in rates]).T
        # The last row is for calls whose counts contradict each other. Where the price is not
        # known, NULL rates make NULL costs.
        versions = pa.array([*(version for version, (_, tiers) in periods for _ in tiers), ""])
        known = {rate for each in rates for rate in each if rate is not None}
        is_narrow = all(rate < 1 and rate == round(rate, _NARROW_RATE.scale) for rate in known)
        columns = [
            pc.fill_null(pa.array(column, _NARROW_RATE if is_narrow else _WIDE_RATE), 0)
            for column in zip(*rates, [None] * len(_PIECES), strict=True)
        ]
        is_known = pc.not_equal(versions, "")
        self._rates = pa.record_batch(
            [versions, *(pc.if_else(is_known, column, None) for column in columns)],
            ["version", *_PIECES],
        )

    def costs(
        self, model: npt.NDArray[np.int64], at: npt.NDArray[np.int64], calls: pa.RecordBatch
    ) -> dict[str, pa.Array]:
        """Return the columns of ``COST_COLUMNS`` and ``price_version`` for calls.

        Args:
            model: the place of the call's model among the models.
            at: when the call was made, in microseconds since 1970.
            calls: rows with the columns of ``PRICED_TOKENS``.
        """
        prompt, completion, cached, written, reasoning = (
            calls.column(name).fill_null(0).to_numpy() for name in PRICED_TOKENS
        )
        row = self._starts.place(self._changes.place(model, at), prompt)
        has_input, has_cached, has_written, has_output, has_reasoning, _ = self._has[:, row]
        # Where a price lacks the rate of the cache or of reasoning, these tokens are charged as
        # other input, or as other output.
        from_cache, to_cache = cached * has_cached, written * has_written
        thought = reasoning * has_reasoning
        contradicts = has_input & ((from_cache > prompt) | (to_cache > prompt - from_cache))
        contradicts |= has_output & (thought > completion)
        version, plain, read, write, output, thinking, fee = self._rates.take(
            pa.array(np.where(contradicts, self._rates.num_rows - 1, row))
        ).columns

        cached_cost, written_cost = _product(from_cache, read), _product(to_cache, write)
        uncached_cost = _product(prompt - from_cache - to_cache, plain)
        input_cost = pc.add(uncached_cost, pc.add(cached_cost, written_cost))
        output_cost = pc.add(_product(completion - thought, output), _product(thought, thinking))
        plainly_cached = np.minimum(cached, prompt)
        plainly_written = np.minimum(written, prompt - plainly_cached)
        input_cost, cached_cost, written_cost, output_cost, fee = map(
            _rounded,
            (
                input_cost,
                pc.if_else(has_cached, cached_cost, _product(plainly_cached, plain)),
                pc.if_else(has_written, written_cost, _product(plainly_written, plain)),
                output_cost,
                fee,
            ),
        )
        cost = pc.add(pc.add(input_cost, output_cost), fee)
        amounts = (cost, input_cost, cached_cost, written_cost, output_cost)
        costs = (amount.cast(COST_TYPE) for amount in amounts)
        return {**dict(zip(COST_COLUMNS, costs, strict=True)), "price_version": version}


def _product(counts: npt.NDArray[np.uint64], rates: pa.Array) -> pa.Array:
    if counts.max() >= 10**_NARROW_COUNT.precision:
        return pc.multiply(pa.array(counts).cast(_WIDE_COUNT), rates)
    # A decimal is 128 bits, little-endian. A cast takes 10 µs for a thousand counts, this 3.
    octets = np.zeros((len(counts), 2), np.uint64)
    octets[:, 0] = counts
    buffers = [None, pa.py_buffer(octets)]
    return pc.multiply(pa.Array.from_buffers(_NARROW_COUNT, len(counts), buffers), rates)


def _rounded(amounts: pa.Array) -> pa.Array:
    if amounts.type.scale <= COST_TYPE.scale:
        return amounts
    return pc.round(amounts, COST_TYPE.scale, "half_to_even")


class _Limits:
    """Lists of ascending limits, laid out to find the places of many values at once."""

    def __init__(self, lists: Sequence[Sequence[int]], kind: type[np.int64 | np.uint64]) -> None:
        longest, beyond = max(map(len, lists)), np.iinfo(kind).max
        filled = [[*limits, *[beyond] * (longest - len(limits))] for limits in lists]
        self._limits = np.array(filled, kind)
        self._first = np.cumsum([0, *(len(limits) + 1 for limits in lists)])

    def place(
        self, which: npt.NDArray[np.int64], values: npt.NDArray[np.int64 | np.uint64]
    ) -> npt.NDArray[np.int64]:
        """Return the place of every value between the limits of its list, counted on over lists."""
        passed = (values[:, None] > self._limits[which]).sum(axis=1)
        places: npt.NDArray[np.int64] = self._first[which] + passed
        return places
