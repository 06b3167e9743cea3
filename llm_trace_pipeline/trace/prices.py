"""Where a price comes from: the user's price file, else the list prices of genai-prices.

A price is a ``ModelPrice`` of that package, whoever named it.
"""

import tomllib
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import (
    ModelInfo,
    ModelPrice,
    StartDateConstraint,
    TimeOfDateConstraint,
    Usage,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from xxhash import xxh3_64_hexdigest

from llm_trace_pipeline.errors import SettingsError
from llm_trace_pipeline.hours import HOUR, floor
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.trace.columns import COST_COLUMNS, COST_TYPE
from llm_trace_pipeline.trace.costs import PRICED_TOKENS, Rates, RateTable, costs_of

PRICED_BY = ("provider", "model", "created_at", *PRICED_TOKENS)
PACKAGE_VERSION = f"genai-prices {version('genai-prices')}"
VARIABLE = "LLM_TRACES_PRICES"

_MOST_KNOWN = 4096  # prices and tables of them that are kept at hand

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
            input_mtok=self.input,
            cache_read_mtok=self.cached_input,
            cache_write_mtok=self.cache_write,
            output_mtok=self.output,
        )


class _PriceFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    prices: tuple[_Entry, ...]


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
        self._rates: dict[int, Rates | None] = {}
        # A batch has a thousand rows or so, and the next one the same models: laid out anew for
        # each, prices cost an hour of wide rows 4 % of its extraction.
        self._known: dict[
            tuple[str, str, datetime, datetime], tuple[list[int], list[Rates | None]]
        ] = {}
        self._tables: dict[tuple[int, ...], RateTable] = {}

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
        return costs_of(self._table_of(rates), which, calls)

    def _rates_of(
        self, calls: pa.RecordBatch
    ) -> tuple[tuple[Rates | None, ...], npt.NDArray[np.int64]]:
        """Return the rates that occur in a batch, and which of them each call has."""
        provider, model = (calls.column(name).dictionary_encode() for name in PRICED_BY[:2])
        providers, models = provider.dictionary.to_pylist(), model.dictionary.to_pylist()
        pairs = provider.indices.to_numpy().astype(np.int64) * len(models)
        pairs += model.indices.to_numpy()
        times = pc.min_max(calls.column("created_at")).as_py()
        first, last = (floor(times[end]) for end in times)
        rates: list[Rates | None] = []
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
    ) -> tuple[list[int], list[Rates | None]]:
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

    def _table_of(self, rates: tuple[Rates | None, ...]) -> RateTable:
        key = tuple(map(id, rates))
        if (table := self._tables.get(key)) is None:
            table = RateTable(rates)
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

    def _at(self, provider: str, model: str, moment: datetime) -> Rates | None:
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
            self._rates[id(price)] = Rates.of(source, price) if _is_valid(price) else None
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


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time.min, UTC)


def _moment(day: date, at: time) -> datetime:
    return datetime.combine(day, at, at.tzinfo or UTC).astimezone(UTC)


def _microseconds(moment: datetime) -> int:
    return (moment - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
