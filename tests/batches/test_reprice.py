"""New prices: the hours that they touch are priced anew from their batches, and no others."""

from contextlib import nullcontext
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pytest
from genai_prices.types import ModelPrice

from llm_trace_pipeline.batches.enrich import enrich_hour
from llm_trace_pipeline.batches.history import read_history
from llm_trace_pipeline.batches.manifest import Manifest
from llm_trace_pipeline.batches.rules import Rules
from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.source.session import Session
from llm_trace_pipeline.trace import list_prices, prices, serving
from llm_trace_pipeline.trace.list_prices import LIST_VERSION
from llm_trace_pipeline.trace.prices import PACKAGED, PriceBook
from llm_trace_pipeline.upkeep.reconcile import reconcile, record_reconciliation
from tests.harness.operational import Operational, trace
from tests.harness.pipeline import Pipeline
from tests.harness.rows import T0

H1, H2 = T0 + HOUR, T0 + 2 * HOUR
OWN_MODEL = '{"model": "our-own", "model_endpoint_type": "vllm"}'
LISTED = (Decimal("0.000075"), LIST_VERSION)  # 10 tokens at 2.50 USD a million, and 5 at 10
UNKNOWN = (None, "")


@pytest.fixture
def price_file(tmp_path: Path) -> Path:
    return tmp_path / "prices.toml"


def book(path: Path, price: int) -> PriceBook:
    """Return prices with this one for the input of a model that the package does not know."""
    path.write_text(
        f'[[prices]]\nprovider = "vllm"\nmodel = "our-own"\ninput = {price}\noutput = 2\n',
        encoding="utf-8",
    )
    return PriceBook.of_file(path)


def costs(pipeline: Pipeline) -> dict[str, tuple[Decimal | None, str]]:
    return {row["id"]: (row["cost_usd"], row["price_version"]) for row in pipeline.rows()}


def stale_hours(pipeline: Pipeline, prices: PriceBook) -> tuple[datetime, ...]:
    """Reconcile a later hour than those that are loaded, and keep what was found."""
    rules = Rules(read_history(pipeline.store.files), prices)

    def opened() -> nullcontext[Database]:
        return nullcontext(pipeline.database)

    found = reconcile(pipeline.source, pipeline.store, opened, [H2], rules)
    record_reconciliation(pipeline.store.files, found)
    return found.stale


def reprice(pipeline: Pipeline, prices: PriceBook, hour: datetime) -> Manifest:
    manifest = enrich_hour(pipeline.store, Rules(read_history(pipeline.store.files), prices), hour)
    pipeline.load_batch(hour)
    return manifest


def test_a_new_price_file_reaches_the_hours_it_touches_and_old_amounts_come_out_again(
    operational: Operational,
    pipeline: Pipeline,
    price_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    operational.insert(
        "provider_traces", trace(id="listed"), trace(H1, id="own", llm_config=OWN_MODEL)
    )
    pipeline.load()
    pipeline.load(H1)
    untouched = (
        "* EXCEPT (cost_usd, input_cost_usd, cached_input_cost_usd, cache_write_cost_usd, "
        "output_cost_usd, other_cost_usd, price_version, cost_basis, price_entry)"
    )
    before = pipeline.rows(untouched)
    assert costs(pipeline) == {"listed": LISTED, "own": UNKNOWN}
    assert stale_hours(pipeline, PACKAGED) == ()
    monkeypatch.setattr(Session, "batches", None)  # no payload of the source is read

    first = book(price_file, 1)
    assert stale_hours(pipeline, first) == (H1,)
    assert stale_hours(pipeline, first) == (H1,)  # until it is priced
    name = f"{first.file_version.removeprefix('file:')}.toml"
    assert list(tmp_path.rglob(name)) == []  # looking at prices keeps nothing
    manifest = reprice(pipeline, first, H1)
    assert (manifest.cost_usd, manifest.unpriced) == (Decimal("0.00002"), 0)
    assert stale_hours(pipeline, first) == ()
    priced = costs(pipeline)
    assert priced == {"listed": LISTED, "own": (Decimal("0.00002"), first.file_version)}

    second = book(price_file, 3)
    assert stale_hours(pipeline, second) == (H1,)
    reprice(pipeline, second, H1)
    assert costs(pipeline)["own"] == (Decimal("0.00004"), second.file_version)

    # An old amount comes out again, to the last digit, with the file that its version names.
    [kept] = tmp_path.rglob(name)
    reprice(pipeline, PriceBook.of_file(kept), H1)
    assert costs(pipeline) == priced
    assert pipeline.rows(untouched) == before


def test_a_new_version_of_the_package_makes_stale_what_it_prices_otherwise_only(
    operational: Operational, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    mini = '{"model": "gpt-4o-mini", "model_endpoint_type": "openai"}'
    served = trace()["response_json"].replace("gpt-4o", "gpt-4o-mini")
    of_mini = trace(H1, id="b", llm_config=mini, response_json=served)
    operational.insert("provider_traces", trace(id="a"), of_mini)
    pipeline.load()
    pipeline.load(H1)
    assert stale_hours(pipeline, PACKAGED) == ()
    known = serving.listed_model("openai", "gpt-4o-mini")
    assert known
    dearer = type(known)(id="dearer", match=known.match, prices=book_of_package(9))
    find = serving.listed_model
    for module in (list_prices, prices):
        monkeypatch.setattr(module, "LIST_VERSION", "genai-prices 99")
    monkeypatch.setattr(
        list_prices,
        "listed_model",
        lambda *of: dearer if of[1] == "gpt-4o-mini" else find(*of),
    )
    list_prices._find.cache_clear()  # noqa: SLF001 -- as in the process that has the upgrade
    upgraded = PriceBook()
    assert stale_hours(pipeline, upgraded) == (H1,)
    reprice(pipeline, upgraded, H1)
    assert costs(pipeline) == {"a": LISTED, "b": (Decimal("0.000135"), "genai-prices 99")}
    assert stale_hours(pipeline, upgraded) == ()


def book_of_package(price: int) -> ModelPrice:
    return ModelPrice(input_mtok=Decimal(price), output_mtok=Decimal(price))
