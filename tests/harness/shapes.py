"""Tables of traces that somebody else made: narrower columns, other layouts."""

from dataclasses import dataclass
from datetime import timedelta

from tests.harness.rows import TABLE

COLUMNS = {
    **dict.fromkeys(("id", "organization_id", "project_id", "agent_id"), "String"),
    "agent_tags": "Array(String)",
    **dict.fromkeys(("run_id", "step_id", "trace_id"), "String"),
    **dict.fromkeys(("call_type", "provider", "model"), "LowCardinality(String)"),
    "is_byok": "UInt8",
    **dict.fromkeys(("request_size_bytes", "response_size_bytes"), "UInt64"),
    **dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), "UInt64"),
    "cached_input_tokens": "Nullable(UInt64)",
    "cache_write_tokens": "Nullable(UInt64)",
    "reasoning_tokens": "Nullable(UInt64)",
    "latency_ms": "UInt64",
    "is_error": "UInt8",
    **dict.fromkeys(("error_type", "error_message"), "String"),
    **dict.fromkeys(("request_json", "response_json", "llm_config_json"), "String"),
    **dict.fromkeys(("billing_plan_type", "billing_cost_source"), "String"),
    "billing_customer_id": "String",
    "created_at": "DateTime64(6, 'UTC')",
}
COUNTS = [name for name, kind in COLUMNS.items() if "UInt64" in kind]
NULLABLE = {
    name: {
        "String": "Nullable(String)",
        "LowCardinality(String)": "LowCardinality(Nullable(String))",
        "Array(String)": "Array(LowCardinality(Nullable(String)))",
        "UInt8": "Nullable(Bool)",
    }.get(kind, "Nullable(UInt32)")
    for name, kind in COLUMNS.items()
    if name not in ("id", "created_at")
}


@dataclass(frozen=True)
class Shape:
    """A table that somebody made."""

    types: dict[str, str]  # of the columns that are not as above
    layout: str
    others: str = ""  # columns and projections of its own
    unit: timedelta = timedelta(microseconds=1)  # of its times
    folder: str = "state"  # batches whose path is no pattern are read by the engine, others sent

    @property
    def ddl(self) -> str:
        columns = ", ".join(f"{name} {kind}" for name, kind in (COLUMNS | self.types).items())
        return f"CREATE TABLE {TABLE} ({columns}{self.others}) ENGINE = {self.layout}"


ALL_NULLABLE = "all nullable, seconds, own columns, not partitioned, descending, batches sent"
SHAPES = {
    "milliseconds in the sort key, 32-bit counts, UUIDs, by month": Shape(
        {
            **{name: COLUMNS[name].replace("64", "32") for name in COUNTS},
            "id": "UUID",
            "created_at": "DateTime64(3, 'UTC')",
        },
        "MergeTree PARTITION BY toYYYYMM(created_at) ORDER BY (organization_id, created_at, id)",
        unit=timedelta(milliseconds=1),
    ),
    ALL_NULLABLE: Shape(
        {**NULLABLE, "created_at": "DateTime"},
        "MergeTree ORDER BY (agent_id DESC, created_at) "
        "SETTINGS allow_experimental_reverse_key = 1, allow_nullable_key = 1",
        ", seen DateTime DEFAULT now(), tokens UInt64 MATERIALIZED ifNull(prompt_tokens, 0) + 1, "
        "note Nullable(String)",
        timedelta(seconds=1),
        "every * hour",
    ),
    "DateTime64(0), UUIDs or NULL, by hour, a TTL and a projection": Shape(
        {"created_at": "DateTime64(0)", "id": "Nullable(UUID)"},
        "MergeTree PARTITION BY toStartOfHour(created_at) ORDER BY (agent_id, created_at) "
        "TTL toDateTime(created_at) + INTERVAL 50 YEAR",
        ", PROJECTION tokens (SELECT organization_id, sum(total_tokens) GROUP BY organization_id)",
        timedelta(seconds=1),
    ),
    "nanoseconds, signed counts, ids of fixed length, replacing, batches sent": Shape(
        {
            **{name: COLUMNS[name].replace("UInt64", "Int32") for name in COUNTS},
            "id": "FixedString(36)",
            "created_at": "DateTime64(9, 'America/New_York')",
        },
        "ReplacingMergeTree(created_at) PARTITION BY toDate(created_at) ORDER BY id",
        folder="every [*] hour",
    ),
}
