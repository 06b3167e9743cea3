"""Billing history: every version of an organization's details ever seen, and the match by time."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

# One row per version seen. Of two versions with the same organization and valid_from, the one seen
# last wins; both stay in the history.
HISTORY_SCHEMA = pa.schema(
    [
        pa.field("organization_id", pa.string(), nullable=False),
        pa.field("plan_type", pa.string(), nullable=False),
        pa.field("cost_source", pa.string(), nullable=False),
        pa.field("customer_id", pa.string(), nullable=False),
        pa.field("valid_from", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("seen_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)
_VERSION = ["organization_id", "valid_from", "plan_type", "cost_source", "customer_id"]

MATCH_REQUEST, MATCH_AS_OF, MATCH_FIRST_KNOWN, MATCH_NONE = (
    "request",
    "as_of",
    "first_known",
    "none",
)


def current_versions(history: pa.Table) -> pa.Table:
    """Return the versions that hold: per organization and valid_from the one seen last.

    Sorted by organization and valid_from.
    """
    return _last_of_each_key(history, ["seen_at", "plan_type", "cost_source", "customer_id"])


def unseen_versions(history: pa.Table, versions: pa.Table, seen_at: datetime) -> pa.Table:
    """Return those of the source's versions that differ from what holds in the history.

    Args:
        history: rows of HISTORY_SCHEMA.
        versions: what ``sql/operational/billing.sql`` returned.
        seen_at: when it was read.
    """
    # Two versions of one moment in one reading would take turns in every reading to come.
    versions = _last_of_each_key(versions, ["plan_type", "cost_source", "customer_id"])
    for name in ("plan_type", "cost_source", "customer_id"):
        position = versions.schema.get_field_index(name)
        versions = versions.set_column(position, name, versions.column(name).fill_null(""))
    new = versions.join(
        current_versions(history).select(_VERSION), keys=_VERSION, join_type="left anti"
    )
    seen = pa.array([seen_at] * new.num_rows, pa.timestamp("us", tz="UTC"))
    return new.append_column("seen_at", seen).select(HISTORY_SCHEMA.names).cast(HISTORY_SCHEMA)


def _last_of_each_key(versions: pa.Table, order: list[str]) -> pa.Table:
    """Keep one row per organization and valid_from: the last by the columns of ``order``."""
    columns = ["organization_id", "valid_from", *order]
    ordered = versions.sort_by([(name, "ascending") for name in columns]).combine_chunks()
    if ordered.num_rows == 0:
        return ordered
    organization, valid_from = (ordered[name].combine_chunks() for name in columns[:2])
    is_superseded = pc.and_(
        pc.equal(organization[:-1], organization[1:]), pc.equal(valid_from[:-1], valid_from[1:])
    )
    return ordered.filter(pa.concat_arrays([pc.invert(is_superseded), pa.array([True])]))


@dataclass(frozen=True)
class BillingColumns:
    """The billing of a batch's rows, each an array as long as the batch."""

    plan_type: pa.StringArray
    cost_source: pa.StringArray
    customer_id: pa.StringArray
    match: pa.StringArray


class BillingMatcher:
    """Finds the version of an organization's details that held when a call was made."""

    def __init__(self, history: pa.Table) -> None:
        """Index the history: rows of HISTORY_SCHEMA."""
        versions = current_versions(history).combine_chunks()
        organizations = versions["organization_id"].combine_chunks().dictionary_encode()
        self._organizations = organizations.dictionary
        self._times = np.unique(_microseconds(versions["valid_from"]))
        # Organization and time become one sortable number, so that one search matches a batch. The
        # dictionary is in order of first appearance, which here is the sort order.
        self._keys = self._key(
            organizations.indices.to_numpy().astype(np.int64),
            _microseconds(versions["valid_from"]),
        )
        # One row more than there are versions: the billing of an organization nobody knows.
        self._plan_type, self._cost_source, self._customer_id = (
            pa.concat_arrays([versions[name].combine_chunks().cast(pa.string()), pa.array([""])])
            for name in ("plan_type", "cost_source", "customer_id")
        )

    def _key(
        self, organization: npt.NDArray[np.int64], time: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        rank = np.searchsorted(self._times, time, side="right").astype(np.int64)
        return (organization << 32) + rank

    def match(
        self,
        organization_id: pa.StringArray,
        created_at: pa.TimestampArray,
        requested: list[tuple[str, str, str] | None],
    ) -> BillingColumns:
        """Return the billing of each row.

        Args:
            organization_id: the rows' final organization.
            created_at: when each call was made.
            requested: what the trace itself carries (plan, cost source, customer), which wins;
                empty where none carries any.
        """
        organization = (
            pc.index_in(organization_id, self._organizations)
            .fill_null(-1)
            .to_numpy()
            .astype(np.int64)
        )
        is_known = organization >= 0
        position = (
            np.searchsorted(
                self._keys, self._key(organization, _microseconds(created_at)), side="right"
            )
            - 1
        )
        first = np.searchsorted(self._keys, organization << 32, side="left")
        is_before_first = is_known & (position < first)
        position = np.where(is_before_first, first, position)
        position = np.where(is_known, position, len(self._keys))
        kinds = np.where(is_known, np.where(is_before_first, 1, 0), 2)

        rows = pa.array(position)
        plan_type, cost_source, customer_id = (
            self._plan_type.take(rows),
            self._cost_source.take(rows),
            self._customer_id.take(rows),
        )
        match = pa.array([MATCH_AS_OF, MATCH_FIRST_KNOWN, MATCH_NONE]).take(pa.array(kinds))
        if any(requested):
            is_requested = pa.array([own is not None for own in requested])
            own_plan, own_source, own_customer = (
                pa.array([own[field] if own else "" for own in requested], pa.string())
                for field in range(3)
            )
            plan_type = pc.if_else(is_requested, own_plan, plan_type)
            cost_source = pc.if_else(is_requested, own_source, cost_source)
            customer_id = pc.if_else(is_requested, own_customer, customer_id)
            match = pc.if_else(is_requested, MATCH_REQUEST, match)
        return BillingColumns(plan_type, cost_source, customer_id, match)


def _microseconds(times: pa.TimestampArray | pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return np.asarray(times.cast(pa.int64()).to_numpy())
