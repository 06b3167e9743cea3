"""The transformation: rows of the operational database become rows of ``llm_traces``."""

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
from llm_trace_pipeline.trace.usage import tokens_in

MAX_MESSAGE_LENGTH = 1_000  # code points of an error message that are kept

_NO_RESPONSE = ResponseReading()
_NOT_SENT = ResponseReading(is_readable=False)
_STEP_TOKENS = tuple(f"step_{name}" for name in TOKEN_COLUMNS)
_COPIED = ("id", "organization_id", "project_id", "agent_id", "run_id", "step_id", "trace_id")


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
    configs, llm_config_json = _read_configs(texts["llm_config"])
    models = [
        config.model or (read_request_model(request) if request else "") or reading.model
        for config, request, reading in zip(configs, requests, readings, strict=True)
    ]
    sizes = [pc.binary_length(texts[name]).cast(pa.uint64()) for name in PAYLOAD_COLUMNS]
    kept = {name: payloads.kept(texts[name]) for name in PAYLOAD_COLUMNS}
    if not payloads.keeps_all:
        requests, responses = (octets(text) for text in kept.values())

    columns: dict[str, pa.Array] = {
        **{name: texts[name] for name in _COPIED},
        "agent_tags": _agent_tags(texts["agent_tags"]),
        "call_type": _or_else(texts["call_type"], "unknown"),
        **_names(configs, models, texts),
        "request_size_bytes": sizes[0],
        "response_size_bytes": sizes[1],
        "latency_ms": source.column("latency_ms").cast(pa.uint64()),
        **_usage_and_errors(readings, payloads),
        **kept,
        "llm_config_json": llm_config_json,
        "created_at": source.column("created_at"),
        "payload_hash": pa.array(
            [
                xxh3_64_intdigest(request + response)
                for request, response in zip(requests, responses, strict=True)
            ],
            pa.uint64(),
        ),
        **_billing(source, texts, billing),
    }
    columns |= prices.costs(pa.record_batch({name: columns[name] for name in PRICED_BY}))
    batch = pa.RecordBatch.from_arrays(
        [columns[name] for name in ARROW_SCHEMA.names], schema=ARROW_SCHEMA
    )
    is_unreadable = pa.array([not reading.is_readable for reading in readings], pa.bool_())
    return batch, tally_of(batch, texts["id"].filter(is_unreadable).to_pylist())


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


def _read_configs(texts: pa.StringArray) -> tuple[list[ConfigReading], pa.StringArray]:
    """Return the configuration of every row, and the text that is kept of it.

    A distinct configuration is read once.
    """
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


def _names(
    configs: list[ConfigReading], models: list[str], texts: dict[str, pa.StringArray]
) -> dict[str, pa.Array]:
    """Return who served the call, with which model and whose key; the step says what is missing."""
    provider = pa.array([config.provider for config in configs], pa.string())
    category = pa.array([config.provider_category for config in configs], pa.string())
    category = _or_else(category, texts["step_provider_category"])
    return {
        "provider": _or_else(_or_else(provider, texts["step_provider"]), "unknown"),
        "model": _or_else(pa.array(models, pa.string()), texts["step_model"]),
        "is_byok": pc.equal(category, "byok").cast(pa.uint8()),
    }


def _or_else(texts: pa.StringArray, default: pa.StringArray | str) -> pa.StringArray:
    """Return every text, or the default where the text is ''."""
    return pc.if_else(pc.equal(texts, ""), default, texts)


def _usage_and_errors(
    readings: list[ResponseReading], payloads: PayloadPolicy
) -> dict[str, pa.Array]:
    messages = pa.array([reading.error_message for reading in readings], pa.string())
    return {
        **{
            name: pa.array([reading[position] for reading in readings], pa.uint64())
            for position, name in enumerate(TOKEN_COLUMNS)
        },
        "is_error": pa.array([reading.is_error for reading in readings]).cast(pa.uint8()),
        "error_type": pa.array([reading.error_type for reading in readings], pa.string()),
        "error_message": pc.utf8_slice_codeunits(
            payloads.redacted(messages), 0, MAX_MESSAGE_LENGTH
        ),
    }


def _billing(
    source: pa.RecordBatch, texts: dict[str, pa.StringArray], billing: BillingMatcher
) -> dict[str, pa.Array]:
    contexts = texts["billing_context"]
    requested = (
        [read_billing_context(text) if text else None for text in octets(contexts)]
        if pc.any(pc.not_equal(contexts, "")).as_py()
        else []
    )
    return billing.match(texts["organization_id"], source.column("created_at"), requested)
