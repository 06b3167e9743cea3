"""Tables that somebody else made, of any layout: their hours are exact too."""

import re

import pytest

from llm_trace_pipeline.clickhouse.tables import layout_of
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.sql import render
from llm_trace_pipeline.trace.columns import ARROW_SCHEMA
from tests.harness.rows import MIDNIGHT, TABLE
from tests.harness.warehouse import Warehouse, left_over_tables

# What an owner may have allowed himself, of which the engine is wary.
WARY = (
    *("allow_suspicious_low_cardinality_types", "allow_suspicious_fixed_string_types"),
    *("allow_suspicious_codecs", "allow_suspicious_variant_types"),
)
CREATE = render("clickhouse/llm_traces.sql", table=TABLE, engine="MergeTree")
DAILY = "PARTITION BY toDate(created_at)"
SORTED = "ORDER BY (organization_id, agent_id, created_at, id)"
TIME = "DateTime64(6, 'UTC')"
INDEX = "INDEX by_id id"


@pytest.mark.parametrize(
    "ddl",
    [
        pytest.param(CREATE.replace(DAILY, by), id=name)
        for name, by in {
            "partitioned by month": "PARTITION BY toYYYYMM(created_at)",
            "partitioned by hour": "PARTITION BY toStartOfHour(created_at)",
            "not partitioned": "",
            "partitioned by nothing, in so many words": "PARTITION BY tuple()",
            "partitioned by month and organization": "PARTITION BY (toYYYYMM(created_at), "
            "organization_id)",
        }.items()
    ]
    + [
        pytest.param(CREATE.replace(TIME, "DateTime64(6, 'America/New_York')"), id="New York days"),
        pytest.param(
            CREATE.replace(TIME, "DateTime64(6, 'Asia/Kolkata')"),
            id="Indian days, where an hour spans two partitions",
        ),
        pytest.param(
            re.sub(r"CODEC.*\n *SETTINGS \(.*\)", "CODEC(ZSTD(1))", CREATE).replace(
                SORTED, "ORDER BY (organization_id, created_at, id)"
            ),
            id="sorted and packed as tables were before",
        ),
        pytest.param(CREATE.replace(SORTED, "ORDER BY tuple()"), id="not sorted"),
        pytest.param(
            CREATE.replace(SORTED, f"PRIMARY KEY organization_id {SORTED}"),
            id="with a shorter primary key",
        ),
        pytest.param(
            CREATE.replace(
                SORTED, "ORDER BY (organization_id, sipHash64(id)) SAMPLE BY sipHash64(id)"
            ),
            id="with a sampling key",
        ),
        pytest.param(
            CREATE.replace("= MergeTree", "= ReplacingMergeTree(created_at)"),
            id="ReplacingMergeTree",
        ),
        pytest.param(
            CREATE.replace(SORTED, f"{SORTED} TTL toDateTime(created_at) + INTERVAL 50 YEAR"),
            id="with a TTL",
        ),
        pytest.param(
            CREATE.rpartition("SETTINGS")[0]
            + " SETTINGS index_granularity = 16, min_bytes_for_wide_part = 0",
            id="with settings of its own",
        ),
        pytest.param(
            CREATE.replace(
                INDEX,
                "PROJECTION tokens (SELECT organization_id, sum(total_tokens) "
                f"GROUP BY organization_id), {INDEX}",
            ),
            id="with a projection",
        ),
        pytest.param(
            CREATE.replace(
                INDEX,
                "cost Float64 DEFAULT 2 * total_tokens, day Date MATERIALIZED toDate(created_at), "
                "shard LowCardinality(UInt64), digest FixedString(300), "
                "scores Variant(Int64, UInt32), ratio Float32 CODEC(LZ4, ZSTD), "
                f"tag_count UInt64 ALIAS length(agent_tags), CONSTRAINT c CHECK id != '', {INDEX}",
            ),
            id="with columns and a constraint of its own",
        ),
    ],
)
def test_a_table_of_another_layout_holds_exact_hours(warehouse: Warehouse, ddl: str) -> None:
    warehouse.database.execute(ddl, settings=dict.fromkeys(WARY, 1))
    layout = layout_of(warehouse.database, TABLE) | {"comment": ""}
    hours = [MIDNIGHT + number * HOUR for number in (17, 18, 19, 28)]
    names = ", ".join(ARROW_SCHEMA.names)

    def check() -> None:
        found = warehouse.database.rows(f"SELECT {names} FROM {TABLE} ORDER BY created_at, id")
        assert found == [row for hour in hours for row in warehouse.expected.get(hour, [])]
        assert left_over_tables(warehouse.database) == []

    for hour in hours:
        assert warehouse.load(hour, 30).repaired_hours == ()
        check()
    warehouse.database.execute(f"OPTIMIZE TABLE {TABLE} FINAL")
    for hour, rows in ((hours[1], 20), (hours[3], 10), (hours[1], 0), (hours[0], 25)):
        assert warehouse.load(hour, rows, 2).repaired_hours == ()
        check()
    assert layout_of(warehouse.database, TABLE) | {"comment": ""} == layout
    if "PROJECTION" in ddl:
        totals = warehouse.database.rows(
            f"SELECT organization_id, sum(total_tokens) AS tokens FROM {TABLE} "
            "GROUP BY organization_id ORDER BY organization_id SETTINGS "
            "optimize_use_projections = 1, force_optimize_projection_name = 'tokens'"
        )
        loaded = warehouse.rows()
        assert [total["tokens"] for total in totals] == [
            sum(row["total_tokens"] for row in loaded if row["organization_id"] == organization)
            for organization in sorted({row["organization_id"] for row in loaded})
        ]
