"""The tally of an hour: the batches in which its rows came make no difference."""

from collections.abc import Sequence
from decimal import Decimal

import pyarrow as pa

from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.trace.columns import ARROW_SCHEMA, TOKEN_COLUMNS
from llm_trace_pipeline.trace.tally import EXAMPLES, Tally, tally_of
from tests.harness.rows import T0, Row, make_rows
from tests.harness.variants import ROW, UNPRICED, of_version_2


def counted(*batches: Sequence[Row]) -> Tally:
    """Return the tally of batches; a row without an error message could not be read."""
    total = Tally()
    for rows in batches:
        batch = pa.RecordBatch.from_pylist(list(rows), ARROW_SCHEMA)
        total.add(tally_of(batch, [row["id"] for row in rows if not row["error_message"]]))
    return total


def test_the_figures_of_batches_add_up() -> None:
    rows = [
        row | {"billing_match": ("as_of", "none", "request")[number % 3]}
        for number, row in enumerate(make_rows(T0, 40))
    ]
    whole = counted(rows).figures()
    assert counted(rows[:1], rows[1:17], [], rows[17:]).figures() == whole
    assert counted(rows[20:], rows[:20]).figures() == whole
    assert whole["rows"] == whole["distinct_ids"] == 40
    assert whole["tokens"] == {name: sum(row[name] or 0 for row in rows) for name in TOKEN_COLUMNS}
    assert whole["billing_matches"] == {"as_of": 14, "none": 13, "request": 13}
    assert (whole["min_created_at"], whole["max_created_at"]) == (
        T0,
        max(row["created_at"] for row in rows),
    )


def test_no_rows_have_figures_too() -> None:
    figures = counted([]).figures()
    assert figures == Tally().figures()
    assert figures["tokens"] == dict.fromkeys(TOKEN_COLUMNS, 0)
    assert (figures["content_hash"], figures["min_created_at"]) == ("0" * 16, None)


def test_an_id_that_comes_twice_is_found_across_batches() -> None:
    rows = make_rows(T0, 4)
    assert not counted(rows[:2], rows[2:]).has_duplicates
    assert counted(rows, rows[3:]).has_duplicates
    assert counted(rows, rows[3:]).distinct_ids == 4


def test_counts_are_summed_beyond_64_bits() -> None:
    huge = {**dict.fromkeys(TOKEN_COLUMNS, 2**64 - 1), "request_size_bytes": 2**64 - 1}
    small = {**dict.fromkeys(TOKEN_COLUMNS, 2), "response_size_bytes": 3}
    rows = [{**ROW, "response_size_bytes": 0, **huge}, {**ROW, "request_size_bytes": 0, **small}]
    tally = counted([rows[0], rows[0], rows[1]])
    assert tally.tokens == dict.fromkeys(TOKEN_COLUMNS, 2**65)
    assert tally.payload_bytes == 2 * (2**64 - 1) + 3


def test_costs_are_summed_with_all_their_digits() -> None:
    costs = Decimal(10) ** 19, Decimal("1e-18")  # Python's 28 digits cannot hold their sum
    tally = counted(*([ROW | {"cost_usd": cost}] for cost in costs))
    assert tally.cost_usd == Decimal("10000000000000000000.000000000000000001")


def test_calls_without_a_price_are_counted_by_model_and_the_most_frequent_are_named() -> None:
    models = ["a", "b", "b", "c", "c", "c", "d", "d", "d", "d"]
    tally = counted([UNPRICED | {"model": model} for model in models], [UNPRICED, ROW])
    assert tally.unpriced == {"openai/a": 1, "openai/b": 2, "openai/c": 3, "openai/d": 4} | {
        "openai/gpt-4o": 1
    }
    figures = tally.figures()
    assert (figures["unpriced"], figures["unpriced_models"]) == (
        11,
        ("openai/b", "openai/c", "openai/d"),
    )


def test_calls_without_usage_are_told_apart_from_models_without_a_price() -> None:
    unmetered = UNPRICED | {"usage_source": "none"}
    models = ["a", "b", "b", "c", "c", "c", "d", "d", "d", "d"]
    rows = [
        *(unmetered | {"model": model} for model in models),
        *(UNPRICED | {"model": "d"}, UNPRICED | {"model": "e", "usage_source": "step"}),
        ROW | {"usage_source": "none"},  # the response says what the call cost
        ROW | {"usage_source": "none", "is_error": 1, "cost_usd": Decimal(0)},
        of_version_2(UNPRICED),
    ]
    figures = counted(rows[:7], rows[7:]).figures()
    assert (figures["unmetered"], figures["unmetered_models"]) == (
        10,
        ("openai/b", "openai/c", "openai/d"),
    )
    assert (figures["unpriced"], set(figures["unpriced_models"])) == (
        3,
        {"openai/d", "openai/e", "openai/gpt-4o"},
    )


def test_a_few_examples_stand_beside_a_count() -> None:
    rows = [
        ROW | {"id": f"id-{number}", "organization_id": f"org-{number}", "billing_match": "none"}
        for number in range(9)
    ]
    figures = counted(rows[::-1], rows[:2]).figures()
    assert (figures["unreadable"], figures["organizations_without_billing"]) == (11, 9)
    assert figures["unreadable_ids"] == ("id-0", "id-0", "id-1")
    assert figures["organizations_without_billing_ids"] == ("org-0", "org-1", "org-2")
    assert EXAMPLES == 3


def test_what_the_source_said_is_added_apart_from_the_rows() -> None:
    def rows(*each: tuple[int, str | None, bool]) -> pa.RecordBatch:
        names = ("row_hash", "step_id", "step_is_of_hour")
        return pa.record_batch(dict(zip(names, zip(*each, strict=True), strict=True)))

    left, right = Tally(), Tally()
    left.add_source_rows(rows((2**63 - 1, "a", True)))
    left.add_source_rows(rows((2**63 - 1, "b", False)))
    right.add_source_rows(rows((-1, "a", True), (4, "c", True)))
    left.erased, right.erased = 1, 2
    left.add(right)
    assert (left.source_hash, left.erased, left.distinct_steps) == (1, 3, 2)
    assert "erased" not in left.figures()


def test_a_row_of_another_hour_moves_the_ends() -> None:
    early, late = make_rows(T0, 1), make_rows(T0 + HOUR, 1)
    tally = counted(late, early)
    assert (tally.min_created_at, tally.max_created_at) == (T0, T0 + HOUR)
