"""The tally of rows of ``llm_traces``: the figures that a manifest states of an hour."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_trace_pipeline.trace.billing import MATCH_NONE
from llm_trace_pipeline.trace.columns import COST_TYPE, TOKEN_COLUMNS
from llm_trace_pipeline.trace.hashes import Hashes, hash_each, row_hashes, sum_of_hashes

EXAMPLES = 3  # names given beside a count: ids, organizations, models

_SUM_TYPE = pa.decimal128(38)


@dataclass
class Tally:
    """The figures of rows that were counted; the tallies of an hour's batches add up."""

    rows: int = 0
    tokens: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(TOKEN_COLUMNS, 0)))
    payload_bytes: int = 0
    content_hash: int = 0
    id_hashes: list[Hashes] = field(default_factory=list)  # 8 bytes a row
    unreadable: int = 0
    unreadable_ids: list[str] = field(default_factory=list)
    billing_matches: Counter[str] = field(default_factory=Counter)
    organizations_without_billing: set[str] = field(default_factory=set)
    cost_usd: Decimal = Decimal(0)
    # Calls without a cost, by model: whose usage is known, and which answered without usage.
    unpriced: Counter[str] = field(default_factory=Counter)
    unmetered: Counter[str] = field(default_factory=Counter)
    min_created_at: datetime | None = None
    max_created_at: datetime | None = None
    erased: int = 0  # rows left out because an erasure covers them
    # Of all rows that came, erased rows too.
    source_hash: int = 0  # see ledger.sql
    step_hashes: list[Hashes] = field(default_factory=list)  # see steps_of_hour.sql

    def add(self, other: "Tally") -> None:
        """Add another tally to this one."""
        self.rows += other.rows
        self.payload_bytes += other.payload_bytes
        self.content_hash = (self.content_hash + other.content_hash) % 2**64
        self.id_hashes += other.id_hashes
        self.unreadable += other.unreadable
        self.unreadable_ids = sorted(self.unreadable_ids + other.unreadable_ids)[:EXAMPLES]
        self.tokens.update(other.tokens)
        self.billing_matches.update(other.billing_matches)
        self.organizations_without_billing |= other.organizations_without_billing
        with localcontext(prec=COST_TYPE.precision):  # Python's own 28 digits could round
            self.cost_usd += other.cost_usd
        self.unpriced.update(other.unpriced)
        self.unmetered.update(other.unmetered)
        self.erased += other.erased
        self.source_hash = (self.source_hash + other.source_hash) % 2**64
        self.step_hashes += other.step_hashes
        ends = (
            self.min_created_at,
            self.max_created_at,
            other.min_created_at,
            other.max_created_at,
        )
        times = [at for at in ends if at]
        self.min_created_at = min(times, default=None)
        self.max_created_at = max(times, default=None)

    def add_source_rows(self, rows: pa.RecordBatch) -> None:
        """Count rows of ``sql/operational/traces.sql`` as the source's own figures do."""
        hashes = sum_of_hashes(rows.column("row_hash").to_numpy())
        self.source_hash = (self.source_hash + hashes) % 2**64
        steps = rows.column("step_id").filter(rows.column("step_is_of_hour"))
        self.step_hashes.append(hash_each(steps))

    @property
    def distinct_ids(self) -> int:
        """The number of different ids."""
        return _distinct(self.id_hashes)

    @property
    def distinct_steps(self) -> int:
        """The number of different steps of the hour among the source's rows."""
        return _distinct(self.step_hashes)

    @property
    def has_duplicates(self) -> bool:
        """Whether an id occurs twice."""
        return self.distinct_ids < self.rows

    def figures(self) -> dict[str, Any]:
        """Return the figures by the names of a manifest's fields."""
        unbilled = sorted(self.organizations_without_billing)
        return {
            "rows": self.rows,
            "distinct_ids": self.distinct_ids,
            "tokens": dict(self.tokens),
            "content_hash": f"{self.content_hash:016x}",
            "min_created_at": self.min_created_at,
            "max_created_at": self.max_created_at,
            "payload_bytes": self.payload_bytes,
            "unreadable": self.unreadable,
            "unreadable_ids": tuple(self.unreadable_ids),
            "billing_matches": dict(self.billing_matches),
            "organizations_without_billing": len(unbilled),
            "organizations_without_billing_ids": tuple(unbilled[:EXAMPLES]),
            "cost_usd": self.cost_usd,
            "unpriced": self.unpriced.total(),
            "unpriced_models": _most_frequent(self.unpriced),
            "unmetered": self.unmetered.total(),
            "unmetered_models": _most_frequent(self.unmetered),
        }


def tally_of(batch: pa.RecordBatch, unreadable: Sequence[str] = ()) -> Tally:
    """Return the tally of rows of ``llm_traces``.

    Args:
        batch: rows of ``ARROW_SCHEMA``.
        unreadable: the ids of the rows whose response could not be read.
    """
    column = batch.column
    times = pc.min_max(column("created_at")).as_py()
    without_billing = column("organization_id").filter(
        pc.equal(column("billing_match"), MATCH_NONE)
    )
    models = pc.binary_join_element_wise(column("provider"), column("model"), "/")
    is_unpriced = pc.is_null(column("cost_usd"))
    is_unmetered = pc.and_(is_unpriced, pc.equal(column("usage_source"), "none"))
    return Tally(
        rows=batch.num_rows,
        tokens=Counter({name: _sum(column(name)) for name in TOKEN_COLUMNS}),
        payload_bytes=_sum(column("request_size_bytes")) + _sum(column("response_size_bytes")),
        content_hash=sum_of_hashes(row_hashes(batch)),
        id_hashes=[hash_each(column("id"))],
        unreadable=len(unreadable),
        unreadable_ids=sorted(unreadable)[:EXAMPLES],
        billing_matches=_counts(column("billing_match")),
        organizations_without_billing=set(without_billing.unique().to_pylist()),
        cost_usd=pc.sum(column("cost_usd")).as_py() or Decimal(0),
        unpriced=_counts(models.filter(pc.and_not(is_unpriced, is_unmetered))),
        unmetered=_counts(models.filter(is_unmetered)),
        min_created_at=times["min"],
        max_created_at=times["max"],
    )


def _distinct(hashes: list[Hashes]) -> int:
    return len(np.unique(np.concatenate([np.empty(0, np.uint64), *hashes])))


def _sum(counts: pa.UInt64Array) -> int:
    # The sum of 64-bit integers wraps. As decimals, a thousand take 17 µs instead of 4.
    return int(pc.sum(counts.cast(_SUM_TYPE)).as_py() or 0)


def _most_frequent(counts: Counter[str]) -> tuple[str, ...]:
    return tuple(sorted(counts, key=counts.__getitem__)[-EXAMPLES:])


def _counts(texts: pa.StringArray) -> Counter[str]:
    return Counter({each["values"]: each["counts"] for each in pc.value_counts(texts).to_pylist()})
