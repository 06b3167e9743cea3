"""A batch of manifest version 2, as it was written then: it loads, and is renewed from itself."""

import json
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_trace_pipeline.batches.enrich import enrich_hour, is_stale
from llm_trace_pipeline.batches.files import files_of
from llm_trace_pipeline.batches.manifest import Manifest
from llm_trace_pipeline.batches.rules import Rules
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.cluster import loader_of
from llm_trace_pipeline.clickhouse.rollup import roll_up
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.trace.billing import HISTORY_SCHEMA
from llm_trace_pipeline.trace.columns import ADDED_COLUMNS
from tests.harness.cluster import ClusterWarehouse
from tests.harness.rows import TABLE
from tests.harness.warehouse import Warehouse

HOUR = datetime(2026, 11, 1, 9, tzinfo=UTC)
DATA = Path(__file__).parents[1] / "data"
RULES = Rules(HISTORY_SCHEMA.empty_table())
# The calls of the batch: those of cost_cases.jsonl, and a metadata-only one.
CASES = [json.loads(line) for line in (DATA / "cost_cases.jsonl").read_text().splitlines()]
COSTS = {case["name"]: case.get("expected_cost_usd", "open") for case in CASES}


@pytest.fixture
def store(tmp_path: Path) -> BatchStore:
    folder = tmp_path / "batches" / f"llm_traces/{HOUR:%Y-%m-%d/%H}"
    shutil.copytree(DATA / "batch_version_2", folder)
    settings = Settings.from_environment({"LLM_TRACES_STATE": str(tmp_path)})
    return BatchStore(files_of(settings))


def manifest_of(store: BatchStore) -> Manifest:
    manifest = store.manifest(HOUR)
    assert manifest
    return manifest


def load(warehouse: Warehouse, store: BatchStore) -> dict[str, dict[str, Any]]:
    [result] = loader_of(warehouse.database, store).load([HOUR])
    assert result.differences == ()
    return {row["id"]: row for row in warehouse.database.rows(f"SELECT * FROM {TABLE}")}


def without_payloads(store: BatchStore) -> None:
    """Leave the text of payloads out of the batch, as LLM_TRACES_PAYLOADS=none would have."""
    manifest = manifest_of(store)
    [part] = manifest.parts
    path = next(Path(store.files.location("")).rglob(part.name))
    table = pq.read_table(path)
    blank = pa.array([""] * len(table), pa.string())
    for name in ("request_json", "response_json"):
        table = table.set_column(table.schema.get_field_index(name), name, blank)
    path.chmod(0o644)
    pq.write_table(table, path)
    key = f"llm_traces/{HOUR:%Y-%m-%d/%H}/manifest.json"
    sealed = part.model_copy(
        update={"bytes": path.stat().st_size, "checksum": store.files.checksum(_key(part.name))}
    )
    store.files.switch(
        key, manifest.model_copy(update={"parts": (sealed,)}).model_dump_json().encode()
    )


def _key(name: str) -> str:
    return f"llm_traces/{HOUR:%Y-%m-%d/%H}/{name}"


def test_it_loads_as_it_is(warehouse: Warehouse, store: BatchStore) -> None:
    rows = load(warehouse, store)
    assert rows.keys() == {*COSTS, "metadata"}
    for row in rows.values():
        assert {row[name] for name in ADDED_COLUMNS} <= {"", None}
    assert load(warehouse, store) == rows


def test_it_loads_into_a_cluster(cluster: ClusterWarehouse) -> None:
    folder = Path(cluster.settings.trace_batch_uri) / f"llm_traces/{HOUR:%Y-%m-%d/%H}"
    shutil.copytree(DATA / "batch_version_2", folder)
    cluster.load_hours(HOUR)
    roll_up(cluster.database, cluster.store, [HOUR])
    [found] = cluster.database.rows(f"SELECT count() AS rows FROM {TABLE}")
    assert found["rows"] == len(CASES) + 1


def test_it_is_stale_and_renewed_from_its_own_payloads(
    warehouse: Warehouse, store: BatchStore
) -> None:
    before = load(warehouse, store)
    assert is_stale(store, manifest_of(store), RULES)
    manifest = enrich_hour(store, RULES, HOUR)
    assert (manifest.version, manifest.unread_responses, manifest.unmetered) == (3, 0, 1)
    assert not is_stale(store, manifest, RULES)
    rows = load(warehouse, store)
    assert costs_of(rows) == COSTS
    assert {row["usage_source"] for row in rows.values()} == {"response", "step", "none"}
    assert rows["metadata"]["usage_source"] == "step"
    assert rows["openrouter_reported_cost_auto"]["served_model"] == "openai/gpt-5-mini"
    assert rows["openai_flex_tier_in_response"]["service_tier"] == "flex"
    assert rows["mistral_under_openai_endpoint_type"]["served_by"] == "mistral"
    kept = ("prompt_tokens", "payload_hash", "response_json", "created_at", "is_error")
    for name, row in rows.items():
        assert {each: row[each] for each in kept} == {each: before[name][each] for each in kept}
    # The renewed batch is priced from its columns alone from now on.
    assert enrich_hour(store, RULES, HOUR).content_hash == manifest.content_hash


def costs_of(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str | None]:
    found = {}
    for name, expected in COSTS.items():
        cost = rows[name]["cost_usd"]
        same = expected is not None and cost is not None and cost == Decimal(expected)
        found[name] = expected if same else cost and str(cost)
    return found


def test_without_its_payloads_it_says_so(store: BatchStore) -> None:
    without_payloads(store)
    manifest = enrich_hour(store, RULES, HOUR)
    assert manifest.unread_responses == len(CASES)
    assert manifest.unmetered == 1
    costs = {
        row["id"]: row["cost_usd"]
        for rows in store.row_groups(manifest)
        for row in rows.to_pylist()
    }
    assert costs["anthropic_cache_write_5m_only"] == Decimal("0.00555")
    assert costs["stream_without_usage_is_not_free"] is None
    assert costs["failed_call_without_usage"] == 0
    assert costs["vllm_gpt_oss_under_openai_endpoint_type"] is None
