"""Who pays for a call: the history of organizations' billing details, and the match by time.

A version of an organization's details holds from its ``valid_from``, inclusive, until the next one.
The history keeps every version that was ever seen in the source. Of two versions with the same
organization and ``valid_from``, the version seen last holds.
"""

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llm_trace_pipeline.trace.columns import BILLING_COLUMNS

_DETAILS = ("plan_type", "cost_source", "customer_id")
_VERSION = ["organization_id", *_DETAILS, "valid_from"]
_TIME = pa.timestamp("us", tz="UTC")
HISTORY_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("organization_id", *_DETAILS)),
        *(pa.field(name, _TIME, nullable=False) for name in ("valid_from", "seen_at")),
    ]
)

# Where the details of a call came from.
MATCH_AS_OF, MATCH_FIRST_KNOWN, MATCH_NONE = _KINDS = ("as_of", "first_known", "none")
MATCH_REQUEST = "request"


def current_versions(history: pa.Table) -> pa.Table:
    """Return the versions that hold, sorted by organization and ``valid_from``.

    Args:
        history: rows of ``HISTORY_SCHEMA``.
    """
    return _last_per_key(history, ["seen_at", *_DETAILS])


def unseen_versions(history: pa.Table, versions: pa.Table, seen_at: datetime) -> pa.Table:
    """Return the versions in the source that the history does not hold, as rows of the history.

    Args:
        history: rows of ``HISTORY_SCHEMA``.
        versions: rows of ``sql/operational/billing_versions.sql``.
        seen_at: when these were read.
    """
    # Without this, two versions of one moment would supersede each other at every later reading.
    versions = _last_per_key(versions, list(_DETAILS))
    details = (versions[name].fill_null("") for name in _DETAILS)
    versions = pa.table([versions["organization_id"], *details, versions["valid_from"]], _VERSION)
    new = versions.join(
        current_versions(history).select(_VERSION), keys=_VERSION, join_type="left anti"
    )
    seen = pa.repeat(pa.scalar(seen_at, _TIME), new.num_rows)
    return new.append_column("seen_at", seen).select(HISTORY_SCHEMA.names).cast(HISTORY_SCHEMA)


def _last_per_key(versions: pa.Table, order: list[str]) -> pa.Table:
    """Keep one row per organization and ``valid_from``: the last by the columns of ``order``."""
    columns = ["organization_id", "valid_from", *order]
    ordered = versions.sort_by([(name, "ascending") for name in columns]).combine_chunks()
    if ordered.num_rows == 0:
        return ordered
    organization, valid_from = (ordered[name].combine_chunks() for name in columns[:2])
    is_superseded = pc.and_(
        pc.equal(organization[:-1], organization[1:]), pc.equal(valid_from[:-1], valid_from[1:])
    )
    return ordered.filter(pa.concat_arrays([pc.invert(is_superseded), pa.array([True])]))


class BillingMatcher:
    """Finds the version of an organization's billing details that held when a call was made."""

    def __init__(self, history: pa.Table) -> None:
        """Index the history: rows of ``HISTORY_SCHEMA``."""
        versions = current_versions(history).combine_chunks()
        organizations = versions["organization_id"].combine_chunks().dictionary_encode()
        self._organizations = organizations.dictionary
        # One row more stands for organizations that have no version.
        organization = np.append(organizations.indices, len(self._organizations)).astype(np.int64)
        self._valid_from = np.append(_microseconds(versions["valid_from"]), 0)
        self._details = [
            pa.concat_arrays([versions[name].combine_chunks(), pa.array([""])]) for name in _DETAILS
        ]
        # Organization and time become one sortable number, so that one search matches a batch. The
        # dictionary is in order of first appearance, which here is the sort order. An
        # organization's first version also matches the calls before it.
        self._times = np.unique(self._valid_from)
        is_first = np.diff(organization, prepend=-1) > 0
        keys = self._key(organization, self._valid_from)
        self._keys = np.where(is_first, organization << 32, keys)

    def _key(
        self, organization: npt.NDArray[np.int64], time: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        return (organization << 32) + np.searchsorted(self._times, time, side="right")

    def match(
        self,
        organization_id: pa.StringArray,
        created_at: pa.TimestampArray,
        requested: Sequence[tuple[str, str, str] | None] = (),
    ) -> dict[str, pa.Array]:
        """Return the columns of ``BILLING_COLUMNS`` for calls.

        ``billing_match`` is 'as_of' for the version that held when the call was made,
        'first_known' for the first version where the call is older, 'none' for an organization
        without any version, and 'request' for details that the trace itself carries.

        Args:
            organization_id: the final organization of every call.
            created_at: when every call was made.
            requested: plan, cost source and customer that every trace carries, or None; these win.
                Empty where no trace carries any.
        """
        unknown = len(self._organizations)
        organization = pc.index_in(organization_id, self._organizations).fill_null(unknown)
        organization, at = organization.to_numpy().astype(np.int64), _microseconds(created_at)
        row = np.searchsorted(self._keys, self._key(organization, at), side="right") - 1
        kind = np.where(organization == unknown, 2, at < self._valid_from[row])
        matched = [
            *(details.take(pa.array(row)) for details in self._details),
            pa.array(_KINDS).take(pa.array(kind)),
        ]
        if any(requested):
            is_requested = pa.array([own is not None for own in requested])
            own_details = zip(*(own or [""] * len(_DETAILS) for own in requested), strict=True)
            matched = [
                pc.if_else(is_requested, own, found)
                for own, found in zip(
                    (*map(pa.array, own_details), MATCH_REQUEST), matched, strict=True
                )
            ]
        return dict(zip(BILLING_COLUMNS, matched, strict=True))


def _microseconds(times: pa.TimestampArray | pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return np.asarray(times.cast(pa.int64()).to_numpy())
