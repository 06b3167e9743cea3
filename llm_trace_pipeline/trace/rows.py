"""The transformation: rows of the operational database become rows of ``llm_traces``."""

from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest

from llm_trace_pipeline.trace.billing import BillingMatcher
from llm_trace_pipeline.trace.columns import ARROW_SCHEMA, PAYLOAD_COLUMNS, TOKEN_COLUMNS
from llm_trace_pipeline.trace.context import read_agent_tags, read_billing_context, read_names
from llm_trace_pipeline.trace.fast_responses import read_response
from llm_trace_pipeline.trace.hashes import octets
from llm_trace_pipeline.trace.payloads import KEEP_ALL, PayloadPolicy
from llm_trace_pipeline.trace.prices import PACKAGED, PRICED_BY, PriceBook
from llm_trace_pipeline.trace.responses import ResponseReading
from llm_trace_pipeline.trace.tally import Tally, tally_of
from llm_trace_pipeline.trace.usage import tokens_in

MAX_MESSAGE_LENGTH = 1_000  # code points of an error message that are kept

_NO_RESPONSE = ResponseReading()
_NOT_SENT = ResponseReading(is_readable=False)
_STEP_TOKENS = tuple(f"step_{name}" for name in TOKEN_COLUMNS)
_COPIED = ("id", "organization_id", "project_id", "agent_id", "run_id", "step_id", "trace_id")

_Reading = TypeVar("_Reading")


def transform(
    source: pa.RecordBatch,
    billing: BillingMatcher,
    payloads: PayloadPolicy = KEEP_ALL,
    prices: PriceBook = PACKAGED,
) -> tuple[pa.RecordBatch, Tally]:
    """Turn rows of ``sql/operational/traces.sql`` into rows of ``llm_traces``, and count them.

    Usage, errors and sizes are those of the whole payloads, whatever the policy keeps.

    Returns:
        A batch of ``ARROW_SCHEMA`` with a row for every row of the source, in its order, and the
        tally of the batch.
    """
    texts = {
        name: source.column(name).fill_null("")
        for name in source.schema.names
        if pa.types.is_string(source.schema.field(name).type)
    }
    requests, responses = (octets(texts[name]) for name in PAYLOAD_COLUMNS)
    readings = _read_responses(source, responses)
    configs = _read_distinct(read_names, texts["llm_config"])
    models = [
        config.model or (read_names(request).model if request else "") or reading.model
        for config, request, reading in zip(configs, requests, readings, strict=True)
    ]
    provider = _or_else([config.provider for config in configs], texts["step_provider"])
    category = _or_else(
        [config.provider_category for config in configs], texts["step_provider_category"]
    )
    has_no_config = pc.is_in(texts["llm_config"], pa.array(["", "null"]))
    sizes = [pc.binary_length(texts[name]).cast(pa.uint64()) for name in PAYLOAD_COLUMNS]
    kept = {name: payloads.kept(texts[name]) for name in PAYLOAD_COLUMNS}
    if not payloads.keeps_all:
        requests, responses = (octets(text) for text in kept.values())
    pairs = zip(requests, responses, strict=True)
    messages = payloads.redacted(pa.array([each.error_message for each in readings], pa.string()))

    columns: dict[str, pa.Array] = {
        **{name: texts[name] for name in _COPIED},
        "agent_tags": pa.array(
            _read_distinct(read_agent_tags, texts["agent_tags"]), pa.list_(pa.string())
        ),
        "call_type": _or_else(texts["call_type"], "unknown"),
        "provider": _or_else(provider, "unknown"),
        "model": _or_else(models, texts["step_model"]),
        "is_byok": pc.equal(category, "byok").cast(pa.uint8()),
        "request_size_bytes": sizes[0],
        "response_size_bytes": sizes[1],
        **{
            name: pa.array([reading[position] for reading in readings], pa.uint64())
            for position, name in enumerate(TOKEN_COLUMNS)
        },
        "latency_ms": source.column("latency_ms").cast(pa.uint64()),
        "is_error": pa.array([reading.is_error for reading in readings]).cast(pa.uint8()),
        "error_type": pa.array([reading.error_type for reading in readings], pa.string()),
        "error_message": pc.utf8_slice_codeunits(messages, 0, MAX_MESSAGE_LENGTH),
        **kept,
        "llm_config_json": pc.if_else(has_no_config, "{}", texts["llm_config"]),
        "created_at": source.column("created_at"),
        "payload_hash": pa.array(
            [xxh3_64_intdigest(request + response) for request, response in pairs], pa.uint64()
        ),
        **billing.match(
            texts["organization_id"],
            source.column("created_at"),
            _read_distinct(read_billing_context, texts["billing_context"]),
        ),
    }
    columns |= prices.costs(pa.record_batch({name: columns[name] for name in PRICED_BY}))
    batch = pa.RecordBatch.from_arrays(
        [columns[name] for name in ARROW_SCHEMA.names], schema=ARROW_SCHEMA
    )
    is_unreadable = pa.array([not reading.is_readable for reading in readings], pa.bool_())
    return batch, tally_of(batch, texts["id"].filter(is_unreadable).to_pylist())


def _read_distinct(read: Callable[[bytes], _Reading], texts: pa.StringArray) -> list[_Reading]:
    """Read all texts; equal texts are read once."""
    encoded = texts.dictionary_encode()
    readings = [read(text) for text in octets(encoded.dictionary)]
    return [readings[index] for index in encoded.indices.to_pylist()]


def _or_else(texts: pa.StringArray | list[str], default: pa.StringArray | str) -> pa.StringArray:
    """Return every text, or the default where the text is ''."""
    texts = pa.array(texts, pa.string())
    return pc.if_else(pc.equal(texts, ""), default, texts)


def _read_responses(source: pa.RecordBatch, responses: list[bytes]) -> list[ResponseReading]:
    """Read every row's response, or its step where a metadata-only trace has no response."""
    readings = [read_response(text) if text else _NO_RESPONSE for text in responses]
    if pc.any(source.column("is_metadata_only")).as_py():
        takes = source.column("takes_step_usage").to_pylist()
        steps = source.select(_STEP_TOKENS).to_pylist()
        for row, (takes_step_usage, step) in enumerate(zip(takes, steps, strict=True)):
            if takes_step_usage:
                readings[row] = _read_step(*step.values())
    for row in pc.indices_nonzero(source.column("is_too_wide")).to_pylist():
        readings[row] = _NOT_SENT
    return readings


def _read_step(*counts: int | None) -> ResponseReading:
    """Read the counts of a step, in the order of ``TOKEN_COLUMNS``.

    A step's columns mean the same as OpenAI's usage object, so that one set of rules reads both.
    """
    prompt, completion, total, cached, written, reasoning = counts
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": total,
        "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
    return ResponseReading(*tokens_in([{"usage": usage}]))
