"""What calls cost: prices as whole numbers, and the arithmetic for a batch of calls at once.

A cost is the amount that ``ModelPrice.calc_price`` of genai-prices computes: cached and
cache-written tokens are part of the input, reasoning tokens are part of the output, and the whole
input of the call chooses a tier. Here integers compute it, rounded half to even at the 18th decimal
of a US dollar.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from genai_prices.types import ModelPrice, TieredPrices

from llm_trace_pipeline.trace.columns import COST_COLUMNS, COST_TYPE

# The counts that are charged, in the order in which ``_charge`` takes them.
PRICED_TOKENS = (
    *("prompt_tokens", "completion_tokens"),
    *("cached_input_tokens", "cache_write_tokens", "reasoning_tokens"),
)

# The keys of a ModelPrice that these counts are charged by. Where a price lacks the key of the
# cache or of reasoning, these tokens are charged as other input, or as other output.
_INPUT, _CACHED, _WRITTEN = "input_mtok", "cache_read_mtok", "cache_write_mtok"
_OUTPUT, _REASONING = "output_mtok", "output_reasoning_mtok"
_BY_MILLION = (_INPUT, _CACHED, _WRITTEN, _OUTPUT, _REASONING)
_FEE = "requests_kcount"  # USD for a thousand calls

# Rates are whole numbers of 1e-24 USD a token: no packaged price has more than 18 decimals for a
# million tokens. Nearly all prices have six decimals at most. Their rates are coarse: multiples of
# 1e-12 USD, so that a call's cost, counted in these, fits 63 bits. Machine integers compute coarse
# costs, and Python's integers all others.
_SCALE, _COARSE_SCALE = 24, 12
_COARSE = 10 ** (_SCALE - _COARSE_SCALE)
_ROUNDED = 10 ** (_SCALE - COST_TYPE.scale)
_LARGEST_COARSE_RATE = 2**30  # 1,073 USD a million tokens
_MOST_COARSE_TOKENS = 2**31

_Integers = npt.NDArray[np.int64] | npt.NDArray[np.object_]
_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Rate:
    """The price of a token, in 1e-24 USD: ``amounts[n]`` where the input exceeds n thresholds."""

    amounts: tuple[int, ...]
    thresholds: tuple[int, ...] = ()

    @property
    def is_coarse(self) -> bool:
        """Whether machine integers can compute with the rate."""
        return all(
            amount % _COARSE == 0 and amount // _COARSE < _LARGEST_COARSE_RATE
            for amount in self.amounts
        )


@dataclass(frozen=True, eq=False)  # two rates are equal if they are one object: quick to look up
class Rates:
    """A price as whole numbers, ready to compute with."""

    version: str  # of the price file or the package that holds the price
    by_key: dict[str, _Rate]  # without the keys that the price leaves out
    fee: int  # 1e-24 USD a call

    @property
    def is_coarse(self) -> bool:
        """Whether machine integers can compute with the rates."""
        return self.fee % _COARSE == 0 and all(rate.is_coarse for rate in self.by_key.values())

    @classmethod
    def of(cls, version: str, price: ModelPrice) -> Self:
        """Return the rates of a price."""
        rates = {key: _rate(getattr(price, key)) for key in _BY_MILLION}
        fee = getattr(price, _FEE)
        return cls(
            version,
            {key: rate for key, rate in rates.items() if rate},
            _in_units(fee, per=1000) if fee else 0,
        )


def _rate(price: Decimal | TieredPrices | None) -> _Rate | None:
    if price is None:
        return None
    if not isinstance(price, TieredPrices):
        return _Rate((_in_units(price),))
    tiers = price.tiers
    return _Rate(
        tuple(_in_units(each) for each in (price.base, *(tier.price for tier in tiers))),
        tuple(tier.start for tier in tiers),
    )


def _in_units(price: Decimal, per: int = 10**6) -> int:
    """Return a price in USD for ``per`` pieces as 1e-24 USD for one."""
    return int(price.scaleb(_SCALE)) // per


class RateTable:
    """The rates of a batch's models as arrays, so that one index picks the rates of every call."""

    def __init__(self, rates: Sequence[Rates | None]) -> None:
        """Lay the rates out; None, of a model without a price, becomes rates of 0."""
        known = [each.by_key if each else {} for each in rates]
        blank = _Rate((0,))
        self.versions = pa.array(["", *(each.version if each else "" for each in rates)])
        self.is_known = np.array([each is not None for each in rates])
        self.is_coarse = np.array([each is None or each.is_coarse for each in rates])
        self.fee = np.array([each.fee if each else 0 for each in rates], object)
        self.has: dict[str, _Mask] = {}
        self.amounts: dict[str, npt.NDArray[np.object_]] = {}
        self.thresholds: dict[str, npt.NDArray[np.object_]] = {}
        for key in _BY_MILLION:
            of_key = [each.get(key, blank) for each in known]
            tiers = max((len(rate.thresholds) for rate in of_key), default=0)
            self.has[key] = np.array([key in each for each in known])
            self.amounts[key] = np.array(
                [[*rate.amounts, *[0] * (tiers + 1 - len(rate.amounts))] for rate in of_key], object
            )
            self.thresholds[key] = np.array(
                [[*rate.thresholds, *[2**64] * (tiers - len(rate.thresholds))] for rate in of_key],
                object,
            ).reshape(len(of_key), tiers)


def costs_of(
    table: RateTable, which: npt.NDArray[np.int64], calls: pa.RecordBatch
) -> dict[str, pa.Array]:
    """Return the columns of ``COST_COLUMNS`` and ``price_version`` for calls.

    Args:
        table: the rates of the models that were called.
        which: the place of every call's rates in the table.
        calls: rows with the columns of ``PRICED_TOKENS``.
    """
    tokens = {
        name: calls.column(name).fill_null(0).to_numpy(zero_copy_only=False)
        for name in PRICED_TOKENS
    }
    is_coarse = table.is_coarse[which]
    for counts in tokens.values():
        is_coarse &= counts < _MOST_COARSE_TOKENS
    if is_coarse.all():
        costs, is_priced = _charge(table, which, tokens, is_coarse=True)
    else:
        costs = {name: pa.nulls(len(which), COST_TYPE) for name in COST_COLUMNS}
        is_priced = np.zeros(len(which), np.bool_)
        for mask, coarse in ((is_coarse, True), (~is_coarse, False)):
            some = {name: counts[mask] for name, counts in tokens.items()}
            theirs, is_priced[mask] = _charge(table, which[mask], some, is_coarse=coarse)
            costs = {
                name: pc.replace_with_mask(costs[name], pa.array(mask), theirs[name])
                for name in COST_COLUMNS
            }
    versions = table.versions.take(pa.array(np.where(is_priced, which + 1, 0)))
    return {**costs, "price_version": versions}


def _charge(
    table: RateTable,
    which: npt.NDArray[np.int64],
    tokens: dict[str, npt.NDArray[np.uint64]],
    *,
    is_coarse: bool,
) -> tuple[dict[str, pa.Array], _Mask]:
    """Return the columns of ``COST_COLUMNS``, and which calls have a cost.

    Amounts are machine integers of 1e-12 USD where all of these calls are coarse, and Python's
    integers of 1e-24 USD else.
    """
    kind: Any = np.int64 if is_coarse else object
    unit = _COARSE if is_coarse else 1
    prompt, completion, cached, written, reasoning = (
        tokens[name].astype(kind) for name in PRICED_TOKENS
    )

    def rate(key: str) -> _Integers:
        amounts = (table.amounts[key] // unit).astype(kind)
        tier = np.zeros(len(which), np.int64)
        for thresholds in np.minimum(table.thresholds[key], 2**62).astype(kind).T:
            tier += prompt > thresholds[which]
        result: _Integers = amounts[which, tier]
        return result

    has = {key: table.has[key][which] for key in _BY_MILLION}
    plain = rate(_INPUT)
    from_cache = np.where(has[_CACHED], cached, 0)
    to_cache = np.where(has[_WRITTEN], written, 0)
    thought = np.where(has[_REASONING], reasoning, 0)
    uncached, said = prompt - from_cache - to_cache, completion - thought
    is_priced = (
        table.is_known[which]
        & ~(has[_INPUT] & (uncached < 0).astype(np.bool_))
        & ~(has[_OUTPUT] & (said < 0).astype(np.bool_))
    )
    cached_cost, written_cost = from_cache * rate(_CACHED), to_cache * rate(_WRITTEN)
    input_cost = _rounded(uncached * plain + cached_cost + written_cost, is_coarse=is_coarse)
    output_cost = _rounded(said * rate(_OUTPUT) + thought * rate(_REASONING), is_coarse=is_coarse)
    fee = _rounded((table.fee // unit).astype(kind)[which], is_coarse=is_coarse)
    # Where a price lacks the cache, its tokens are charged as other input.
    plainly_cached = np.minimum(cached, prompt)
    plainly_written = np.minimum(written, prompt - plainly_cached)
    cached_cost = np.where(has[_CACHED], cached_cost, plainly_cached * plain)
    written_cost = np.where(has[_WRITTEN], written_cost, plainly_written * plain)
    amounts = (
        input_cost + output_cost + fee,
        input_cost,
        _rounded(cached_cost, is_coarse=is_coarse),
        _rounded(written_cost, is_coarse=is_coarse),
        output_cost,
    )
    costs = {
        name: _decimals(amount, is_priced, is_coarse=is_coarse)
        for name, amount in zip(COST_COLUMNS, amounts, strict=True)
    }
    return costs, is_priced


def _rounded(amounts: _Integers, *, is_coarse: bool) -> _Integers:
    """Round amounts of 1e-24 USD to 1e-18 USD, half to even; coarse amounts stay as they are."""
    if is_coarse:
        return amounts
    whole, rest = amounts // _ROUNDED, amounts % _ROUNDED
    up = (2 * rest + whole % 2 > _ROUNDED).astype(np.int64)
    result: _Integers = whole + up.astype(object)
    return result


def _decimals(amounts: _Integers, is_priced: _Mask, *, is_coarse: bool) -> pa.Array:
    """Return amounts of 1e-18 USD, or coarse ones of 1e-12 USD, as a column of USD.

    A call without a price has NULL.
    """
    missing = pa.array(~is_priced)
    if is_coarse:
        # A decimal is 128 bits, little-endian. The amounts that stay are not negative.
        octets = np.zeros((len(amounts), 2), np.int64)
        octets[:, 0] = amounts * is_priced
        column = pa.Array.from_buffers(
            pa.decimal128(19, _COARSE_SCALE), len(amounts), [None, pa.py_buffer(octets)]
        ).cast(COST_TYPE)
    else:
        exact = [Decimal(f"{amount}E-{COST_TYPE.scale}") for amount in amounts]
        column = pa.array(exact, COST_TYPE)
    return pc.if_else(missing, pa.scalar(None, COST_TYPE), column)
