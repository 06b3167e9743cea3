"""The cases of calls whose cost depends on more than their tokens, through the transformation."""

from decimal import Decimal
from typing import Any

import pytest

from tests.harness.source_rows import load
from tests.harness.usage_cases import COST_CASES

PARTS = ("input_cost_usd", "output_cost_usd", "other_cost_usd")
NAMES = [case["name"] for case in COST_CASES]


def as_column(value: Any) -> Any:
    """Return a case's value as a row holds it."""
    return int(value) if isinstance(value, bool) else value


@pytest.mark.parametrize("case", COST_CASES, ids=NAMES)
def test_call_costs_what_its_provider_charges(case: dict[str, Any]) -> None:
    [row], tally = load([case["call"]])
    blank = dict.fromkeys(("error_type", "error_message"), "")  # no other column of a case is ''
    expected = {
        name: blank.get(name) if value is None else as_column(value)
        for name, value in case["expected"].items()
    }
    assert {name: row[name] for name in expected} == expected
    if "expected_cost_usd" in case:
        cost = case["expected_cost_usd"]
        assert row["cost_usd"] == (None if cost is None else Decimal(cost))
        without_price, without_usage = tally.unpriced.total(), tally.unmetered.total()
        assert without_price + without_usage == (cost is None)
        assert without_usage == (cost is None and row["usage_source"] == "none")
    if row["cost_usd"] is None:
        assert [row[part] for part in PARTS] == [None, None, None]
        assert (row["cost_basis"], row["price_version"], row["price_entry"]) == ("", "", "")
    else:
        assert row["cost_usd"] == sum(row[part] or 0 for part in PARTS)
        assert row["cost_basis"] in {"reported", "list"}
        of_input = (row["cached_input_cost_usd"] or 0) + (row["cache_write_cost_usd"] or 0)
        assert of_input <= (row["input_cost_usd"] or 0)


def test_calls_cost_the_same_in_one_batch_as_alone() -> None:
    alone = [load([case["call"]])[0][0] for case in COST_CASES]
    rows, tally = load([case["call"] for case in COST_CASES])
    named = ("id", "step_id")  # by their place in the batch
    assert [{k: v for k, v in row.items() if k not in named} for row in rows] == [
        {k: v for k, v in row.items() if k not in named} for row in alone
    ]
    assert tally.cost_usd == sum(row["cost_usd"] or 0 for row in alone)
    assert tally.rows == len(COST_CASES)
