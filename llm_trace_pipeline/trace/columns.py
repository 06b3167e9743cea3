"""The columns of ``llm_traces``, declared once; the Arrow schema and the hashes come from here."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, get_args

import pyarrow as pa
from pydantic import AwareDatetime, BaseModel, Field

SCHEMA_VERSION = 2  # of the table, in whose comment it stands; see sql/clickhouse/upgrade.sql
REPEATS = "repeats"  # few distinct values: dictionary-encoded, LowCardinality where it is a label


class BillingContext(BaseModel):
    """Who pays for a call, as it was when the call was made; '' where unknown."""

    plan_type: Annotated[str, REPEATS] = Field(description="Plan of the organization.")
    cost_source: Annotated[str, REPEATS] = Field(description="What pays: 'quota' or 'credits'.")
    customer_id: Annotated[str, REPEATS] = Field(description="Stripe customer id.")


class LLMTrace(BaseModel):
    """One LLM call. The fields are the columns of ``llm_traces``, in their order.

    ``billing`` stands for three columns, ``billing_plan_type`` and so on.
    """

    id: str = Field(description='Trace id: a uuid, without the "provider_trace-" prefix.')
    organization_id: Annotated[str, REPEATS] = Field(description="Organization of the call.")
    project_id: Annotated[str, REPEATS] = Field(description="Project of the step.")
    agent_id: Annotated[str, REPEATS] = Field(description="Agent that made the call.")
    agent_tags: Annotated[list[str], REPEATS] = Field(description="Tags of the agent.")
    run_id: Annotated[str, REPEATS] = Field(description="Run that the call was part of.")
    step_id: str = Field(description="Step that the call was part of.")
    trace_id: str = Field(description="OpenTelemetry trace id of the step.")
    call_type: Annotated[str, REPEATS] = Field(description="Purpose of the call, or 'unknown'.")
    provider: Annotated[str, REPEATS] = Field(description="Provider's endpoint type.")
    model: Annotated[str, REPEATS] = Field(description="Model that was asked for.")
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
    error_type: Annotated[str, REPEATS] = Field(description="Kind of the error, '' if none.")
    error_message: str = Field(description="First 1,000 code points of the message.")
    request_json: str = Field(description="Raw request, '' if not kept.")
    response_json: str = Field(description="Raw response, '' if not kept.")
    llm_config_json: Annotated[str, REPEATS] = Field(description="Configuration of the call.")
    billing: BillingContext
    created_at: AwareDatetime = Field(description="When the trace was stored, UTC, microseconds.")
    billing_match: Annotated[str, REPEATS] = Field(
        description="Where billing came from: 'request', 'as_of', 'first_known' or 'none'."
    )
    payload_hash: int = Field(description="xxh3 of request_json followed by response_json.")
    cost_usd: Decimal | None = Field(
        description="List price of the call: input, output and any fee; NULL: not known."
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
    price_version: Annotated[str, REPEATS] = Field(
        description="Prices that the costs were computed with, '' if none."
    )


@dataclass(frozen=True)
class Column:
    """A column of ``llm_traces``."""

    name: str
    arrow_type: pa.DataType
    description: str
    is_nullable: bool
    repeats: bool  # few distinct values

    @property
    def clickhouse_type(self) -> str:
        """ClickHouse's name of the type. There, a text that repeats may be LowCardinality."""
        bare = _CLICKHOUSE_TYPES[self.arrow_type]
        return f"Nullable({bare})" if self.is_nullable else bare


# Exact where a price for a million tokens has at most 12 decimals; few packaged prices have more.
COST_TYPE = pa.decimal128(38, 18)
EXACT_DIGITS = 76  # for arithmetic with costs; Python's 28 digits would round them

_CLICKHOUSE_TYPES = {
    pa.string(): "String",
    pa.uint64(): "UInt64",
    pa.uint8(): "UInt8",
    pa.list_(pa.string()): "Array(String)",
    pa.timestamp("us", tz="UTC"): "DateTime64(6, 'UTC')",
    COST_TYPE: "Decimal(38, 18)",
}
_ARROW_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.uint64(),
    int | None: pa.uint64(),
    bool: pa.uint8(),
    Decimal | None: COST_TYPE,
    list[str]: pa.list_(pa.string()),
    AwareDatetime: pa.timestamp("us", tz="UTC"),
}


def _columns_of(model: type[BaseModel], prefix: str = "") -> list[Column]:
    columns: list[Column] = []
    for name, field in model.model_fields.items():
        annotation: Any = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            columns += _columns_of(annotation, f"{name}_")
            continue
        columns.append(
            Column(
                name=prefix + name,
                arrow_type=_ARROW_TYPES[annotation],
                description=field.description or "",
                is_nullable=type(None) in get_args(annotation),
                repeats=REPEATS in field.metadata,
            )
        )
    return columns


COLUMNS = tuple(_columns_of(LLMTrace))
ARROW_SCHEMA = pa.schema(
    [pa.field(column.name, column.arrow_type, nullable=column.is_nullable) for column in COLUMNS]
)
PAYLOAD_COLUMNS = ("request_json", "response_json")
BILLING_COLUMNS = tuple(column.name for column in COLUMNS if column.name.startswith("billing_"))
COST_COLUMNS = tuple(column.name for column in COLUMNS if column.name.endswith("cost_usd"))
TOKEN_COLUMNS = tuple(column.name for column in COLUMNS if column.name.endswith("_tokens"))
