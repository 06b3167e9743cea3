"""The transformation: rows of the operational database become rows of ``llm_traces``."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Generic, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest

from llm_trace_pipeline.trace.billing import BillingMatcher
from llm_trace_pipeline.trace.columns import ARROW_SCHEMA, PAYLOAD_COLUMNS, TOKEN_COLUMNS
from llm_trace_pipeline.trace.context import (
    Names,
    read_agent_tags,
    read_billing_context,
    read_names,
)
from llm_trace_pipeline.trace.details import STANDARD, details_of_text, text_of_details
from llm_trace_pipeline.trace.hashes import octets
from llm_trace_pipeline.trace.payloads import KEEP_ALL, PayloadPolicy
from llm_trace_pipeline.trace.prices import PACKAGED, PRICED_BY, PriceBook
from llm_trace_pipeline.trace.readings import (
    AskSiblings,
    Columns,
    as_columns,
    no_siblings,
    read_calls,
    reread_call,
)
from llm_trace_pipeline.trace.serving import asked_tier, served_by
from llm_trace_pipeline.trace.tally import Tally, tally_of

MAX_MESSAGE_LENGTH = 1_000  # code points of an error message that are kept

_BEDROCK = "bedrock"
_COPIED = (
    *("id", "organization_id", "project_id", "agent_id", "run_id", "step_id", "trace_id"),
    "user_id",
)

_Reading = TypeVar("_Reading")


def transform(
    source: pa.RecordBatch,
    billing: BillingMatcher,
    payloads: PayloadPolicy = KEEP_ALL,
    prices: PriceBook = PACKAGED,
    ask_siblings: AskSiblings = no_siblings,
) -> tuple[pa.RecordBatch, Tally]:
    """Turn rows of ``sql/operational/traces.sql`` into rows of ``llm_traces``, and count them.

    Usage, errors and sizes are those of the whole payloads, whatever the policy keeps.

    Args:
        source: the rows.
        billing: the billing details of organizations.
        payloads: which text is kept.
        prices: what calls cost.
        ask_siblings: returns all traces of some steps; it is asked about steps that know the tokens
            which the response of their trace lacks.

    Returns:
        A batch of ``ARROW_SCHEMA`` with a row for every row of the source, in its order, and the
        tally of the batch.
    """
    texts = {
        name: column.fill_null("") if column.null_count else column
        for name, column in zip(source.schema.names, source.columns, strict=True)
        if pa.types.is_string(column.type)
    }
    requests, responses = (octets(texts[name]) for name in PAYLOAD_COLUMNS)
    configs = _Distinct(read_names, texts["llm_config"])
    provider = _or_else(configs.column(attrgetter("provider")), texts["step_provider"])
    provider = _or_else(provider, "unknown")
    calls = read_calls(source, responses, provider.to_pylist(), ask_siblings)
    read = as_columns(calls)
    model = _or_else(
        [
            config.model or (read_names(request).model if request else "") or served
            for config, request, served in zip(configs.rows(), requests, read["model"], strict=True)
        ],
        texts["step_model"],
    )
    category = _or_else(
        configs.column(attrgetter("provider_category")), texts["step_provider_category"]
    )
    has_no_config = pc.is_in(texts["llm_config"], pa.array(["", "null"]))
    sizes = [pc.binary_length(texts[name]).cast(pa.uint64()) for name in PAYLOAD_COLUMNS]
    kept = {name: payloads.kept(texts[name]) for name in PAYLOAD_COLUMNS}
    hashed = [requests, responses]
    if not payloads.keeps_all:
        hashed = [octets(text) for text in kept.values()]
    messages = payloads.redacted(pa.array(read["error_message"], pa.string()))

    columns: dict[str, pa.Array] = {
        **{name: texts[name] for name in _COPIED},
        "agent_tags": pa.array(
            _Distinct(read_agent_tags, texts["agent_tags"]).rows(), pa.list_(pa.string())
        ),
        "call_type": _or_else(texts["call_type"], "unknown"),
        "provider": provider,
        "model": model,
        "is_byok": pc.equal(category, "byok").cast(pa.uint8()),
        "request_size_bytes": sizes[0],
        "response_size_bytes": sizes[1],
        **{name: pa.array(read[name], pa.uint64()) for name in TOKEN_COLUMNS},
        "latency_ms": source.column("latency_ms").cast(pa.uint64()),
        "is_error": pa.array(read["is_error"], pa.bool_()).cast(pa.uint8()),
        "error_type": pa.array(read["error_type"], pa.string()),
        "error_message": pc.utf8_slice_codeunits(messages, 0, MAX_MESSAGE_LENGTH),
        **kept,
        "llm_config_json": pc.if_else(has_no_config, "{}", texts["llm_config"]),
        "created_at": source.column("created_at"),
        "payload_hash": pa.array(
            [xxh3_64_intdigest(asked + said) for asked, said in zip(*hashed, strict=True)],
            pa.uint64(),
        ),
        **_added_columns(read, configs, provider, model, texts["step_model_handle"], requests),
        "stop_reason": texts["step_stop_reason"],
        **billing.match(
            texts["organization_id"],
            source.column("created_at"),
            _Distinct(read_billing_context, texts["billing_context"]).rows(),
        ),
    }
    columns |= prices.costs(pa.record_batch({name: columns[name] for name in PRICED_BY}))
    batch = pa.RecordBatch.from_arrays(
        [columns[name] for name in ARROW_SCHEMA.names], schema=ARROW_SCHEMA
    )
    is_readable = pa.array(read["is_readable"], pa.bool_())
    return batch, tally_of(batch, texts["id"].filter(pc.invert(is_readable)).to_pylist())


def with_added_columns(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, int]:
    """Fill the added columns of rows of manifest version 2 that their payloads tell.

    A response was kept whole, left out, or changed by the user's function. It is believed where it
    states the tokens that the row has.

    Returns:
        The rows, and the number of those whose response was not kept.
    """
    responses = octets(batch.column("response_json"))
    configs = _Distinct(read_names, batch.column("llm_config_json"))
    tokens = zip(*(batch.column(name).to_pylist() for name in TOKEN_COLUMNS), strict=True)
    sizes = batch.column("response_size_bytes").to_pylist()
    read = as_columns(list(map(reread_call, responses, sizes, tokens)))
    names = (batch.column("provider"), batch.column("model"), batch.column("model_handle"))
    requests = octets(batch.column("request_json"))
    added = _added_columns(read, configs, *names, requests)
    columns = [added.get(name, batch.column(name)) for name in batch.schema.names]
    not_kept = sum(size > 0 and not text for size, text in zip(sizes, responses, strict=True))
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema), not_kept


class _Distinct(Generic[_Reading]):
    """The readings of texts; equal texts are read once."""

    def __init__(self, read: Callable[[bytes], _Reading], texts: pa.StringArray) -> None:
        encoded = texts.dictionary_encode()
        self._readings = [read(text) for text in octets(encoded.dictionary)]
        self._indices = encoded.indices

    def rows(self) -> list[_Reading]:
        """Return the reading of every row's text."""
        return [self._readings[index] for index in self._indices.to_pylist()]

    def column(self, text_of: Callable[[_Reading], str]) -> pa.StringArray:
        """Return a text of every row's reading."""
        return pa.array(map(text_of, self._readings), pa.string()).take(self._indices)


def _or_else(texts: pa.StringArray | list[str], default: pa.StringArray | str) -> pa.StringArray:
    """Return every text, or the default where the text is ''."""
    texts = pa.array(texts, pa.string())
    is_missing = pc.equal(texts, "")
    return pc.if_else(is_missing, default, texts) if pc.any(is_missing).as_py() else texts


def _added_columns(
    read: Columns,
    configs: "_Distinct[Names]",
    provider: pa.StringArray,
    model: pa.StringArray,
    step_handles: pa.StringArray,
    requests: Sequence[bytes],
) -> dict[str, pa.Array]:
    """Return who served the calls, how, and how their usage is known."""
    handles = _or_else(step_handles, configs.column(attrgetter("handle")))
    servers = configs.column(lambda names: served_by(names.provider, names) if any(names) else "")
    if pc.any(pc.equal(servers, "")).as_py():  # where the configuration does not say, the step does
        of_steps = zip(provider.to_pylist(), handles.to_pylist(), strict=True)
        servers = _or_else(
            servers,
            pa.array([served_by(name, Names("", "", "", "", handle)) for name, handle in of_steps]),
        )
    tiers = pa.array(read["service_tier"], pa.string())
    is_fast = pc.and_(pc.ends_with(pc.utf8_lower(model), "-fast"), pc.equal(tiers, ""))
    if pc.any(is_fast).as_py():
        named = zip(servers.filter(is_fast), model.filter(is_fast), strict=True)
        asked = pa.array([asked_tier(*(each.as_py() for each in names)) for names in named])
        tiers = pc.replace_with_mask(tiers, is_fast, asked.cast(pa.string()))
    details = read["usage_details"]
    if pc.any(pc.equal(provider, _BEDROCK)).as_py():
        details = list(details)
        for row in pc.indices_nonzero(pc.equal(provider, _BEDROCK)).to_pylist():
            details[row] = _with_profile(details[row], requests[row], model[row].as_py())
    return {
        "served_by": servers,
        "served_model": pa.array(read["model"], pa.string()),
        "service_tier": pc.if_else(pc.equal(tiers, STANDARD), "", tiers),
        "usage_source": pa.array(read["usage_source"], pa.string()),
        "usage_details": pa.array(details, pa.string()),
        "model_handle": handles,
    }


def _with_profile(details: str, request: bytes, model: str) -> str:
    """Return the details of a Bedrock call with the inference profile that was requested.

    The profile tells the region, which has a price; the configuration may have the model alone.
    """
    profile = read_names(request).model if request else ""
    if not profile or profile == model:
        return details
    return text_of_details(details_of_text(details) | {"requested_model": profile})
