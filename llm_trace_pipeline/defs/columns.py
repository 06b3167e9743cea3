"""What Dagster shows of the assets' columns: their types, and the columns that they come from.

Types and descriptions are those of the declarations; only where a column comes from is said here.
"""

import re
from collections.abc import Iterable, Mapping

import dagster as dg

from llm_trace_pipeline.clickhouse.rollup import COLUMNS as ROLLUP_COLUMNS
from llm_trace_pipeline.sql import read_sql
from llm_trace_pipeline.trace.billing import HISTORY_SCHEMA
from llm_trace_pipeline.trace.columns import BILLING_COLUMNS, COLUMNS, COST_COLUMNS, TOKEN_COLUMNS

# Columns of the operational database that a batch is made of. A column of another table than
# provider_traces has the name of its table.
_SOURCE_COLUMNS = {
    "id": ("text", 'Trace id, with the "provider_trace-" prefix.'),
    "created_at": ("timestamptz", "When the trace was stored: it decides the hour."),
    "org_id": ("text", "Organization of the call."),
    "organization_id": ("text", "Organization of the row, where org_id is empty."),
    "agent_id": ("text", "Agent that made the call."),
    "agent_tags": ("json", "Tags of the agent, a list."),
    "run_id": ("text", "Run that the call was part of."),
    "step_id": ("text", "Step that the call was part of; steps are joined by it."),
    "call_type": ("text", "Purpose of the call."),
    "user_id": ("text", "User of the call; a deployment may lack it."),
    "request_json": ("json", "Raw request."),
    "response_json": ("json", "Raw response: usage, errors and costs are read from it."),
    "llm_config": ("json", "Configuration of the call: provider, model, whose key."),
    "billing_context": ("json", "Billing of the request; a deployment may lack it."),
    "steps.project_id": ("text", "Project of the step."),
    "steps.trace_id": ("text", "OpenTelemetry trace id of the step."),
    "steps.provider_name": ("text", "Provider, where llm_config names none."),
    "steps.provider_category": ("text", "Whose key it was, where llm_config does not say."),
    "steps.model": ("text", "Model, where llm_config names none."),
    "steps.model_handle": ("text", "Handle of the model; a deployment may lack it."),
    "steps.stop_reason": ("text", "Why the step ended; a deployment may lack it."),
    "steps.error_type": ("text", "Error that the response does not state."),
    "steps.error_data": ("json", "Error that the response does not state."),
    **{
        f"steps.{name}": ("int", "Tokens of the step, where no response has them.")
        for name in TOKEN_COLUMNS
    },
    "step_metrics.llm_request_ns": ("bigint", "Nanoseconds from request to response."),
}
_HISTORY = {
    "organization_id": "Organization.",
    "plan_type": "Plan of the organization.",
    "cost_source": "What pays: 'quota' or 'credits'.",
    "customer_id": "Stripe customer id.",
    "valid_from": "From when on the version holds.",
    "seen_at": "When the version was first read.",
}
_FAILED_BY = ("response_json", "steps.error_type", "steps.error_data")
_PRICED_BY = ("llm_config", "response_json", "created_at")
# Where the columns of a batch come from that are not copied under their own name.
_FROM_SOURCE: dict[str, tuple[str, ...]] = {
    "organization_id": ("org_id", "organization_id"),
    "project_id": ("steps.project_id",),
    "trace_id": ("steps.trace_id",),
    "provider": ("llm_config", "steps.provider_name"),
    "model": ("llm_config", "request_json", "response_json", "steps.model"),
    "is_byok": ("llm_config", "steps.provider_category"),
    "request_size_bytes": ("request_json",),
    "response_size_bytes": ("response_json",),
    **{name: ("response_json", f"steps.{name}") for name in TOKEN_COLUMNS},
    "latency_ms": ("step_metrics.llm_request_ns",),
    **dict.fromkeys(("is_error", "error_type", "error_message"), _FAILED_BY),
    "llm_config_json": ("llm_config",),
    **dict.fromkeys(BILLING_COLUMNS, ("org_id", "created_at", "billing_context")),
    "payload_hash": ("request_json", "response_json"),
    **dict.fromkeys((*COST_COLUMNS, "price_version", "price_entry", "cost_basis"), _PRICED_BY),
    "served_by": ("llm_config", "steps.model_handle"),
    "served_model": ("response_json",),
    "service_tier": ("response_json", "llm_config"),
    "usage_source": ("response_json",),
    "usage_details": ("response_json", "request_json"),
    "model_handle": ("steps.model_handle", "llm_config"),
    "stop_reason": ("steps.stop_reason",),
}
_FROM_HISTORY = {
    **{f"billing_{name}": (name,) for name in ("plan_type", "cost_source", "customer_id")},
    "billing_match": ("valid_from",),
}
# Where the columns of the roll-up come from that do not add up the column of their own name.
_FROM_TABLE = {
    "hour": ("created_at",),
    "calls": ("id",),
    "errors": ("is_error",),
    "unpriced_calls": ("cost_usd",),
    "unmetered_calls": ("cost_usd", "usage_source"),
}
_ROLLUP_COLUMN = re.compile(
    r"^    (\w+) ([^\n]+?)\s+COMMENT '((?:[^'\\]|\\.)*)'", re.MULTILINE | re.DOTALL
)
_Lineage = Mapping[str, list[dg.TableColumnDep]]


def of_source() -> dict[str, object]:
    """Return the metadata of ``provider_traces``."""
    return _metadata(
        dg.TableColumn(name, kind, description, _constraints(name not in ("id", "created_at")))
        for name, (kind, description) in _SOURCE_COLUMNS.items()
    )


def of_history() -> dict[str, object]:
    """Return the metadata of ``billing_history``."""
    return _metadata(
        dg.TableColumn(
            field.name, str(field.type), _HISTORY[field.name], _constraints(field.nullable)
        )
        for field in HISTORY_SCHEMA
    )


def of_batch() -> dict[str, object]:
    """Return the metadata of ``trace_batches``."""
    lineage = {
        each.name: [
            *_deps("provider_traces", _FROM_SOURCE.get(each.name, (each.name,))),
            *_deps("billing_history", _FROM_HISTORY.get(each.name, ())),
        ]
        for each in COLUMNS
    }
    return _metadata(_columns(str(each.arrow_type) for each in COLUMNS), lineage)


def of_table() -> dict[str, object]:
    """Return the metadata of ``llm_traces``."""
    return _metadata(
        _columns(each.clickhouse_type for each in COLUMNS),
        {each.name: _deps("trace_batches", [each.name]) for each in COLUMNS},
    )


def of_rollup() -> dict[str, object]:
    """Return the metadata of ``llm_usage_hourly``."""
    declared = _ROLLUP_COLUMN.findall(read_sql("clickhouse/llm_usage_hourly.sql"))
    columns = (
        dg.TableColumn(name, kind, text.replace("\\'", "'"), _constraints(is_nullable=False))
        for name, kind, text in declared
    )
    lineage = {name: _deps("llm_traces", _FROM_TABLE.get(name, (name,))) for name in ROLLUP_COLUMNS}
    return _metadata(columns, lineage)


def _deps(asset: str, columns: Iterable[str]) -> list[dg.TableColumnDep]:
    return [dg.TableColumnDep(dg.AssetKey(asset), column) for column in columns]


def _columns(types: Iterable[str]) -> list[dg.TableColumn]:
    """Return the columns of a trace, as one of the stores names their types."""
    return [
        dg.TableColumn(each.name, kind, each.description, _constraints(each.is_nullable))
        for each, kind in zip(COLUMNS, types, strict=True)
    ]


def _constraints(is_nullable: bool) -> dg.TableColumnConstraints:
    return dg.TableColumnConstraints(nullable=is_nullable)


def _metadata(
    columns: Iterable[dg.TableColumn], lineage: _Lineage | None = None
) -> dict[str, object]:
    metadata: dict[str, object] = {"dagster/column_schema": dg.TableSchema(list(columns))}
    if lineage:
        metadata["dagster/column_lineage"] = dg.TableColumnLineage(lineage)
    return metadata
