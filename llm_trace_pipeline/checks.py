"""The asset checks: claims about an hour, each compared exactly."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dagster import AssetCheckSeverity, AssetCheckSpec

from llm_trace_pipeline.parquet import Manifest
from llm_trace_pipeline.upsert import LoadResult

TRACE_BATCHES, LLM_TRACES = "trace_batches", "llm_traces"

BATCH_CHECKS = (
    AssetCheckSpec(
        "rows_match_source",
        asset=TRACE_BATCHES,
        blocking=True,
        description="The batch has one row for every trace of the source that is not deleted.",
    ),
    AssetCheckSpec(
        "billing_is_known",
        asset=TRACE_BATCHES,
        description="Every organization with a call in this hour has billing details.",
    ),
)
TABLE_CHECKS = (
    AssetCheckSpec(
        "rows_match_batch",
        asset=LLM_TRACES,
        blocking=True,
        description="ClickHouse holds the rows of the batch: count, tokens and content.",
    ),
    AssetCheckSpec(
        "ids_are_unique",
        asset=LLM_TRACES,
        blocking=True,
        description="No id occurs twice in this hour.",
    ),
)


@dataclass(frozen=True)
class Finding:
    """The outcome of one check for one hour."""

    check: str
    passed: bool
    metadata: Mapping[str, Any]
    severity: AssetCheckSeverity = AssetCheckSeverity.ERROR


def check_batch(manifest: Manifest) -> list[Finding]:
    """Return what the checks of ``trace_batches`` say of an hour."""
    return [
        Finding(
            "rows_match_source",
            manifest.is_complete,
            {
                "source rows": manifest.expected_rows,
                "batch rows": manifest.rows,
                "distinct ids": manifest.distinct_ids,
            },
        ),
        Finding(
            "billing_is_known",
            manifest.organizations_without_billing == 0,
            {
                "organizations without billing": manifest.organizations_without_billing,
                "examples": list(manifest.organizations_without_billing_ids),
            },
            AssetCheckSeverity.WARN,
        ),
    ]


def check_load(manifest: Manifest, result: LoadResult) -> list[Finding]:
    """Return what the checks of ``llm_traces`` say of an hour."""
    return [
        Finding(
            "rows_match_batch",
            not result.differences,
            {
                "batch rows": manifest.rows,
                "ClickHouse rows": result.found.rows,
                "differences": list(result.differences),
            },
        ),
        Finding(
            "ids_are_unique",
            result.found.distinct_ids == result.found.rows,
            {"rows": result.found.rows, "distinct ids": result.found.distinct_ids},
        ),
    ]
