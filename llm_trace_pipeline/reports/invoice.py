"""The invoice of a month: what each Stripe customer used and is to pay, as files.

The rows are read from ``llm_traces`` while nobody loads. Then every hour of the month is compared
with its batch. An invoice with holes is written too, since the rest of it may be all that is
needed; it names its holes.
"""

import csv
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, localcontext
from fractions import Fraction
from hashlib import sha256
from itertools import chain, groupby, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import Database, connect
from llm_trace_pipeline.clickhouse.cluster import repaired_for_reading
from llm_trace_pipeline.clickhouse.held import Held
from llm_trace_pipeline.clickhouse.tables import TABLE
from llm_trace_pipeline.errors import ClickHouseError, PipelineError, SettingsError
from llm_trace_pipeline.hours import Window, floor, key_of
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.sql import render
from llm_trace_pipeline.trace.columns import COST_TYPE, EXACT_DIGITS
from llm_trace_pipeline.upkeep.reconcile import Differences, compare_loaded, readable_manifests

CENTS_TYPE = pa.decimal128(38, 12)  # as many decimals as Stripe takes
QUANTITY_TYPE = pa.decimal128(38)  # a sum of counts, which may exceed 64 bits


def _schema(nullable: tuple[str, ...] = (), **types: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind, name in nullable) for name, kind in types.items()])


# The columns by which Stripe imports meter events from files.
EVENT_SCHEMA = _schema(
    identifier=pa.string(),
    timestamp=pa.int64(),  # Unix seconds: the start of the UTC day
    event_name=pa.string(),
    payload_stripe_customer_id=pa.string(),
    payload_value=QUANTITY_TYPE,  # tokens, or calls
)
# Stripe's parameters of an invoice item first, then what the item is about.
ITEM_SCHEMA = _schema(
    nullable=("unit_amount_decimal", "amount_usd", "list_amount_usd"),
    customer=pa.string(),
    currency=pa.string(),
    description=pa.string(),
    period_start=pa.int64(),  # Unix seconds, both included
    period_end=pa.int64(),
    quantity=QUANTITY_TYPE,  # tokens, or calls
    unit_amount_decimal=CENTS_TYPE,  # cents; NULL: 12 decimals cannot hold it
    amount_usd=COST_TYPE,  # NULL: not known
    list_amount_usd=COST_TYPE,  # also of calls by the customer's own key
    meter=pa.string(),
    plan=pa.string(),
    cost_source=pa.string(),
    provider=pa.string(),
    model=pa.string(),
    is_byok=pa.uint8(),
    cost_basis=pa.string(),
    price_version=pa.string(),
)
_CALLS, _OTHER = "llm_calls", "llm_other_costs"
_METERS = {
    _CALLS: "calls",
    "llm_uncached_input_tokens": "uncached input tokens",
    "llm_cached_input_tokens": "cached input tokens",
    "llm_cache_write_tokens": "cache write tokens",
    "llm_output_tokens": "output tokens",
    _OTHER: "fees and other costs",
}
_NAMED = 10  # models without a price, or without usage
_ROWS_AT_ONCE = 8192  # of a file; each is a row group of the Parquet file
_NOTHING = Decimal(f"0E-{COST_TYPE.scale}")
USAGE = "usage: make invoice MONTH=2026-03"

Row = dict[str, Any]


@dataclass(frozen=True)
class Month:
    """A calendar month, UTC."""

    start: datetime

    @classmethod
    def of(cls, text: str, first_hour: datetime, now: datetime) -> "Month":
        """Read a month such as ``2026-03``.

        Raises:
            SettingsError: the text is no month, or the month has not begun or can have no hour.
        """
        try:
            month = cls(datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC))
        except ValueError:
            raise SettingsError(f"MONTH: must be a month, not {text!r}; {USAGE}") from None
        if month.start > now:
            raise SettingsError(f"MONTH: {month} has not begun yet")
        if month.end <= first_hour:
            raise SettingsError(
                f"MONTH: {month} lies before the first hour, {key_of(first_hour)} "
                "(LLM_TRACES_START)"
            )
        return month

    @property
    def end(self) -> datetime:
        """The start of the next month."""
        return (self.start + timedelta(days=31)).replace(day=1)

    def window(self, first_hour: datetime, now: datetime) -> Window:
        """Return the hours that have ended and can be loaded: no other hours are invoiced."""
        begin = max(self.start, first_hour)
        return Window(begin, max(begin, floor(min(self.end, now))))

    def __str__(self) -> str:
        """Return the month as it was given, such as ``2026-03``."""
        return f"{self.start:%Y-%m}"


@dataclass
class Totals:
    """The sums of the rows of the files."""

    customers: int = 0
    quantities: Counter[str] = field(default_factory=Counter)  # by meter, of all calls
    to_bill: Counter[str] = field(default_factory=Counter)  # by meter, what the events have to hold
    metered: Counter[str] = field(default_factory=Counter)  # by meter, what the events hold
    amount_usd: Decimal = _NOTHING
    calls_without_customer: int = 0
    amount_without_customer_usd: Decimal = _NOTHING
    own_key_calls: int = 0
    own_key_list_usd: Decimal = _NOTHING
    # Calls by model, by the customer's own key or not: without a price, and without usage.
    unpriced: Counter[str] = field(default_factory=Counter)
    unmetered: Counter[str] = field(default_factory=Counter)
    price_versions: set[str] = field(default_factory=set)
    _last_customer: str = ""

    def add(self, item: Row) -> None:
        """Count a row of the invoice items, which are sorted by customer."""
        meter, quantity = item["meter"], item["quantity"]
        calls = quantity if meter == _CALLS else 0
        amount, list_amount = (item[name] or 0 for name in ("amount_usd", "list_amount_usd"))
        self.quantities[meter] += quantity
        self.amount_usd += amount
        if not item["customer"]:
            self.calls_without_customer += calls
            self.amount_without_customer_usd += amount
        elif item["customer"] != self._last_customer:
            self.customers += 1
            self._last_customer = item["customer"]
        if item["is_byok"]:
            self.own_key_calls += calls
            self.own_key_list_usd += list_amount
        elif item["customer"] and meter != _OTHER:
            self.to_bill[meter] += quantity
        if item["price_version"]:
            self.price_versions.add(item["price_version"])
        if meter == _CALLS:
            model = f"{item['provider']}/{item['model']}"
            self.unpriced[model] += item["unpriced_calls"]
            self.unmetered[model] += item["unmetered_calls"]

    def as_said(self) -> dict[str, object]:
        """Return the sums in the shape of a row of ``totals.sql``."""
        calls, *inputs, output, _ = (self.quantities[meter] for meter in _METERS)
        return {
            "calls": calls,
            "prompt_tokens": sum(inputs),
            "completion_tokens": output,
            "amount_usd": self.amount_usd,
        }

    def describe(self) -> Iterator[str]:
        """Return the lines that an operator reads."""
        yield f"customers           {self.customers:,}"
        yield f"calls               {self.quantities[_CALLS]:,}"
        yield f"amount              {self.amount_usd:f} USD"
        yield (
            f"without a customer  {self.calls_without_customer:,} calls, "
            f"{self.amount_without_customer_usd:f} USD of the amount"
        )
        yield (
            f"by own key          {self.own_key_calls:,} calls, "
            f"cost {self.own_key_list_usd:f} USD, not in the amount"
        )
        yield f"without a price     {_by_model(self.unpriced)}"
        yield f"without usage       {_by_model(self.unmetered)}"
        yield f"prices              {', '.join(sorted(self.price_versions)) or 'none'}"


def _by_model(calls: Counter[str]) -> str:
    """Return the number of calls that no amount has, and the models that most of them called."""
    models = [f"{model!r} {count:,}" for model, count in calls.most_common() if count]
    named = [*models[:_NAMED], *(["…"] if len(models) > _NAMED else [])]
    said = f"{calls.total():,} calls, not in the amount"
    return f"{said}: {', '.join(named)}" if named else said


@dataclass(frozen=True)
class Invoice:
    """The files of a month, with their sums and the holes of the month."""

    month: Month
    first_hour: datetime  # that can be loaded: nothing before it is invoiced
    made_at: datetime
    totals: Totals
    paths: tuple[Path, ...]
    holes: Differences  # the hours that ClickHouse does not hold as their batches say


def write_invoice(
    settings: Settings, month: str, folder: Path, *, first_hour: datetime, now: datetime
) -> Invoice:
    """Write the files of a month.

    Args:
        settings: name the stores.
        month: such as ``2026-03``.
        folder: gets the files.
        first_hour: the first hour that can be loaded.
        now: every hour that has ended by then is expected to be loaded.

    Raises:
        SettingsError: the month is none that can be invoiced.
        PipelineError: the files do not add up to what ClickHouse says, and were not written.
    """
    of_month = Month.of(month, first_hour, now)
    window = of_month.window(first_hour, now)
    store = BatchStore.of(settings)
    # This writes where a swap was cut, which shows rows twice, or where the table is an older one.
    with connect(settings) as database, repaired_for_reading(database, store) as exists:
        if not exists:
            raise ClickHouseError(
                f"{database.qualified(TABLE)} does not exist", "load the hours of the month first"
            )
        folder.mkdir(parents=True, exist_ok=True)
        # Beside the files of an earlier invoice, which are replaced once all new ones are complete.
        with TemporaryDirectory(dir=folder, prefix=".invoice-") as beside:
            totals = _write_files(database, of_month, window, Path(beside))
            # After the files: rows that another writer added while they were read are noticed.
            holes = _holes(database, store, window.hours)
            paths = [path.replace(folder / path.name) for path in sorted(Path(beside).iterdir())]
    return Invoice(of_month, first_hour, now, totals, tuple(paths), holes)


def _write_files(database: Database, month: Month, window: Window, folder: Path) -> Totals:
    """Write all files of a window of a month into a folder."""
    totals = Totals()
    traces = Held(database, TABLE).rows
    events, items = (
        chain.from_iterable(
            database.row_blocks(render(f"invoice/{name}.sql", traces=traces), window.parameters)
        )
        for name in ("meter_events", "invoice_items")
    )
    with localcontext(prec=EXACT_DIGITS):
        _write(folder / f"{month}-invoice-items", ITEM_SCHEMA, _items(items, month, totals))
        _write(folder / f"{month}-meter-events", EVENT_SCHEMA, _events(events, totals))
    [said] = database.rows(render("invoice/totals.sql", traces=traces), window.parameters)
    if totals.as_said() != said or totals.metered != totals.to_bill:
        raise PipelineError(
            f"the rows of {month} changed while they were read, or not all of them came: nothing "
            "was written; pause the other writer, and run make invoice again"
        )
    return totals


def _items(rows: Iterable[Row], month: Month, totals: Totals) -> Iterator[Row]:
    """Make invoice items of the rows of invoice_items.sql, and count them."""
    for row in rows:
        list_amount = row["list_amount_usd"]
        amount = _NOTHING if row["is_byok"] else list_amount
        own_key = " (own key)" if row["is_byok"] else ""
        item = {
            **row,
            "currency": "usd",
            "description": f"{row['provider']} {row['model']}: {_METERS[row['meter']]}{own_key}",
            "period_start": int(month.start.timestamp()),
            "period_end": int(month.end.timestamp()) - 1,
            "unit_amount_decimal": unit_cents(amount, row["quantity"]),
            "amount_usd": amount,
        }
        totals.add(item)
        yield {name: item[name] for name in ITEM_SCHEMA.names}


def _events(rows: Iterable[Row], totals: Totals) -> Iterator[Row]:
    """Make meter events of the rows of meter_events.sql, and count them."""
    for row in rows:
        name, customer, day = row["event_name"], row["customer"], row["day"]
        totals.metered[name] += row["value"]
        yield {
            "identifier": event_identifier(name, customer, day),
            "timestamp": int(datetime.combine(day, time.min, UTC).timestamp()),
            "event_name": name,
            "payload_stripe_customer_id": customer,
            "payload_value": row["value"],
        }


def event_identifier(meter: str, customer: str, day: date) -> str:
    """Return the lasting name of a meter event, shorter than the 100 characters of Stripe."""
    return f"{meter}-{day}-{sha256(customer.encode()).hexdigest()[:32]}"


def unit_cents(amount: Decimal | None, quantity: int) -> Decimal | None:
    """Return the cents of one token or one call; None where 12 decimals cannot hold them."""
    if amount is None or not quantity:
        return None
    units = Fraction(amount) * 100 * 10**CENTS_TYPE.scale / quantity
    return Decimal(f"{units.numerator}E-{CENTS_TYPE.scale}") if units.denominator == 1 else None


def _write(path: Path, schema: pa.Schema, rows: Iterator[Row]) -> None:
    """Write rows as CSV and as Parquet. In the CSV a decimal is a text with all its digits."""
    texts, tables = (path.with_suffix(suffix) for suffix in (".csv", ".parquet"))
    with (
        texts.open("w", newline="", encoding="utf-8") as text,
        tables.open("wb") as binary,
    ):
        lines = csv.DictWriter(text, schema.names)
        lines.writeheader()
        with pq.ParquetWriter(binary, schema, compression="zstd") as table:
            while some := list(islice(rows, _ROWS_AT_ONCE)):
                lines.writerows(
                    {
                        name: f"{value:f}" if isinstance(value, Decimal) else value
                        for name, value in row.items()
                    }
                    for row in some
                )
                table.write_batch(pa.RecordBatch.from_pylist(some, schema))
        for file in (text, binary):
            file.flush()
            os.fsync(file.fileno())


def _holes(database: Database, store: BatchStore, hours: list[datetime]) -> Differences:
    """Return the hours that ClickHouse does not hold as their batches say, with the differences."""
    manifests, holes = readable_manifests(store, hours)
    for _, of_day in groupby(manifests.values(), key=lambda manifest: manifest.hour.date()):
        holes |= compare_loaded(database, store, list(of_day))
    without_batch = set(hours).difference(manifests, holes)
    return holes | dict.fromkeys(without_batch, ("no batch",))
