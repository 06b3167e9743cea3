"""From the operational database's rows to the rows of ``llm_traces``, batch by batch."""

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest

from llm_trace_pipeline.trace.billing import BillingMatcher
from llm_trace_pipeline.trace.columns import ARROW_SCHEMA, PAYLOAD_COLUMNS, TOKEN_COLUMNS
from llm_trace_pipeline.trace.context import (
    ConfigReading,
    read_agent_tags,
    read_billing_context,
    read_llm_config,
    read_request_model,
)
from llm_trace_pipeline.trace.fast_responses import read_response
from llm_trace_pipeline.trace.hashes import octets
from llm_trace_pipeline.trace.payloads import KEEP_ALL, PayloadPolicy
from llm_trace_pipeline.trace.prices import PACKAGED, PRICED_BY, PriceBook
from llm_trace_pipeline.trace.responses import ResponseReading
from llm_trace_pipeline.trace.tally import Tally, tally_of

MAX_MESSAGE_LENGTH = 1_000  # code points of an error message that are kept

_NO_RESPONSE = ResponseReading()
_NOT_SENT = ResponseReading(is_readable=False)
_STEP_TOKENS = tuple(f"step_{name}" for name in TOKEN_COLUMNS)


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
