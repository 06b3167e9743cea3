"""Billing by time: which version of an organization's details a call gets, and which are new."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from llm_trace_pipeline.trace.billing import (
    HISTORY_SCHEMA,
    BillingMatcher,
    current_versions,
    unseen_versions,
)
from llm_trace_pipeline.trace.columns import BILLING_COLUMNS

MARCH = datetime(2026, 3, 1, tzinfo=UTC)
APRIL = datetime(2026, 4, 1, tzinfo=UTC)
MAY = datetime(2026, 5, 1, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)
NONE = ("", "", "", "none")

Version = dict[str, Any]


def version(
    plan: str | None, valid_from: datetime, seen_at: datetime = MAY, organization: str = "org-1"
) -> Version:
    return {
        "organization_id": organization,
        "plan_type": plan,
        "cost_source": "credits",
        "customer_id": f"cus of {organization}",
        "valid_from": valid_from,
        "seen_at": seen_at,
    }


def history_of(*versions: Version) -> pa.Table:
    return pa.Table.from_pylist(list(versions), HISTORY_SCHEMA)


def matched(
    history: Sequence[Version],
    calls: Sequence[tuple[str, datetime]],
    requested: Sequence[tuple[str, str, str] | None] = (),
) -> list[tuple[str, ...]]:
    """Return plan, cost source, customer and match of every call."""
    columns = BillingMatcher(history_of(*history)).match(
        pa.array([organization for organization, _ in calls], pa.string()),
        pa.array([at for _, at in calls], pa.timestamp("us", tz="UTC")),
        requested,
    )
    assert tuple(columns) == BILLING_COLUMNS
    return list(zip(*(column.to_pylist() for column in columns.values()), strict=True))


def plan_and_match(history: Sequence[Version], at: datetime) -> tuple[str, str]:
    [(plan, _, _, match)] = matched(history, [("org-1", at)])
    return plan, match


TWO_PLANS = (version("free", MARCH), version("pro", APRIL))


@pytest.mark.parametrize(
    ("history", "at", "expected"),
    [
        pytest.param(TWO_PLANS, MARCH, ("free", "as_of"), id="valid_from is inclusive"),
        pytest.param(TWO_PLANS, APRIL - MOMENT, ("free", "as_of"), id="until the next version"),
        pytest.param(TWO_PLANS, APRIL, ("pro", "as_of"), id="the next version is inclusive too"),
        pytest.param(TWO_PLANS, MAY, ("pro", "as_of"), id="the last version has no end"),
        pytest.param(
            TWO_PLANS, MARCH - MOMENT, ("free", "first_known"), id="a call before all versions"
        ),
        pytest.param(
            TWO_PLANS[::-1], APRIL, ("pro", "as_of"), id="the order of the history does not count"
        ),
        pytest.param(
            [version("pro", MARCH, MAY), version("free", MARCH, MAY + MOMENT)],
            APRIL,
            ("free", "as_of"),
            id="of one valid_from the version seen last",
        ),
        pytest.param(
            [version("free", MARCH, MAY + MOMENT), version("pro", MARCH, MAY)],
            APRIL,
            ("free", "as_of"),
            id="seen last, not stored last",
        ),
        pytest.param(
            [version("free", MARCH, MAY + MOMENT), version("pro", APRIL, MAY)],
            MAY,
            ("pro", "as_of"),
            id="seen later counts for its own valid_from alone",
        ),
        pytest.param(
            [version("pro", APRIL, MAY), version("free", MARCH, MAY + MOMENT)],
            MARCH,
            ("free", "as_of"),
            id="an older version that is seen later",
        ),
        pytest.param([], MARCH, ("", "none"), id="no history at all"),
        pytest.param(
            [version("pro", MARCH, organization="org-2")],
            APRIL,
            ("", "none"),
            id="the history of another organization",
        ),
    ],
)
def test_a_call_has_the_version_of_its_time(
    history: Sequence[Version], at: datetime, expected: tuple[str, str]
) -> None:
    assert plan_and_match(history, at) == expected


def test_organizations_do_not_share_versions() -> None:
    history = [
        version("a", MARCH, organization="org-0"),
        version("b", APRIL, organization="org-1"),
        version("c", MARCH, organization="org-2"),
        version("d", MAY, organization="org-2"),
    ]
    calls = [
        ("org-2", APRIL),
        ("org-0", MAY),
        ("org-1", MARCH),
        ("", APRIL),
        ("org-2", MAY),
        ("org-9", MAY),
    ]
    assert matched(history, calls) == [
        ("c", "credits", "cus of org-2", "as_of"),
        ("a", "credits", "cus of org-0", "as_of"),
        ("b", "credits", "cus of org-1", "first_known"),
        NONE,
        ("d", "credits", "cus of org-2", "as_of"),
        NONE,
    ]


def test_what_the_request_carries_supplies_all_three_details() -> None:
    calls = [("org-1", APRIL), ("org-1", APRIL), ("nobody", APRIL), ("nobody", APRIL)]
    requested = [None, ("enterprise", "", ""), None, ("", "", "cus_9")]
    assert matched(TWO_PLANS, calls, requested) == [
        ("pro", "credits", "cus of org-1", "as_of"),
        ("enterprise", "", "", "request"),
        NONE,
        ("", "", "cus_9", "request"),
    ]


def test_no_calls_have_no_billing() -> None:
    assert matched(TWO_PLANS, []) == []


# --- the history ----------------------------------------------------------------------------------


def test_one_version_holds_for_every_organization_and_valid_from() -> None:
    restated = version("free", MARCH, MAY + MOMENT)
    others = [version("free", APRIL), version("max", MARCH, organization="org-0")]
    history = history_of(restated, version("pro", MARCH, MAY), *others)
    assert current_versions(history).to_pylist() == [others[1], restated, others[0]]


def read(*versions: Version) -> pa.Table:
    """Return versions as the source hands them out: details may be NULL, and seen is nowhere."""
    names = [name for name in HISTORY_SCHEMA.names if name != "seen_at"]
    schema = pa.schema([pa.field(name, HISTORY_SCHEMA.field(name).type) for name in names])
    return pa.Table.from_pylist([{name: row[name] for name in names} for row in versions], schema)


JUNE = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("history", "source", "new"),
    [
        pytest.param([], TWO_PLANS, ["free", "pro"], id="a first reading"),
        pytest.param(TWO_PLANS, TWO_PLANS, [], id="the same reading again"),
        pytest.param(TWO_PLANS, TWO_PLANS[1:], [], id="a version that left the source stays"),
        pytest.param(TWO_PLANS, [version("max", MAY)], ["max"], id="a version of a later day"),
        pytest.param(TWO_PLANS, [version("max", APRIL)], ["max"], id="a restated plan"),
        pytest.param(
            [version("free", MARCH, MAY), version("pro", MARCH, MAY + MOMENT)],
            [version("free", MARCH)],
            ["free"],
            id="a plan that was restated and is stated again",
        ),
        pytest.param([version("", MARCH)], [version(None, MARCH)], [], id="NULL is an empty text"),
        pytest.param([], [version(None, MARCH)], [""], id="NULL is kept as an empty text"),
        pytest.param(
            [], [version("pro", MARCH), version("free", MARCH)], ["pro"], id="two of one moment"
        ),
        pytest.param(
            [version("pro", MARCH)],
            [version("free", MARCH), version("pro", MARCH)],
            [],
            id="two of one moment do not take turns",
        ),
    ],
)
def test_the_history_takes_what_it_does_not_hold(
    history: Sequence[Version], source: Sequence[Version], new: list[str]
) -> None:
    found = unseen_versions(history_of(*history), read(*source), JUNE)
    assert found.schema == HISTORY_SCHEMA
    assert sorted(found["plan_type"].to_pylist()) == new
    assert set(found["seen_at"].to_pylist()) <= {JUNE}


def test_a_reading_that_was_taken_in_is_not_new_again() -> None:
    readings = [
        read(*TWO_PLANS),
        read(version("max", MARCH), version("free", MARCH), TWO_PLANS[1]),
        read(*TWO_PLANS),
    ]
    history = history_of()
    for day, reading in enumerate(readings):
        new = unseen_versions(history, reading, JUNE + timedelta(days=day))
        history = pa.concat_tables([history, new])
        assert unseen_versions(history, reading, MAY).num_rows == 0
    assert plan_and_match(history.to_pylist(), MARCH) == ("free", "as_of")
