"""What a call costs, and who says so.

The provider's own statement in the response comes first, but where an entry of the user's price
file overrides it. Then come the price file, and the list prices. An entry of the price file holds
from its day (UTC) until the next entry for the same calls. ``costs.py`` computes with the prices.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_hexdigest

from llm_trace_pipeline.hours import HOUR, floor
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.trace.columns import COST_COLUMNS, COST_TYPE
from llm_trace_pipeline.trace.costs import (
    COLUMN_UNITS,
    UNITS,
    CallNames,
    Costs,
    Counts,
    Periods,
    Priced,
    RateTable,
)
from llm_trace_pipeline.trace.details import (
    CONTEXT,
    LEAST_INPUT,
    REPORTED_COST,
    REPORTED_INPUT,
    REPORTED_OUTPUT,
    UNMETERED,
    details_of_text,
)
from llm_trace_pipeline.trace.list_prices import (
    LIST_VERSION,
    is_charged_one_search,
    list_price_changes,
    listed_price,
    moment,
)
from llm_trace_pipeline.trace.price_file import Entry, read_price_file

_NAMED_BY: Final = ("provider", "served_by", "model", "served_model", "service_tier")
# The columns that decide a cost, and those that say what it is and whose.
PRICED_BY: Final = (
    *(*_NAMED_BY, "created_at", *COLUMN_UNITS.values()),
    *("is_error", "usage_source", "usage_details"),
)
PRICE_COLUMNS: Final = (*COST_COLUMNS, "price_version", "cost_basis", "price_entry")

_STATED: Final = pa.decimal128(30, 18)  # a few times MOST_DOLLARS
_MOST_KNOWN = 4096  # models, and tables of prices, that are kept at hand
_ZERO, _NO_AMOUNT = pa.scalar(Decimal(0), COST_TYPE), pa.scalar(None, COST_TYPE)


class PriceBook:
    """Prices of calls by who served them how, and when."""

    def __init__(self, entries: Sequence[Entry] = (), file: bytes = b"") -> None:
        """Put the entries of a price file before the list prices.

        Args:
            entries: the entries of the file.
            file: the content of the file, kept so that a batch's prices can be told later.
        """
        self.file = file
        self.file_version = f"file:{xxh3_64_hexdigest(file)}" if file else ""
        self._entries = tuple(entries)
        # Kept from batch to batch, which has a thousand rows or so, while the next one has the same
        # models: laid out anew for every batch, prices took 4 % of the extraction of wide rows.
        self._periods = lru_cache(maxsize=_MOST_KNOWN)(self._find_periods)
        self._table = lru_cache(maxsize=_MOST_KNOWN)(self._lay_out)

    @classmethod
    def of(cls, settings: Settings) -> "PriceBook":
        """Return the prices of the file that ``LLM_TRACES_PRICES`` names, and the list prices.

        Raises:
            SettingsError: the file cannot be read, or an entry is wrong.
        """
        return cls.of_file(settings.price_file) if settings.price_file else PACKAGED

    @classmethod
    def of_file(cls, path: Path) -> "PriceBook":
        """Return the prices of a price file, and the list prices.

        Raises:
            SettingsError: the file cannot be read, or an entry is wrong.
        """
        return cls(*read_price_file(path))

    @property
    def version(self) -> str:
        """The versions of the price file and of the list prices: together they name all prices."""
        return ", ".join(filter(None, (self.file_version, LIST_VERSION)))

    def costs(self, calls: pa.RecordBatch) -> dict[str, pa.Array]:
        """Return the columns of ``PRICE_COLUMNS`` for calls.

        Costs are NULL where the price or the usage is not known, and where counts contradict each
        other: more tokens from the cache than in all. A failed call without usage costs 0.

        Args:
            calls: rows with the columns of ``PRICED_BY``.
        """
        if not calls.num_rows:
            texts = dict.fromkeys(PRICE_COLUMNS[len(COST_COLUMNS) :], pa.array([], pa.string()))
            return {**dict.fromkeys(COST_COLUMNS, pa.array([], COST_TYPE)), **texts}
        details = _read_details(calls.column("usage_details"))
        names, number = _distinct_names(calls, details)
        # Sorted, so that the table is found again in the next batch with the same models.
        place = {name: place for place, name in enumerate(sorted(set(names)))}
        created_at = calls.column("created_at")
        first, last = (floor(at) for at in pc.min_max(created_at).as_py().values())
        costs = self._table(tuple(place), first, last + HOUR).costs(
            np.array([place[name] for name in names])[number],
            created_at.cast(pa.int64()).to_numpy(),
            {**_column_counts(calls), **details.counts},
            details.told,
        )
        return _columns_of(costs, calls, details)

    def _lay_out(self, names: tuple[CallNames, ...], start: datetime, end: datetime) -> RateTable:
        return RateTable([self._periods(each, start, end) for each in names])

    def _find_periods(self, call: CallNames, start: datetime, end: datetime) -> Periods:
        """Return the periods between two moments in which a call may have different prices."""
        own = [entry for entry in self._entries if entry.is_for(call)]
        changes = {moment(entry.since) for entry in own} | {*list_price_changes(call, start, end)}
        moments = [start, *sorted(at for at in changes if start < at < end)]
        return (
            [_microseconds(at) - 1 for at in moments[1:]],
            [self._price(call, own, at) for at in moments],
        )

    def _price(self, call: CallNames, own: Sequence[Entry], at: datetime) -> Priced:
        in_force = [entry for entry in own if moment(entry.since) <= at]
        if not in_force:
            return listed_price(call, at)
        entry = max(in_force, key=lambda each: each.rank(call))
        return Priced(
            entry.prices,
            self.file_version,
            "file",
            str(entry),
            overrides_reported=entry.override is not None,
            charges_one_search=is_charged_one_search(call),
        )


PACKAGED = PriceBook()  # without a price file


class _Details(NamedTuple):
    """The details of calls, by row."""

    context: list[tuple[str, ...]]  # of every distinct text, the values of CONTEXT
    number: npt.NDArray[np.int64] | None  # of a row's text; None: no row has details
    counts: dict[str, Counts]
    told: dict[str, npt.NDArray[np.bool_]]
    reported: tuple[pa.Array, pa.Array, pa.Array] | None  # all, input, output; None: no row
    answered: pa.BooleanArray | None  # a failed call had answered; None: no row


def _read_details(texts: pa.StringArray) -> _Details:
    encoded = texts.dictionary_encode()
    distinct = [details_of_text(text) for text in encoded.dictionary.to_pylist()]
    if not any(distinct):
        return _Details([], None, {}, {}, None, None)
    number = encoded.indices.to_numpy()
    named = {name for details in distinct for name in details} & {*UNITS, LEAST_INPUT}
    amounts = None
    if any(REPORTED_COST in details for details in distinct):
        amounts = tuple(
            pa.array([_amount(details, name) for details in distinct], _STATED).take(
                encoded.indices
            )
            for name in (REPORTED_COST, REPORTED_INPUT, REPORTED_OUTPUT)
        )
    return _Details(
        context=[tuple(str(each.get(name, "")) for name in CONTEXT) for each in distinct],
        number=number,
        counts={
            name: np.array([each.get(name, 0) for each in distinct], np.int64)[number]
            for name in named
        },
        told={name: np.array([name in each for each in distinct])[number] for name in named},
        reported=amounts,
        answered=pa.array([UNMETERED in each for each in distinct]).take(encoded.indices),
    )


def _amount(details: Mapping[str, Any], name: str) -> Decimal | None:
    amount = details.get(name)
    return None if amount is None else round(Decimal(amount), COST_TYPE.scale)


def _distinct_names(
    calls: pa.RecordBatch, details: _Details
) -> tuple[list[CallNames], npt.NDArray[np.int64]]:
    """Return the different names of calls, and for every call the place of its names."""
    columns = [calls.column(name) for name in _NAMED_BY]
    number, count = np.zeros(calls.num_rows, np.int64), 1
    for column in columns:
        encoded = column.dictionary_encode()
        number = number * len(encoded.dictionary) + encoded.indices.to_numpy()
        count *= len(encoded.dictionary)
        if count > 2**31:  # the next product could wrap
            distinct, number = np.unique(number, return_inverse=True)
            count = len(distinct)
    if details.number is not None:
        contexts = {context: place for place, context in enumerate(dict.fromkeys(details.context))}
        of_text = np.array([contexts[context] for context in details.context])
        number = number * len(contexts) + of_text[details.number]
    _, rows, number = np.unique(number, return_index=True, return_inverse=True)
    values = pa.record_batch(columns, list(_NAMED_BY)).take(pa.array(rows)).to_pylist()
    named = []
    for row, names in zip(rows, values, strict=True):
        context = () if details.number is None else details.context[details.number[row]]
        named.append(CallNames(*names.values(), *context))
    return named, number


def _column_counts(calls: pa.RecordBatch) -> dict[str, Counts]:
    return {
        unit: calls.column(name).fill_null(0).to_numpy().view(np.int64)
        for unit, name in COLUMN_UNITS.items()
    }


def _columns_of(costs: Costs, calls: pa.RecordBatch, details: _Details) -> dict[str, pa.Array]:
    """Choose between what was reported and what the prices say."""
    has_no_usage = pc.equal(calls.column("usage_source"), "none")
    is_free = pc.and_(has_no_usage, pc.equal(calls.column("is_error"), 1))
    if details.answered is not None:
        is_free = pc.and_not(is_free, details.answered)
    is_priced = pc.and_(pa.array(costs.is_known), pc.invert(has_no_usage))
    labels = {name: costs.labels.column(name) for name in costs.labels.schema.names}
    amounts = costs.amounts
    if not pc.all(is_priced).as_py():
        labels = {name: pc.if_else(is_priced, each, "") for name, each in labels.items()}
        amounts = [pc.if_else(is_priced, each, _NO_AMOUNT) for each in amounts]
    if pc.any(is_free).as_py():
        amounts = [pc.if_else(is_free, _ZERO, each) for each in amounts]
        labels["version"] = pc.if_else(is_free, LIST_VERSION, labels["version"])
        labels["basis"] = pc.if_else(is_free, "list", labels["basis"])
    if details.reported:
        total, of_input, of_output = details.reported
        parts = pc.add(
            *(pc.fill_null(each, pa.scalar(Decimal(0), _STATED)) for each in (of_input, of_output))
        )
        none = pa.nulls(len(total), COST_TYPE)
        stated = (total, of_input, none, none, of_output, pc.subtract(total, parts))
        overridden = pc.and_(is_priced, pa.array(costs.overrides))
        is_reported = pc.and_not(pc.is_valid(total), overridden)
        amounts = [
            pc.if_else(is_reported, reported.cast(COST_TYPE), amount)
            for reported, amount in zip(stated, amounts, strict=True)
        ]
        labels = {name: pc.if_else(is_reported, "", each) for name, each in labels.items()}
        labels["basis"] = pc.if_else(is_reported, "reported", labels["basis"])
    return {
        **dict(zip(COST_COLUMNS, amounts, strict=True)),
        "price_version": labels["version"],
        "cost_basis": labels["basis"],
        "price_entry": labels["entry"],
    }


def _microseconds(at: datetime) -> int:
    return (at - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
