"""The columns of ``llm_traces``, declared once; the Arrow schema and the hashes come from here."""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Annotated, Any, NamedTuple, get_args

import pyarrow as pa
from pydantic import AwareDatetime, BaseModel, Field

SCHEMA_VERSION = 3  # of the table, in whose comment it stands; see sql/clickhouse/upgrade.sql
REPEATS = "repeats"  # few distinct values: dictionary-encoded, LowCardinality where it is a label
Label = Annotated[str, REPEATS]


class BillingContext(BaseModel):
    """Who pays for a call, as it was when the call was made; '' where unknown."""

    plan_type: Label = Field(description="Plan of the organization.")
    cost_source: Label = Field(description="What pays: 'quota' or 'credits'.")
    customer_id: Label = Field(description="Stripe customer id.")


class LLMTrace(BaseModel):
    """One LLM call. The fields are the columns of ``llm_traces``, in their order.

    ``billing`` stands for three columns, ``billing_plan_type`` and so on.
    """

    id: str = Field(description='Trace id: a uuid, without the "provider_trace-" prefix.')
    organization_id: Label = Field(description="Organization of the call.")
    project_id: Label = Field(description="Project of the step.")
    agent_id: Label = Field(description="Agent that made the call.")
    agent_tags: Annotated[list[str], REPEATS] = Field(description="Tags of the agent.")
    run_id: Label = Field(description="Run that the call was part of.")
    step_id: str = Field(description="Step that the call was part of.")
    trace_id: str = Field(description="OpenTelemetry trace id of the step.")
    call_type: Label = Field(description="Purpose of the call, or 'unknown'.")
    provider: Label = Field(description="Provider's endpoint type.")
    model: Label = Field(description="Model that was asked for.")
    is_byok: bool = Field(description="The organization brought its own key.")
    request_size_bytes: int = Field(description="Octets of the request's JSON text.")
    response_size_bytes: int = Field(description="Octets of the response's JSON text.")
    prompt_tokens: int = Field(description="All input tokens, cached and cache-written included.")
    completion_tokens: int = Field(description="All billed output tokens, reasoning included.")
    total_tokens: int = Field(description="The reported total, else prompt + completion.")
    cached_input_tokens: int | None = Field(description="Of the prompt; NULL: not reported.")
    cache_write_tokens: int | None = Field(description="Of the prompt; NULL: not reported.")
    reasoning_tokens: int | None = Field(description="Of the completion; NULL: not reported.")
    latency_ms: int = Field(description="Milliseconds from request to response; 0: not measured.")
    is_error: bool = Field(description="The call failed.")
    error_type: Label = Field(description="Kind of the error, '' if none.")
    error_message: str = Field(description="First 1,000 code points of the message.")
    request_json: str = Field(description="Raw request, '' if not kept.")
    response_json: str = Field(description="Raw response, '' if not kept.")
    llm_config_json: Label = Field(description="Configuration of the call.")
    billing: BillingContext
    created_at: AwareDatetime = Field(description="When the trace was stored, UTC, microseconds.")
    billing_match: Label = Field(
        description="Where billing came from: 'request', 'as_of', 'first_known' or 'none'."
    )
    payload_hash: int = Field(description="xxh3 of request_json followed by response_json.")
    cost_usd: Decimal | None = Field(
        description="What the call cost: input, output and all else; NULL: not known."
    )
    input_cost_usd: Decimal | None = Field(
        description="Of cost_usd, all input: uncached, cached and cache-written."
    )
    cached_input_cost_usd: Decimal | None = Field(
        description="Of input_cost_usd, what came from the cache."
    )
    cache_write_cost_usd: Decimal | None = Field(
        description="Of input_cost_usd, what was written to the cache."
    )
    output_cost_usd: Decimal | None = Field(description="Of cost_usd, all output.")
    price_version: Label = Field(
        description="Prices that the costs were computed with, '' if none."
    )
    served_by: Label = Field(description="Provider or host that served the call.")
    served_model: Label = Field(description="Model that the response states, '' if none.")
    service_tier: Label = Field(description="Tier that served the call; '': standard.")
    cost_basis: Label = Field(
        description="Whose cost it is: 'reported' by the provider, 'file', 'list', '' not known."
    )
    usage_source: Label = Field(
        description="Where the tokens came from: 'response', 'step' or 'none'."
    )
    model_handle: Label = Field(description="Handle of the model in the agent server.")
    stop_reason: Label = Field(description="Why the step ended.")
    user_id: Label = Field(description="User of the call.")
    other_cost_usd: Decimal | None = Field(
        description="Of cost_usd, what is neither: fees, and a reported cost without its parts."
    )
    price_entry: Label = Field(description="Entry of the prices that was used, '' if none.")
    usage_details: Label = Field(
        description="Whatever else decides the cost, as a JSON object; '' if nothing does."
    )


class Column(NamedTuple):
    """A column of ``llm_traces``."""

    name: str
    description: str
    arrow_type: pa.DataType
    clickhouse_type: str  # a text that repeats may be LowCardinality in the table
    is_nullable: bool
    repeats: bool


# Exact where a price for a million tokens has at most 12 decimals; few packaged prices have more.
COST_TYPE = pa.decimal128(38, 18)
EXACT_DIGITS = 76  # for arithmetic with costs; Python's 28 digits would round them

_TYPES: dict[Any, tuple[pa.DataType, str]] = {
    str: (pa.string(), "String"),
    int: (pa.uint64(), "UInt64"),
    int | None: (pa.uint64(), "Nullable(UInt64)"),
    bool: (pa.uint8(), "UInt8"),
    Decimal | None: (COST_TYPE, "Nullable(Decimal(38, 18))"),
    list[str]: (pa.list_(pa.string()), "Array(String)"),
    AwareDatetime: (pa.timestamp("us", tz="UTC"), "DateTime64(6, 'UTC')"),
}


def _columns_of(model: type[BaseModel], prefix: str = "") -> Iterator[Column]:
    for name, field in model.model_fields.items():
        if field.annotation is BillingContext:
            yield from _columns_of(BillingContext, f"{name}_")
            continue
        yield Column(
            prefix + name,
            field.description or "",
            *_TYPES[field.annotation],
            is_nullable=type(None) in get_args(field.annotation),
            repeats=REPEATS in field.metadata,
        )


COLUMNS = tuple(_columns_of(LLMTrace))
ARROW_SCHEMA = pa.schema(
    [pa.field(column.name, column.arrow_type, nullable=column.is_nullable) for column in COLUMNS]
)
PAYLOAD_COLUMNS = ("request_json", "response_json")
BILLING_COLUMNS = tuple(column.name for column in COLUMNS if column.name.startswith("billing_"))
COST_COLUMNS = tuple(column.name for column in COLUMNS if column.name.endswith("cost_usd"))
TOKEN_COLUMNS = tuple(column.name for column in COLUMNS if column.name.endswith("_tokens"))
# The last columns, which batches of manifest version 2 lack.
ADDED_COLUMNS = ARROW_SCHEMA.names[ARROW_SCHEMA.names.index("price_version") + 1 :]


def with_blanks(rows: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    """Return these columns of ``ARROW_SCHEMA``, with '' or NULL in added ones that rows lack."""
    if rows.schema.names == list(columns):
        return rows
    held = dict(zip(rows.schema.names, rows.columns, strict=True))
    fields = [ARROW_SCHEMA.field(name) for name in columns]
    for field in fields:
        if field.name in ADDED_COLUMNS and field.name not in held:
            blank = pa.scalar(None if field.nullable else "", field.type)
            held[field.name] = pa.repeat(blank, rows.num_rows)
    return pa.RecordBatch.from_arrays([held[name] for name in columns], schema=pa.schema(fields))
