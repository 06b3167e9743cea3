"""The content hash: which change of a row it shows, and that its rule is the recorded one."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from llm_trace_pipeline.trace.columns import (
    ARROW_SCHEMA,
    COLUMNS,
    COST_COLUMNS,
    PAYLOAD_COLUMNS,
)
from llm_trace_pipeline.trace.hashes import row_hashes, sum_of_hashes
from llm_trace_pipeline.trace.tally import Tally, tally_of
from tests.harness.rows import Row
from tests.harness.variants import CHANGED, ROW, UNPRICED, of_version_2, variants

HASHED = [column.name for column in COLUMNS if column.name not in PAYLOAD_COLUMNS]
NULLABLE_COUNTS = [
    column.name for column in COLUMNS if column.is_nullable and column.name not in COST_COLUMNS
]
TEXTS = [
    column.name
    for column in COLUMNS
    if column.arrow_type == pa.string() and column.name not in PAYLOAD_COLUMNS
]

# Recorded from the rule by which hours have been loaded: with another rule, all of them differ.
RECORDED = {
    "the row": "9c281510862b0b40",
    "no tags": "e382dbde71278eb7",
    "no price": "ada0eb840cf75c78",
    "llm_config_json": "86e405c728732582",
    "input_cost_usd": "2c70fcaeb30c83dd",
}


def batch_of(rows: Sequence[Row]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows), ARROW_SCHEMA)


def hash_of(**changes: Any) -> int:
    [found] = row_hashes(batch_of([ROW | changes]))
    return int(found)


def test_there_is_a_change_of_every_column() -> None:
    assert list(CHANGED) == list(ROW) == ARROW_SCHEMA.names
    assert [name for name in ROW if CHANGED[name] == ROW[name]] == []


@pytest.mark.parametrize("column", HASHED)
def test_a_change_of_this_column_alone_changes_the_hash(column: str) -> None:
    assert hash_of(**{column: CHANGED[column]}) != hash_of()


@pytest.mark.parametrize("column", PAYLOAD_COLUMNS)
def test_the_text_of_a_payload_counts_by_its_hash_alone(column: str) -> None:
    assert hash_of(**{column: CHANGED[column]}) == hash_of()


@pytest.mark.parametrize("column", NULLABLE_COUNTS)
def test_a_count_that_was_not_reported_is_not_0(column: str) -> None:
    assert hash_of(**{column: None}) != hash_of(**{column: 0})


@pytest.mark.parametrize("column", TEXTS)
def test_an_empty_text_is_not_the_text_0(column: str) -> None:
    assert hash_of(**{column: ""}) != hash_of(**{column: "0"})


@pytest.mark.parametrize("column", COST_COLUMNS)
def test_a_cost_that_is_not_known_is_not_0(column: str) -> None:
    assert hash_of(**{column: None}) != hash_of(**{column: 0})


@pytest.mark.parametrize("column", [name for name in COST_COLUMNS if name != "other_cost_usd"])
def test_in_version_2_a_cost_counted_beside_a_price_version_alone(column: str) -> None:
    priced, unpriced = of_version_2(ROW), of_version_2(UNPRICED)
    assert hash_of(**priced | {column: None}) == hash_of(**priced | {column: 0})
    assert hash_of(**priced | {column: 7}) != hash_of(**priced | {column: 0})
    assert hash_of(**unpriced) == hash_of(**unpriced | {column: 1})


def test_costs_that_change_places_change_the_hash() -> None:
    swapped = {"input_cost_usd": ROW["output_cost_usd"], "output_cost_usd": ROW["input_cost_usd"]}
    assert hash_of(**swapped) != hash_of()


def test_a_text_that_moves_into_the_next_column_changes_the_hash() -> None:
    assert hash_of(run_id="ab", step_id="c") != hash_of(run_id="a", step_id="bc")


def test_lists_of_other_elements_have_other_hashes() -> None:
    lists: list[list[str]] = [[], [""], ["", ""], ["ab"], ["a", "b"], ["b", "a"], ["a\x1eb"]]
    assert len({hash_of(agent_tags=tags) for tags in lists}) == len(lists)


def test_the_order_of_rows_does_not_count() -> None:
    rows = list(variants().values())
    hashes = [sum_of_hashes(row_hashes(batch_of(some))) for some in (rows, rows[::-1])]
    assert hashes[0] == hashes[1] != sum_of_hashes(row_hashes(batch_of(rows[1:])))


def test_the_hash_of_an_hour_is_that_of_its_batches_together() -> None:
    rows = list(variants().values())
    total = Tally()
    for some in (rows[:7], [], rows[7:]):
        total.add(tally_of(batch_of(some)))
    assert total.figures()["content_hash"] == tally_of(batch_of(rows)).figures()["content_hash"]


def test_a_row_in_the_middle_of_a_batch_has_its_own_hash() -> None:
    rows = list(variants().values())
    alone = [int(row_hashes(batch_of([row]))[0]) for row in rows]
    assert row_hashes(batch_of(rows)).tolist() == alone
    later = list(CHANGED).index("cost_usd")  # from here on, rows have costs of their own
    assert row_hashes(batch_of(rows).slice(later)).tolist() == alone[later:]


@pytest.mark.parametrize("name", RECORDED)
def test_the_rule_of_version_2_is_that_of_the_hours_loaded_then(name: str) -> None:
    assert f"{hash_of(**of_version_2(variants()[name])):016x}" == RECORDED[name]
