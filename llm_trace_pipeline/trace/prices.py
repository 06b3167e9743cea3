"""What a call cost: the packaged list prices, and the user's price file before them.

A price is a ``ModelPrice`` of the package genai-prices, whoever named it, and means what its
``calc_price`` makes of it: cached and cache-written tokens are part of the input, reasoning tokens
of the output, and a tier is chosen by the whole input of the call. All is computed in integers, for
a batch of calls at once, and rounded half to even at the 18th decimal of a US dollar.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import (
    ModelInfo,
    ModelPrice,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
    Usage,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from xxhash import xxh3_64_hexdigest

from llm_trace_pipeline.errors import SettingsError
from llm_trace_pipeline.hours import HOUR, floor
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.trace.columns import COST_COLUMNS, COST_TYPE

PRICED_BY = (
    *("provider", "model", "created_at", "prompt_tokens", "completion_tokens"),
    *("cached_input_tokens", "cache_write_tokens", "reasoning_tokens"),
)
PACKAGE_VERSION = f"genai-prices {version('genai-prices')}"
VARIABLE = "LLM_TRACES_PRICES"

# The keys of a ModelPrice for what is known of a call. A key that is missing leaves its tokens to
# the key of all input, or of all output.
_INPUT, _CACHED, _WRITTEN = "input_mtok", "cache_read_mtok", "cache_write_mtok"
_OUTPUT, _REASONING = "output_mtok", "output_reasoning_mtok"
_BY_MILLION = (_INPUT, _CACHED, _WRITTEN, _OUTPUT, _REASONING)
_FEE = "requests_kcount"  # for a thousand calls

# Rates are whole numbers of 1e-24 USD a token: no packaged price has more than 18 decimals for a
# million tokens. Nearly all have six at most, which makes their rates multiples of 1e-12 USD, and a
# call's cost one of 63 bits: those are computed in machine integers, the others in Python's.
_SCALE, _COARSE_SCALE = 24, 12
_COARSE = 10 ** (_SCALE - _COARSE_SCALE)
_ROUNDED = 10 ** (_SCALE - COST_TYPE.scale)
_LARGEST_COARSE_RATE = 2**30  # 1,073 USD a million tokens
_MOST_COARSE_TOKENS = 2**31
_MOST_KNOWN = 4096  # prices and tables of them that are kept at hand

_Integers = npt.NDArray[np.int64] | npt.NDArray[np.object_]
_Mask = npt.NDArray[np.bool_]
_Price = Annotated[Decimal, Field(ge=0, max_digits=16, decimal_places=6)]


class _Entry(BaseModel):
    """What a model costs from some day (UTC) on, in USD per million tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: str = Field(min_length=1)
    model: str = Field(min_length=1)
    since: date = Field(default=date.min, alias="from")
    input: _Price
    cached_input: _Price | None = None  # as input
    cache_write: _Price | None = None  # as input
    output: _Price

    def price(self) -> ModelPrice:
        """Return it as the package has it."""
        return ModelPrice(
            **{
                _INPUT: self.input,
                _CACHED: self.cached_input,
                _WRITTEN: self.cache_write,
                _OUTPUT: self.output,
            }
        )


class _PriceFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    prices: tuple[_Entry, ...]


@dataclass(frozen=True)
class _Rate:
    """What a token costs, in 1e-24 USD: ``amounts[n]`` where the input exceeds n thresholds."""

    amounts: tuple[int, ...]
    thresholds: tuple[int, ...] = ()

    @property
    def is_coarse(self) -> bool:
        """Whether machine integers can compute with it."""
        return all(
            amount % _COARSE == 0 and amount // _COARSE < _LARGEST_COARSE_RATE
            for amount in self.amounts
        )


@dataclass(frozen=True)
class _Rates:
    """A price, ready to compute with."""

    version: str
    price: ModelPrice
    by_key: dict[str, _Rate] = field(init=False)
    fee: int = field(init=False)  # 1e-24 USD a call

    def __post_init__(self) -> None:
        rates = {key: _rate(getattr(self.price, key)) for key in _BY_MILLION}
        object.__setattr__(self, "by_key", {key: rate for key, rate in rates.items() if rate})
        fee = getattr(self.price, _FEE)
        object.__setattr__(self, "fee", _in_units(fee, 1000) if fee else 0)


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
    return int(price.scaleb(_SCALE)) // per


class PriceBook:
    """Prices of models by provider, name and day."""

    def __init__(self, entries: Sequence[_Entry] = (), file: bytes = b"") -> None:
        """Put entries of a price file, whose content is given too, before the package's prices."""
        self.file = file
        self.file_version = f"file:{xxh3_64_hexdigest(file)}" if file else ""
        self._entries: dict[tuple[str, str], list[_Entry]] = {}
        for entry in sorted(entries, key=lambda each: each.since):
            self._entries.setdefault((entry.provider, entry.model), []).append(entry)
        # Both lists of prices live as long as this does, so that an id names one of them.
        self._own = {id(entry): entry.price() for entry in entries}
        self._rates: dict[int, _Rates | None] = {}
        # A batch has a thousand rows or so, and the next one the same models: laid out anew for
        # each, prices cost an hour of wide rows 4 % of its extraction.
        self._known: dict[
            tuple[str, str, datetime, datetime], tuple[list[int], list[_Rates | None]]
        ] = {}
        self._tables: dict[tuple[int, ...], _Table] = {}

    @classmethod
    def of(cls, settings: Settings) -> "PriceBook":
        """Return the prices that ``LLM_TRACES_PRICES`` and the package name.

        Raises:
            SettingsError: the file cannot be read, or an entry is wrong.
        """
        return cls.of_file(settings.price_file) if settings.price_file else PACKAGED

    @classmethod
    def of_file(cls, path: Path) -> "PriceBook":
        """Read a price file; see the README.

        Raises:
            SettingsError: it cannot be read, or an entry is wrong.
        """
        try:
            content = path.read_bytes()
            tables = tomllib.loads(content.decode(), parse_float=Decimal)
            entries = _PriceFile.model_validate(tables).prices
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(each) for each in first["loc"])
            raise SettingsError(f"{VARIABLE}: {path}: {place}: {first['msg']}") from None
        except (OSError, ValueError) as error:
            raise SettingsError(f"{VARIABLE}: {path}: {error}") from None
        known: set[tuple[str, str, date]] = set()
        for entry in entries:
            key = (entry.provider, entry.model, entry.since)
            if key in known:
                raise SettingsError(
                    f"{VARIABLE}: {path}: two prices of {entry.provider}/{entry.model} from "
                    f"{entry.since}"
                )
            known.add(key)
        return cls(entries, content)

    @property
    def version(self) -> str:
        """What names all of its prices."""
        return ", ".join(filter(None, (self.file_version, PACKAGE_VERSION)))

    def costs(self, calls: pa.RecordBatch) -> dict[str, pa.Array]:
        """Return the columns of ``COST_COLUMNS`` and ``price_version`` of some calls.

        The costs of a call are NULL, and its version '', where its model has no price that day, or
        where its counts contradict each other: more tokens from the cache than in all.

        Args:
            calls: rows with the columns of ``PRICED_BY``.
        """
        if not calls.num_rows:
            blank = {name: pa.array([], COST_TYPE) for name in COST_COLUMNS}
            return {**blank, "price_version": pa.array([], pa.string())}
        rates, which = self._rates_of(calls)
        table = self._table_of(rates)
        tokens = {
            name: calls.column(name).fill_null(0).to_numpy(zero_copy_only=False)
            for name in PRICED_BY[3:]
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
        versions = pa.array(["", *(each.version if each else "" for each in rates)])
        numbers = np.where(is_priced, which + 1, 0)
        return {**costs, "price_version": versions.take(pa.array(numbers))}

    def _rates_of(
        self, calls: pa.RecordBatch
    ) -> tuple[tuple[_Rates | None, ...], npt.NDArray[np.int64]]:
        """Return the rates that occur in a batch, and which of them each call has."""
        provider, model = (calls.column(name).dictionary_encode() for name in PRICED_BY[:2])
        providers, models = provider.dictionary.to_pylist(), model.dictionary.to_pylist()
        pairs = provider.indices.to_numpy().astype(np.int64) * len(models)
        pairs += model.indices.to_numpy()
        times = pc.min_max(calls.column("created_at")).as_py()
        first, last = (floor(times[end]) for end in times)
        rates: list[_Rates | None] = []
        position = np.zeros(len(providers) * len(models), np.int64)  # of a pair's first rate
        changing: list[tuple[int, list[int]]] = []
        distinct = {
            (providers[pair // len(models)], models[pair % len(models)]): pair
            for pair in np.flatnonzero(np.bincount(pairs)).tolist()
        }
        for of_model, pair in sorted(distinct.items()):  # the same order in every batch
            changes, of_pair = self._within(*of_model, first, last + HOUR)
            position[pair] = len(rates)
            rates += of_pair
            if changes:
                changing.append((pair, changes))
        which: npt.NDArray[np.int64] = position[pairs]
        if changing:
            at = calls.column("created_at").cast(pa.int64()).to_numpy()
            for pair, changes in changing:
                rows = pairs == pair
                which[rows] += np.searchsorted(changes, at[rows], side="right")
        return tuple(rates), which

    def _within(
        self, provider: str, model: str, first: datetime, end: datetime
    ) -> tuple[list[int], list[_Rates | None]]:
        """Return when a model changes its price between two moments, and its rates in between.

        The changes are microseconds since 1970; there is one rate more.
        """
        key = (provider, model, first, end)
        if (known := self._known.get(key)) is None:
            moments = self._changes(provider, model, first, end)
            known = (
                [_microseconds(moment) for moment in moments[1:]],
                [self._at(provider, model, moment) for moment in moments],
            )
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[key] = known
        return known

    def _table_of(self, rates: tuple[_Rates | None, ...]) -> "_Table":
        key = tuple(map(id, rates))
        if (table := self._tables.get(key)) is None:
            table = _Table(rates)
            if len(self._tables) >= _MOST_KNOWN:
                self._tables.clear()
            self._tables[key] = table
        return table

    def _changes(self, provider: str, model: str, first: datetime, end: datetime) -> list[datetime]:
        """Return the moments from which on a model may have another price, the first among them."""
        days = [first.date() + timedelta(days=n) for n in range(-1, (end - first).days + 3)]
        found = {_midnight(entry.since) for entry in self._entries.get((provider, model), ())}
        info = _model(provider, model)
        conditions = info.prices if info and isinstance(info.prices, list) else []
        for constraint in (each.constraint for each in conditions):
            if isinstance(constraint, StartDateConstraint):
                found.add(_midnight(constraint.start_date))
            elif isinstance(constraint, TimeOfDateConstraint):
                ends = (constraint.start_time, constraint.end_time)
                found |= {_moment(day, end) for day in days for end in ends}
        return [first, *sorted(moment for moment in found if first < moment < end)]

    def _at(self, provider: str, model: str, moment: datetime) -> _Rates | None:
        """Return what a model costs at some moment; None where that is not known."""
        began = [
            entry
            for entry in self._entries.get((provider, model), ())
            if _midnight(entry.since) <= moment
        ]
        if began:
            price, source = self._own[id(began[-1])], self.file_version
        elif info := _model(provider, model):
            price, source = info.get_prices(moment), PACKAGE_VERSION
        else:
            return None
        if id(price) not in self._rates:
            self._rates[id(price)] = _Rates(source, price) if _is_valid(price) else None
        return self._rates[id(price)]


PACKAGED = PriceBook()  # without a price file


@lru_cache(maxsize=4096)
def _model(provider: str, model: str) -> ModelInfo | None:
    """Return what the package knows of a model; None: nothing."""
    try:
        return get_snapshot().find_provider_model(model, None, provider, None)[1] if model else None
    except LookupError:
        return None


def _is_valid(price: ModelPrice) -> bool:
    """Whether the package computes with a price at all."""
    try:
        price.calc_price(Usage())
    except ValueError:
        return False
    return True


class _Table:
    """Rates side by side, so that each call of a batch picks its own."""

    def __init__(self, rates: Sequence[_Rates | None]) -> None:
        """Lay them out; a call without a price has rates of 0."""
        known = [each.by_key if each else {} for each in rates]
        blank = _Rate((0,))
        self.is_known = np.array([each is not None for each in rates])
        self.is_coarse = np.array(
            [
                each is None
                or (each.fee % _COARSE == 0 and all(r.is_coarse for r in each.by_key.values()))
                for each in rates
            ]
        )
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


def _charge(
    table: _Table,
    which: npt.NDArray[np.int64],
    tokens: dict[str, npt.NDArray[np.uint64]],
    *,
    is_coarse: bool,
) -> tuple[dict[str, pa.Array], _Mask]:
    """Return what calls cost, and which of them have a cost."""
    kind: Any = np.int64 if is_coarse else object
    unit = _COARSE if is_coarse else 1
    prompt, completion, cached, written, reasoning = (
        tokens[name].astype(kind) for name in PRICED_BY[3:]
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
    # Where a price knows no cache, what came from it is charged as any input is.
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
    """Return amounts of 1e-24 USD in 1e-18 USD, half to even; coarse ones need no rounding."""
    if is_coarse:
        return amounts
    whole, rest = amounts // _ROUNDED, amounts % _ROUNDED
    up = (2 * rest + whole % 2 > _ROUNDED).astype(np.int64)
    result: _Integers = whole + up.astype(object)
    return result


def _decimals(amounts: _Integers, is_priced: _Mask, *, is_coarse: bool) -> pa.Array:
    """Return amounts as a column of USD, NULL where there is none."""
    missing = pa.array(~is_priced)
    if is_coarse:
        # A decimal is 128 bits, little-endian; those of an amount that counts are not negative.
        octets = np.zeros((len(amounts), 2), np.int64)
        octets[:, 0] = amounts * is_priced
        column = pa.Array.from_buffers(
            pa.decimal128(19, _COARSE_SCALE), len(amounts), [None, pa.py_buffer(octets)]
        ).cast(COST_TYPE)
    else:
        exact = [Decimal(f"{amount}E-{COST_TYPE.scale}") for amount in amounts]
        column = pa.array(exact, COST_TYPE)
    return pc.if_else(missing, pa.scalar(None, COST_TYPE), column)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time.min, UTC)


def _moment(day: date, at: time) -> datetime:
    return datetime.combine(day, at, at.tzinfo or UTC).astimezone(UTC)


def _microseconds(moment: datetime) -> int:
    return (moment - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
