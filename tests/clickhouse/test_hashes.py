"""The content hash is the same number here and in ClickHouse, whichever column changes."""

import pyarrow as pa

from llm_trace_pipeline.trace.columns import ARROW_SCHEMA
from llm_trace_pipeline.trace.hashes import row_hash_sql, row_hashes
from tests.harness.rows import T0, TABLE
from tests.harness.variants import variants
from tests.harness.warehouse import Warehouse


def test_every_row_has_the_same_hash_here_and_in_clickhouse(warehouse: Warehouse) -> None:
    rows = [row | {"id": name} for name, row in variants().items()]
    warehouse.load(T0, [])  # makes the table
    warehouse.insert(rows)
    here = row_hashes(pa.RecordBatch.from_pylist(rows, ARROW_SCHEMA)).tolist()
    found = warehouse.database.rows(f"SELECT id, {row_hash_sql()} AS hash FROM {TABLE}")
    assert {row["id"]: row["hash"] for row in found} == dict(zip(variants(), here, strict=True))
