"""From the operational database's rows to the rows of ``llm_traces``, batch by batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, localcontext
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest

from llm_trace_pipeline.trace.billing import MATCH_NONE, BillingMatcher
from llm_trace_pipeline.trace.columns import ARROW_SCHEMA, COST_TYPE, PAYLOAD_COLUMNS, TOKEN_COLUMNS
from llm_trace_pipeline.trace.hashes import Hashes, hash_each, octets, row_hashes, sum_of_hashes
from llm_trace_pipeline.trace.payloads import KEEP_ALL, PayloadPolicy
from llm_trace_pipeline.trace.prices import PACKAGED, PRICED_BY, PriceBook
from llm_trace_pipeline.trace.usage import (
    ConfigReading,
    ResponseReading,
    read_agent_tags,
    read_billing_context,
    read_llm_config,
    read_request_model,
    read_response,
)

MAX_MESSAGE_LENGTH = 1_000  # code points of an error message that are kept
EXAMPLES = 3  # ids named in metadata, where rows are counted

_NO_RESPONSE = ResponseReading(0, 0, 0, None, None, None, False, "", "", "", True)
_NOT_SENT = _NO_RESPONSE._replace(is_readable=False)
_STEP_TOKENS = tuple(f"step_{name}" for name in TOKEN_COLUMNS)


@dataclass
class Tally:
    """What is counted of an hour's rows while they pass; tallies of the parts add up."""

    rows: int = 0
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TOKEN_COLUMNS, 0))
    payload_bytes: int = 0
    content_hash: int = 0
    id_hashes: list[Hashes] = field(default_factory=list)  # 8 bytes a row
    unreadable: int = 0
    unreadable_ids: list[str] = field(default_factory=list)
    billing_matches: dict[str, int] = field(default_factory=dict)
    organizations_without_billing: set[str] = field(default_factory=set)
    cost_usd: Decimal = Decimal(0)
    unpriced: dict[str, int] = field(default_factory=dict)  # calls without price, by model
    min_created_at: datetime | None = None
    max_created_at: datetime | None = None
    erased: int = 0  # rows left out because an erasure covers them
    source_hash: int = 0  # of all rows that came, the erased ones included; see ledger.sql

    def add(self, other: "Tally") -> None:
        """Add another tally to this one."""
        self.rows += other.rows
        self.payload_bytes += other.payload_bytes
        self.content_hash = (self.content_hash + other.content_hash) % 2**64
        self.id_hashes += other.id_hashes
        self.unreadable += other.unreadable
        self.unreadable_ids = sorted(self.unreadable_ids + other.unreadable_ids)[:EXAMPLES]
        for name, count in other.tokens.items():
            self.tokens[name] += count
        for kind, count in other.billing_matches.items():
            self.billing_matches[kind] = self.billing_matches.get(kind, 0) + count
        self.organizations_without_billing |= other.organizations_without_billing
        with localcontext(prec=COST_TYPE.precision):  # Python's own 28 digits could round
            self.cost_usd += other.cost_usd
        for model, count in other.unpriced.items():
            self.unpriced[model] = self.unpriced.get(model, 0) + count
        self.erased += other.erased
        self.source_hash = (self.source_hash + other.source_hash) % 2**64
        earliest = (self.min_created_at, other.min_created_at)
        latest = (self.max_created_at, other.max_created_at)
        self.min_created_at = min((at for at in earliest if at), default=None)
        self.max_created_at = max((at for at in latest if at), default=None)

    def add_source_hashes(self, row_hashes: pa.Int64Array) -> None:
        """Add the ``row_hash`` of rows of ``sql/operational/traces.sql``."""
        self.source_hash = (self.source_hash + sum_of_hashes(row_hashes.to_numpy())) % 2**64

    @property
    def distinct_ids(self) -> int:
        """How many ids occur."""
        return len(np.unique(np.concatenate([np.empty(0, np.uint64), *self.id_hashes])))

    @property
    def has_duplicates(self) -> bool:
        """Whether an id occurs twice."""
        return self.distinct_ids < self.rows

    def figures(self) -> dict[str, Any]:
        """Return what a manifest says of the rows."""
        unbilled = sorted(self.organizations_without_billing)
        return {
            "rows": self.rows,
            "distinct_ids": self.distinct_ids,
            "tokens": self.tokens,
            "content_hash": f"{self.content_hash:016x}",
            "min_created_at": self.min_created_at,
            "max_created_at": self.max_created_at,
            "payload_bytes": self.payload_bytes,
            "unreadable": self.unreadable,
            "unreadable_ids": tuple(self.unreadable_ids),
            "billing_matches": self.billing_matches,
            "organizations_without_billing": len(unbilled),
            "organizations_without_billing_ids": tuple(unbilled[:EXAMPLES]),
            "cost_usd": self.cost_usd,
            "unpriced": sum(self.unpriced.values()),
            "unpriced_models": tuple(
                sorted(self.unpriced, key=self.unpriced.__getitem__)[-EXAMPLES:]
            ),
        }


def transform(
    source: pa.RecordBatch,
    billing: BillingMatcher,
    payloads: PayloadPolicy = KEEP_ALL,
    prices: PriceBook = PACKAGED,
) -> tuple[pa.RecordBatch, Tally]:
    """Turn rows of ``sql/operational/traces.sql`` into rows of ``llm_traces``, and count them.

    Usage, errors and sizes are those of the whole payloads, whatever is kept of them.
    """
    texts = {
        name: source.column(name).fill_null("")
        for name in source.schema.names
        if pa.types.is_string(source.schema.field(name).type)
    }
    requests, responses = octets(texts["request_json"]), octets(texts["response_json"])
    readings = [read_response(text) if text else _NO_RESPONSE for text in responses]
    if pc.any(source.column("is_metadata_only")).as_py():
        _read_steps(source, readings)
    for row in pc.indices_nonzero(source.column("is_too_wide")).to_pylist():
        readings[row] = _NOT_SENT
    configs, llm_config_json = _read_configs(texts["llm_config"])
    model = [
        config.model or (read_request_model(request) if request else "") or reading.model
        for config, request, reading in zip(configs, requests, readings, strict=True)
    ]
    sizes = {name: pc.binary_length(texts[name]).cast(pa.uint64()) for name in PAYLOAD_COLUMNS}
    if not payloads.keeps_all:
        for name in PAYLOAD_COLUMNS:
            texts[name] = payloads.kept(texts[name])
        requests, responses = octets(texts["request_json"]), octets(texts["response_json"])
    category = _first_of([config.provider_category for config in configs], texts, "category")
    columns: dict[str, pa.Array] = {
        "id": texts["id"],
        "agent_tags": _agent_tags(texts["agent_tags"]),
        "call_type": _or_else(texts["call_type"], "unknown"),
        "provider": _or_else(
            _first_of([config.provider for config in configs], texts, "provider"), "unknown"
        ),
        "model": _first_of(model, texts, "model"),
        "is_byok": pc.equal(category, "byok").cast(pa.uint8()),
        "request_size_bytes": sizes["request_json"],
        "response_size_bytes": sizes["response_json"],
        "latency_ms": source.column("latency_ms").cast(pa.uint64()),
        "is_error": pa.array([reading.is_error for reading in readings]).cast(pa.uint8()),
        "error_type": pa.array([reading.error_type for reading in readings], pa.string()),
        "error_message": pc.utf8_slice_codeunits(
            payloads.redacted(
                pa.array([reading.error_message for reading in readings], pa.string())
            ),
            0,
            MAX_MESSAGE_LENGTH,
        ),
        "llm_config_json": llm_config_json,
        "created_at": source.column("created_at"),
        "payload_hash": pa.array(
            [
                xxh3_64_intdigest(request + response)
                for request, response in zip(requests, responses, strict=True)
            ],
            pa.uint64(),
        ),
    }
    for position, name in enumerate(TOKEN_COLUMNS):
        columns[name] = pa.array([reading[position] for reading in readings], pa.uint64())
    for name in (
        *("organization_id", "project_id", "agent_id", "run_id", "step_id", "trace_id"),
        *PAYLOAD_COLUMNS,
    ):
        columns[name] = texts[name]
    contexts = texts["billing_context"]
    matched = billing.match(
        texts["organization_id"],
        source.column("created_at"),
        [read_billing_context(text) if text else None for text in octets(contexts)]
        if pc.any(pc.not_equal(contexts, "")).as_py()
        else [],
    )
    columns["billing_plan_type"] = matched.plan_type
    columns["billing_cost_source"] = matched.cost_source
    columns["billing_customer_id"] = matched.customer_id
    columns["billing_match"] = matched.match

    columns |= prices.costs(pa.record_batch({name: columns[name] for name in PRICED_BY}))

    batch = pa.RecordBatch.from_arrays(
        [columns[name] for name in ARROW_SCHEMA.names], schema=ARROW_SCHEMA
    )
    unreadable = (
        [
            text_id
            for text_id, reading in zip(texts["id"].to_pylist(), readings, strict=True)
            if not reading.is_readable
        ]
        if not all(reading.is_readable for reading in readings)
        else []
    )
    return batch, tally_of(batch, unreadable)


def _read_steps(source: pa.RecordBatch, readings: list[ResponseReading]) -> None:
    """Put the step's usage in place of a response that a metadata-only trace does not have.

    The columns of a step mean what OpenAI's usage object means, so the same rules read them.
    """
    takes = source.column("takes_step_usage").to_pylist()
    steps = source.select(_STEP_TOKENS).to_pylist()
    for row, (takes_step_usage, step) in enumerate(zip(takes, steps, strict=True)):
        if takes_step_usage:
            prompt, completion, total, cached, written, reasoning = step.values()
            usage = {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": total,
                "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
                "completion_tokens_details": {"reasoning_tokens": reasoning},
            }
            readings[row] = read_response(msgspec.json.encode({"usage": usage}))


def _read_configs(texts: pa.StringArray) -> tuple[list[ConfigReading], pa.StringArray]:
    """Read each distinct configuration once; return the reading and the kept text of each row."""
    encoded = texts.dictionary_encode()
    readings = [read_llm_config(text) for text in octets(encoded.dictionary)]
    kept = pc.if_else(
        pc.is_in(encoded.dictionary, pa.array(["", "null"])), "{}", encoded.dictionary
    )
    return [readings[index] for index in encoded.indices.to_pylist()], kept.take(encoded.indices)


def _agent_tags(texts: pa.StringArray) -> pa.ListArray:
    encoded = texts.dictionary_encode()
    tags = [read_agent_tags(text) if text else [] for text in octets(encoded.dictionary)]
    return pa.array(tags, pa.list_(pa.string())).take(encoded.indices)


def _or_else(texts: pa.StringArray, default: str) -> pa.StringArray:
    return pc.if_else(pc.equal(texts, ""), default, texts)


def _first_of(values: list[str], texts: dict[str, pa.StringArray], of_step: str) -> pa.StringArray:
    """Return each value, or the step's where it is ''."""
    own = pa.array(values, pa.string())
    step = texts["step_provider_category" if of_step == "category" else f"step_{of_step}"]
    return pc.if_else(pc.equal(own, ""), step, own)


def tally_of(batch: pa.RecordBatch, unreadable: Sequence[str] = ()) -> Tally:
    """Count rows of ``llm_traces``, and name those whose response could not be read."""
    times = pc.min_max(batch.column("created_at")).as_py()
    matches = pc.value_counts(batch.column("billing_match")).to_pylist()
    unmatched = batch.column("organization_id").filter(
        pc.equal(batch.column("billing_match"), MATCH_NONE)
    )
    return Tally(
        rows=batch.num_rows,
        tokens={name: pc.sum(batch.column(name)).as_py() or 0 for name in TOKEN_COLUMNS},
        payload_bytes=sum(
            pc.sum(batch.column(name)).as_py() or 0
            for name in ("request_size_bytes", "response_size_bytes")
        ),
        content_hash=sum_of_hashes(row_hashes(batch)),
        id_hashes=[hash_each(batch.column("id"))],
        unreadable=len(unreadable),
        unreadable_ids=sorted(unreadable)[:EXAMPLES],
        billing_matches={match["values"]: match["counts"] for match in matches},
        organizations_without_billing=set(unmatched.unique().to_pylist()),
        cost_usd=pc.sum(batch.column("cost_usd")).as_py() or Decimal(0),
        unpriced=_unpriced(batch),
        min_created_at=times["min"],
        max_created_at=times["max"],
    )


def _unpriced(batch: pa.RecordBatch) -> dict[str, int]:
    """Count the calls whose cost is not known, by provider and model."""
    missing = batch.select(["provider", "model"]).filter(pc.is_null(batch.column("cost_usd")))
    names = pc.binary_join_element_wise(missing.column("provider"), missing.column("model"), "/")
    return {each["values"]: each["counts"] for each in pc.value_counts(names).to_pylist()}
