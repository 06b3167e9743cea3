"""The files of an invoice, against plain Python: every digit, every call, and every hole said."""

import csv
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_trace_pipeline.batches.enrich import enrich_hour, renewed
from llm_trace_pipeline.batches.rules import Rules, prices_key
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.cli.invoice import print_invoice, write_files
from llm_trace_pipeline.clickhouse.client import Database, connect
from llm_trace_pipeline.clickhouse.cluster import loader_of
from llm_trace_pipeline.errors import PipelineError, SettingsError
from llm_trace_pipeline.hours import HOUR, key_of
from llm_trace_pipeline.reports.invoice import (
    EVENT_SCHEMA,
    ITEM_SCHEMA,
    Invoice,
    unit_cents,
    write_invoice,
)
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.sql import render
from llm_trace_pipeline.trace.billing import HISTORY_SCHEMA
from llm_trace_pipeline.trace.columns import ARROW_SCHEMA
from llm_trace_pipeline.trace.details import (
    REPORTED_COST,
    REPORTED_INPUT,
    REPORTED_OUTPUT,
    text_of_details,
)
from llm_trace_pipeline.trace.list_prices import LIST_VERSION
from llm_trace_pipeline.trace.prices import PACKAGED, PriceBook
from tests.harness.rows import Row, make_rows, publish

APRIL = datetime(2025, 4, 1, tzinfo=UTC)
LAST, BEFORE = APRIL - HOUR, APRIL - 2 * HOUR  # the hours that most tests load
MOMENT = timedelta(microseconds=1)
LATER = APRIL + 24 * HOUR
HOSTILE = 'cus_"a", b\r\n=1+1;\t\'ß🦉\\N'
NO_HISTORY = HISTORY_SCHEMA.empty_table()
FILES = {
    f"2025-03-{name}.{kind}"
    for name in ("invoice-items", "meter-events")
    for kind in ("csv", "parquet")
}


def call(at: datetime, customer: str = "cus_a", /, **values: Any) -> Row:
    """Return a row of the table, whose costs are still to be filled in."""
    [row] = make_rows(at, 1)
    return {
        **row,
        "billing_match": "request",  # its billing stays
        "billing_customer_id": customer,
        "model": "gpt-4o",
        "prompt_tokens": 1001,
        "completion_tokens": 103,
        "cached_input_tokens": 307,
        "cache_write_tokens": None,
        "served_by": values.get("provider", "openai"),
        "served_model": "",
        "usage_details": "",
        **values,
    }


NO_TOKENS: Row = {
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "total_tokens": 0,
    "cached_input_tokens": None,
}
REPORTED_PARTS = {REPORTED_COST: "0.5", REPORTED_INPUT: "0.125", REPORTED_OUTPUT: "0.25"}


def details(**values: int | str) -> str:
    """Return what a response said beside its tokens."""
    return text_of_details(values)


def price_book(path: Path, *prices: tuple[str, str]) -> PriceBook:
    """Return prices of the model "own": the first day and the price of the input of each."""
    path.write_text(
        "".join(
            f'[[prices]]\nprovider = "openai"\nmodel = "own"\nfrom = {day}\n'
            f"input = {price}\noutput = 0.000003\n"
            for day, price in prices
        ),
        encoding="utf-8",
    )
    return PriceBook.of_file(path)


class Books:
    """A ClickHouse and its batches, and the invoices that are made of them."""

    def __init__(self, folder: Path, first_hour: datetime) -> None:
        self.folder, self.first_hour = folder, first_hour
        start = f"{first_hour:%Y-%m-%d-%H:%M}"
        self.settings = Settings.from_environment(
            {"LLM_TRACES_STATE": str(folder), "LLM_TRACES_START": start}
        )
        self.store = BatchStore.of(self.settings)

    def publish(self, hour: datetime, rows: list[Row], prices: PriceBook = PACKAGED) -> list[Row]:
        """Make priced rows the batch of the hour; return them."""
        if rows:
            batch = pa.RecordBatch.from_pylist(rows, ARROW_SCHEMA)
            rows = renewed(batch, Rules(NO_HISTORY, prices)).to_pylist()
        publish(self.store, hour, rows)
        return rows

    def load(self, *hours: datetime) -> None:
        with connect(self.settings) as database:
            assert all(not each.differences for each in loader_of(database, self.store).load(hours))

    def clickhouse(self, sql: str) -> list[dict[str, Any]]:
        with connect(self.settings) as database:
            return database.rows(sql)

    def write(self, month: str = "2025-03", now: datetime = LATER) -> dict[str, bytes]:
        """Write an invoice; return the files that then are there."""
        self.invoice(month, now)
        return self.files()

    def invoice(self, month: str = "2025-03", now: datetime = LATER) -> Invoice:
        return write_invoice(
            self.settings, month, self.folder / "out", first_hour=self.first_hour, now=now
        )

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / "out").iterdir()}

    def table(self, name: str) -> list[Row]:
        """Return the rows of a Parquet file, which must be those of its CSV."""
        path = self.folder / "out" / name
        table = pq.read_table(path.with_name(f"{name}.parquet"))
        assert table.schema.equals(ITEM_SCHEMA if "items" in name else EVENT_SCHEMA)
        rows: list[Row] = table.to_pylist()
        with path.with_name(f"{name}.csv").open(newline="", encoding="utf-8") as file:
            assert list(csv.DictReader(file)) == [
                {column: as_text(value) for column, value in row.items()} for row in rows
            ]
        return rows


def as_text(value: object) -> str:
    return "" if value is None else f"{value:f}" if isinstance(value, Decimal) else str(value)


@pytest.fixture
def books(tmp_path: Path) -> Books:
    """The last two hours of a month."""
    return Books(tmp_path, BEFORE)


def metered(row: Row) -> dict[str, tuple[int, Decimal | None]]:
    """Return the quantity and the list price of a call, by meter."""
    prompt = row["prompt_tokens"]
    cached = min(row["cached_input_tokens"] or 0, prompt)
    written = min(row["cache_write_tokens"] or 0, prompt - cached)
    quantities = {
        "llm_calls": 1,
        "llm_uncached_input_tokens": prompt - cached - written,
        "llm_cached_input_tokens": cached,
        "llm_cache_write_tokens": written,
        "llm_output_tokens": row["completion_tokens"],
        "llm_other_costs": int(bool(row["other_cost_usd"])),
    }
    if row["cost_usd"] is None:
        return {meter: (quantity, None) for meter, quantity in quantities.items()}
    cost = {name: row[name] or Decimal(0) for name in row if name.endswith("cost_usd")}
    parts = cost["cached_input_cost_usd"], cost["cache_write_cost_usd"]
    costs = [
        *(Decimal(0), cost["input_cost_usd"] - sum(parts), *parts),
        *(cost["output_cost_usd"], cost["other_cost_usd"]),
    ]
    return dict(zip(quantities, zip(quantities.values(), costs, strict=True), strict=True))


def expected_items(rows: list[Row]) -> list[tuple[object, ...]]:
    sums: dict[tuple[Any, ...], list[Any]] = defaultdict(lambda: [0, Decimal(0)])
    for row in rows:
        for meter, (quantity, cost) in metered(row).items():
            key = (
                *(row["billing_customer_id"], row["is_byok"], row["billing_plan_type"]),
                *(row["billing_cost_source"], row["provider"], row["model"]),
                *(row["cost_basis"], row["price_version"], meter),
            )
            sums[key][0] += quantity
            sums[key][1] = None if cost is None else sums[key][1] + cost
    return sorted(
        (*key, quantity, Decimal(0) if key[1] else cost, cost)
        for key, (quantity, cost) in sums.items()
        if quantity or cost
    )


def expected_events(rows: list[Row]) -> list[tuple[object, ...]]:
    sums: dict[tuple[Any, ...], int] = defaultdict(int)
    for row in rows:
        if row["billing_customer_id"] and not row["is_byok"]:
            day = row["created_at"].replace(hour=0, minute=0, second=0, microsecond=0)
            for meter, (quantity, _) in list(metered(row).items())[:-1]:
                sums[row["billing_customer_id"], int(day.timestamp()), meter] += quantity
    return sorted((*key, quantity) for key, quantity in sums.items() if quantity)


def test_the_files_hold_every_call_to_the_last_digit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = APRIL - 25 * HOUR  # so that two days are of the month
    books = Books(tmp_path, first)
    own = {"model": "own", "cached_input_tokens": None}
    prices = price_book(tmp_path / "p.toml", ("2025-03-01", "0.000001"), ("2025-03-31", "2.4"))
    calls = [
        call(first, id="1", billing_plan_type="pro"),
        call(first, id="2", billing_plan_type="max", billing_cost_source="credits"),
        call(first + HOUR - MOMENT, "cus_b", id="3", prompt_tokens=1, **own),
        call(first + HOUR, "cus_b", id="4", prompt_tokens=2, **own),  # the next day
        call(first + 2 * HOUR, HOSTILE, id="5", model='m\n",x', billing_plan_type='"p", q'),
        call(first + 2 * HOUR, HOSTILE, id="6"),
        call(LAST, id="7", is_byok=1),
        call(LAST, id="8", is_byok=1, model="unheard-of"),
        call(LAST, id="9", model="unheard-of"),
        call(LAST, "", id="10"),
        call(LAST, "", id="11", is_byok=1),
        call(LAST, id="12", cached_input_tokens=2000, cache_write_tokens=5),  # of 1001
        call(LAST, id="13", model="claude-sonnet-4-0", provider="anthropic", cache_write_tokens=1),
        call(LAST, id="14", is_error=1, prompt_tokens=0, completion_tokens=0, **own),
        call(LAST, id="18", usage_source="none", **NO_TOKENS),
        call(LAST, id="19", usage_source="none", **NO_TOKENS, model="unheard-of", is_byok=1),
        call(LAST, id="20", usage_details=details(**{REPORTED_COST: "0.75"})),
        call(LAST, id="21", usage_details=details(**REPORTED_PARTS), model="unheard-of"),
        call(LAST, id="22", usage_details=details(web_searches=2)),
        call(APRIL - MOMENT, "cus_last", id="15"),
        call(APRIL, "cus_next", id="16"),
        call(APRIL + HOUR - MOMENT, "cus_next", id="17"),
    ]
    hours = [first + n * HOUR for n in range(26)]
    rows: list[Row] = []
    for hour in hours:
        of_hour = [each for each in calls if hour <= each["created_at"] < hour + HOUR]
        rows += books.publish(hour, of_hour, prices)
    books.load(*hours)
    march = [row for row in rows if row["created_at"] < APRIL]
    unmetered = {"18", "19"}
    without_cost = {row["id"] for row in march if row["cost_usd"] is None}
    assert without_cost == {"5", "8", "9", "12"} | unmetered
    [fee] = [row["other_cost_usd"] for row in march if row["id"] == "22"]
    assert fee > 0

    print_invoice(books.invoice())
    assert set(books.files()) == FILES
    items, events = books.table("2025-03-invoice-items"), books.table("2025-03-meter-events")
    assert [
        (
            *(item["customer"], item["is_byok"], item["plan"], item["cost_source"]),
            *(item["provider"], item["model"], item["cost_basis"], item["price_version"]),
            *(item["meter"], item["quantity"], item["amount_usd"], item["list_amount_usd"]),
        )
        for item in items
    ] == expected_items(march)
    assert [
        (
            *(event["payload_stripe_customer_id"], event["timestamp"]),
            *(event["event_name"], event["payload_value"]),
        )
        for event in events
    ] == expected_events(march)
    assert len({event["identifier"] for event in events}) == len(events)
    assert max(len(event["identifier"]) for event in events) <= 100  # Stripe's bound

    # As SQL has it, and as they say themselves.
    where = "created_at >= '2025-03-01 00:00:00' AND created_at < '2025-04-01 00:00:00'"
    [said] = books.clickhouse(
        f"SELECT sum(cost_usd) AS amount FROM llm_traces WHERE is_byok = 0 AND {where}"
    )
    amount = sum((item["amount_usd"] or 0 for item in items), Decimal(0))
    assert amount == said["amount"] > 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    for line in (
        f"amount              {amount:f} USD",
        "customers           4",
        "calls               20",
        f"prices              {prices.file_version}, {LIST_VERSION}",
        "not before 2025-03-30-23:00, the first hour (LLM_TRACES_START)",
    ):
        assert line in lines
    assert "\nwithout a customer  2 calls, " in text
    assert "\nby own key          4 calls, cost " in text
    named = "'openai/unheard-of' 2, 'openai/gpt-4o' 1, 'openai/m\\n\",x' 1"
    assert f"\nwithout a price     4 calls, not in the amount: {named}\n" in text
    named = "'openai/gpt-4o' 1, 'openai/unheard-of' 1"
    assert f"\nwithout usage       2 calls, not in the amount: {named}\n" in text
    assert "not final" not in text

    # What Stripe is told of an item.
    of_b = {item["meter"]: item for item in items if item["customer"] == "cus_b"}
    output = of_b["llm_output_tokens"]
    assert output["unit_amount_decimal"] == Decimal("0.000000000300")  # cents, of 0.000003 USD/M
    assert output["description"] == "openai own: output tokens"
    assert (output["period_start"], output["period_end"]) == (1740787200, 1743465599)
    assert of_b["llm_uncached_input_tokens"]["unit_amount_decimal"] is None  # two prices

    # The next month begins where this one ends; it has an hour that has ended.
    print_invoice(books.invoice("2025-04", now=APRIL + HOUR))
    next_items = books.table("2025-04-invoice-items")
    assert {item["customer"] for item in next_items} == {"cus_next"}
    assert sum(item["quantity"] for item in next_items if item["meter"] == "llm_calls") == 2
    assert "not final: 2025-04 ends 2025-05-01-00:00 UTC\n" in capsys.readouterr().out


def test_written_again_it_is_the_same_and_a_late_row_changes_values_and_no_identifier(
    books: Books,
) -> None:
    rows = [call(LAST, id="1"), call(LAST, "cus_b", id="2")]
    books.publish(BEFORE, [])
    books.publish(LAST, rows)
    books.load(BEFORE, LAST)
    before = books.write()
    events = books.table("2025-03-meter-events")
    books.load(BEFORE, LAST)
    assert books.write() == before

    books.publish(BEFORE, [call(BEFORE, "cus_b", id="late", prompt_tokens=400)])
    books.load(BEFORE)
    assert books.write() != before
    added = {"llm_calls": 1, "llm_uncached_input_tokens": 93, "llm_cached_input_tokens": 307}
    assert books.table("2025-03-meter-events") == [
        event
        | {
            "payload_value": event["payload_value"]
            + (event["payload_stripe_customer_id"] == "cus_b")
            * (added | {"llm_output_tokens": 103})[event["event_name"]]
        }
        for event in events
    ]


def test_an_old_invoice_comes_out_again_with_the_kept_price_file(
    books: Books, tmp_path: Path
) -> None:
    path = tmp_path / "prices.toml"

    def reprice(prices: PriceBook) -> dict[str, bytes]:
        enrich_hour(books.store, Rules(NO_HISTORY, prices), LAST)
        books.load(LAST)
        return books.write()

    rows = [call(LAST, id="1"), call(LAST, id="2", model="own", cached_input_tokens=None)]
    first = price_book(path, ("2025-01-01", "1.234567"))
    books.publish(BEFORE, [])
    books.publish(LAST, rows, first)
    books.load(BEFORE)
    old = reprice(first)
    [version] = {
        item["price_version"]
        for item in books.table("2025-03-invoice-items")
        if item["model"] == "own"
    }
    new = reprice(price_book(path, ("2025-01-01", "7.654321")))
    assert {name for name in FILES if new[name] != old[name]} == {
        "2025-03-invoice-items.csv",
        "2025-03-invoice-items.parquet",
    }
    # The rows of the old invoice name the file, and it was kept.
    kept = Path(books.settings.trace_batch_uri) / prices_key(version)
    assert reprice(PriceBook.of_file(kept)) == old


def test_an_invoice_with_holes_is_written_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hours = [APRIL - n * HOUR for n in range(5, 0, -1)]
    books = Books(tmp_path, hours[0])
    for hour in hours[:3]:
        books.publish(hour, [call(hour, id=f"{hour}")])
    books.load(*hours[:3])
    books.publish(hours[1], [])  # not loaded since
    with connect(books.settings) as database:
        database.execute(
            "INSERT INTO llm_traces (id, created_at) VALUES ('other', {at:DateTime64(6, 'UTC')})",
            {"at": hours[2]},
        )
    monkeypatch.setenv("LLM_TRACES_STATE", str(books.folder))
    monkeypatch.setenv("LLM_TRACES_START", key_of(hours[0]))
    with pytest.raises(PipelineError, match=r"^the invoice of 2025-03 has holes: 4 hours are not"):
        write_files("2025-03", str(books.folder / "out"))
    assert len(books.table("2025-03-invoice-items")) == 4 + 1  # of cus_a, and of no customer
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("hole: ")]
    assert lines[0].startswith("hole: 2025-03-31-20:00 to 2025-03-31-20:00: rows 1, not 0, ")
    assert lines[1].startswith("hole: 2025-03-31-21:00 to 2025-03-31-21:00: rows 2, not 1, ")
    assert lines[2:] == ["hole: 2025-03-31-22:00 to 2025-03-31-23:00: no batch"]


def test_what_does_not_add_up_leaves_the_files_as_they_were(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    books.publish(BEFORE, [])
    books.publish(LAST, [call(LAST, id="1"), call(LAST, id="2", is_byok=1)])
    books.load(BEFORE, LAST)
    before = books.write()
    read = Database.row_blocks
    for name in ("invoice_items", "meter_events"):
        statement = render(f"invoice/{name}.sql", traces="`default`.`llm_traces`")

        def lacking(
            self: Database, sql: str, *of: Any, cut: str = statement
        ) -> Iterator[list[dict[str, Any]]]:
            for block in read(self, sql, *of):
                yield block[:-1] if sql == cut else block

        monkeypatch.setattr(Database, "row_blocks", lacking)
        with pytest.raises(PipelineError, match="changed while they were read"):
            books.write()
        assert books.files() == before


def test_rows_of_hours_that_are_not_to_be_loaded_are_not_invoiced(books: Books) -> None:
    """Another writer's, from before the first hour and of the hour that has not ended."""
    books.publish(BEFORE, [call(BEFORE, "cus_a", id="1")])
    books.load(BEFORE)
    with connect(books.settings) as database:
        for customer, hours in (("cus_early", -1), ("cus_now", 1)):
            database.execute(
                "INSERT INTO llm_traces SELECT * REPLACE ("
                "{customer:String} AS billing_customer_id, "
                f"created_at + toIntervalHour({hours}) AS created_at) FROM llm_traces "
                "WHERE billing_customer_id = 'cus_a'",
                {"customer": customer},
            )
    books.write(now=LAST + HOUR / 2)
    for name in ("invoice-items", "meter-events"):
        assert "cus_a" in (text := books.files()[f"2025-03-{name}.csv"].decode())
        assert "cus_early" not in text
        assert "cus_now" not in text


@pytest.mark.parametrize(
    ("month", "message"),
    [
        ("", "must be a month, not ''; usage: make invoice MONTH=2026-03"),
        ("2025-13", "must be a month, not '2025-13'"),
        ("2025-02", "2025-02 lies before the first hour, 2025-03-31-22:00"),
        ("2025-05", "2025-05 has not begun yet"),
    ],
)
def test_a_wrong_month_is_one_line(books: Books, month: str, message: str) -> None:
    with pytest.raises(SettingsError, match=f"^MONTH: {message}"):
        books.write(month)


def test_a_table_that_is_missing_is_one_line(books: Books) -> None:
    with pytest.raises(PipelineError, match=r"`llm_traces` does not exist; load the hours"):
        books.write()


@pytest.mark.parametrize(
    ("amount", "quantity", "cents"),
    [
        ("0.000000250000000000", 100, "0.000000250000"),
        ("0.000000000000000003", 3, None),  # 1e-16 cents
        ("0.000000000000030000", 3, "0.000000000001"),
        ("10.000000000000000000", 3, None),
        ("123456789012.345678901234560000", 1, "12345678901234.567890123456"),
        ("0.000000000000000001", 0, None),  # a rounding without tokens
    ],
)
def test_unit_amounts_are_exact_or_left_out(amount: str, quantity: int, cents: str | None) -> None:
    assert unit_cents(Decimal(amount), quantity) == (cents and Decimal(cents))
