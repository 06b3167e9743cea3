"""Where a price comes from: the user's price file, else the list prices of genai-prices.

A model is found by provider and name; its price is the one that holds when the call is made. An
entry of the price file holds from its day (UTC) until the next entry of the same model, and comes
before the package's price. ``costs.py`` computes with the prices.
"""

import tomllib
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
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
from llm_trace_pipeline.trace.costs import PRICED_TOKENS, Periods, RateTable, rates_by_input

PRICED_BY = ("provider", "model", "created_at", *PRICED_TOKENS)  # the columns that decide a cost
PACKAGE_VERSION = f"genai-prices {version('genai-prices')}"
VARIABLE = "LLM_TRACES_PRICES"

_MOST_KNOWN = 4096  # models, and tables of prices, that are kept at hand

_Price = Annotated[Decimal, Field(ge=0, max_digits=16, decimal_places=6)]


class _Entry(BaseModel):
    """An entry of a price file: the price of a model from a day (UTC) on, in USD a million tokens.

    Cached and cache-written input without a price of its own costs as much as other input.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: str = Field(min_length=1)
    model: str = Field(min_length=1)
    since: date = Field(default=date.min, alias="from")
    input: _Price
    cached_input: _Price | None = None
    cache_write: _Price | None = None
    output: _Price

    def price(self) -> ModelPrice:
        """Return the entry as a price of the package."""
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
    """Prices of models by provider, name and moment."""

    def __init__(self, entries: Sequence[_Entry] = (), file: bytes = b"") -> None:
        """Put the entries of a price file before the package's prices.

        Args:
            entries: the entries of the file.
            file: the content of the file, kept so that a batch's prices can be told later.
        """
        self.file = file
        self.file_version = f"file:{xxh3_64_hexdigest(file)}" if file else ""
        self._own: dict[tuple[str, str], list[tuple[datetime, ModelPrice]]] = {}
        for entry in sorted(entries, key=lambda each: each.since):
            prices = self._own.setdefault((entry.provider, entry.model), [])
            prices.append((_moment(entry.since), entry.price()))
        # Kept from batch to batch, which has a thousand rows or so, while the next one has the same
        # models: laid out anew for every batch, prices took 4 % of the extraction of wide rows.
        self._periods = lru_cache(maxsize=_MOST_KNOWN)(self._find_periods)
        self._table = lru_cache(maxsize=_MOST_KNOWN)(self._lay_out)

    @classmethod
    def of(cls, settings: Settings) -> "PriceBook":
        """Return the prices of the file that ``LLM_TRACES_PRICES`` names, and of the package.

        Raises:
            SettingsError: the file cannot be read, or an entry is wrong.
        """
        return cls.of_file(settings.price_file) if settings.price_file else PACKAGED

    @classmethod
    def of_file(cls, path: Path) -> "PriceBook":
        """Return the prices of a price file and of the package.

        This is the only place under ``trace/`` that opens a file.

        Raises:
            SettingsError: the file cannot be read, or an entry is wrong.
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
        counts = Counter((entry.provider, entry.model, entry.since) for entry in entries)
        for (provider, model, since), count in counts.items():
            if count > 1:
                raise SettingsError(
                    f"{VARIABLE}: {path}: two prices of {provider}/{model} from {since}"
                )
        return cls(entries, content)

    @property
    def version(self) -> str:
        """The versions of the price file and of the package: together they name all prices."""
        return ", ".join(filter(None, (self.file_version, PACKAGE_VERSION)))

    def costs(self, calls: pa.RecordBatch) -> dict[str, pa.Array]:
        """Return the columns of ``COST_COLUMNS`` and ``price_version`` for calls.

        A call has NULL costs and the version '' where its model has no price at that moment, and
        where its counts contradict each other: more tokens from the cache than in all.

        Args:
            calls: rows with the columns of ``PRICED_BY``.
        """
        if not calls.num_rows:
            blank = {name: pa.array([], COST_TYPE) for name in COST_COLUMNS}
            return {**blank, "price_version": pa.array([], pa.string())}
        provider, model = (calls.column(name).dictionary_encode() for name in PRICED_BY[:2])
        providers, models = provider.dictionary.to_pylist(), model.dictionary.to_pylist()
        pairs = provider.indices.to_numpy().astype(np.int64) * len(models)
        distinct, number = np.unique(pairs + model.indices.to_numpy(), return_inverse=True)
        names = [(providers[pair // len(models)], models[pair % len(models)]) for pair in distinct]
        # Sorted, so that the table is found again in the next batch with the same models.
        place = {name: place for place, name in enumerate(sorted(names))}
        created_at = calls.column("created_at")
        first, last = (floor(moment) for moment in pc.min_max(created_at).as_py().values())
        return self._table(tuple(place), first, last + HOUR).costs(
            np.array([place[name] for name in names])[number],
            created_at.cast(pa.int64()).to_numpy(),
            calls,
        )

    def _lay_out(
        self, models: tuple[tuple[str, str], ...], start: datetime, end: datetime
    ) -> RateTable:
        return RateTable([self._periods(*names, start, end) for names in models])

    def _find_periods(self, provider: str, model: str, start: datetime, end: datetime) -> Periods:
        """Return the periods between two moments in which a model may have different prices."""
        own, info = self._own.get((provider, model), []), _model(provider, model)
        changes = {since for since, _ in own}
        for condition in info.prices if info and isinstance(info.prices, list) else ():
            constraint = condition.constraint
            if isinstance(constraint, StartDateConstraint):
                changes.add(_moment(constraint.start_date))
            elif isinstance(constraint, TimeOfDateConstraint):
                # A day more on both sides: the constraint's day may begin in another time zone.
                for day in range(-1, (end - start).days + 3):
                    for at in (constraint.start_time, constraint.end_time):
                        changes.add(_moment(start.date() + timedelta(days=day), at))
        moments = [start, *sorted(moment for moment in changes if start < moment < end)]
        prices: list[tuple[str, ModelPrice]] = []
        for moment in moments:
            charged = [price for since, price in own if since <= moment]
            listed = info.get_prices(moment) if info and not charged else None
            if charged:
                prices.append((self.file_version, charged[-1]))
            elif listed and _is_valid(listed):
                prices.append((PACKAGE_VERSION, listed))
            else:
                prices.append(("", ModelPrice()))
        return (
            [_microseconds(moment) - 1 for moment in moments[1:]],
            [(version, rates_by_input(price)) for version, price in prices],
        )


PACKAGED = PriceBook()  # without a price file


@lru_cache(maxsize=_MOST_KNOWN)
def _model(provider: str, model: str) -> ModelInfo | None:
    """Return the package's knowledge of a model; None if it knows none of that name."""
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


def _moment(day: date, at: time = time.min) -> datetime:
    """Return a time of a day; UTC unless the time names another zone."""
    return datetime.combine(day, at, at.tzinfo or UTC).astimezone(UTC)


def _microseconds(moment: datetime) -> int:
    return (moment - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
