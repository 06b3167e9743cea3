"""Settings that statements carry, and row policies: what was made for people changes no load."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import clickhouse_connect
import pytest

from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.clickhouse.cluster import loader_of
from llm_trace_pipeline.clickhouse.pins import PINS
from llm_trace_pipeline.errors import ClickHouseError
from llm_trace_pipeline.hours import HOUR
from llm_trace_pipeline.sql import quote_text, render
from llm_trace_pipeline.upkeep.preflight_target import check_target
from llm_trace_pipeline.upkeep.retention import apply_retention
from tests.harness.rows import DAY, MIDNIGHT, TABLE
from tests.harness.warehouse import Warehouse

Values = Mapping[str, Any]

# Values that a profile may have, other than the pinned ones. The engine refuses a cache of answers
# that may be cut, so that there are two profiles.
BREAKING: Values = dict.fromkeys(
    (
        *("read_overflow_mode", "read_overflow_mode_leaf", "result_overflow_mode"),
        *("timeout_overflow_mode", "timeout_overflow_mode_leaf", "group_by_overflow_mode"),
        *("sort_overflow_mode", "distinct_overflow_mode", "set_overflow_mode"),
        *("join_overflow_mode", "transfer_overflow_mode"),
    ),
    "break",
)
OTHER: Values = {
    "limit": 1,
    "offset": 1,
    "additional_table_filters": "{'llm_traces': '0', 'default.llm_traces': '0'}",
    "additional_result_filter": "0",
    "partial_result_on_first_cancel": 1,
    "parallel_replicas_count": 2,
    "parallel_replica_offset": 1,
    "enable_parallel_replicas": 1,
    "skip_unavailable_shards": 1,
    "ignore_cold_parts_seconds": 3600,
    "final": 1,
    "apply_deleted_mask": 0,
    "apply_patch_parts": 0,
    "apply_mutations_on_fly": 1,
    "use_query_cache": 1,
    "query_cache_system_table_handling": "save",
    "empty_result_for_aggregation_by_empty_set": 1,
    "empty_result_for_aggregation_by_constant_keys_on_empty_set": 0,
    "aggregate_functions_null_for_empty": 1,
    "count_distinct_implementation": "uniqHLL12",
    "distributed_group_by_no_merge": 1,
    "group_by_use_nulls": 1,
    "join_use_nulls": 1,
    "transform_null_in": 1,
    "cast_keep_nullable": 1,
    "prefer_column_name_to_alias": 1,
    "decimal_check_overflow": 0,
    "session_timezone": "Australia/Lord_Howe",
    "data_type_default_nullable": 1,
    "insert_null_as_default": 0,
    "input_format_null_as_default": 0,
    "input_format_parquet_allow_missing_columns": 0,
    "s3_ignore_file_doesnt_exist": 1,
    "engine_file_empty_if_not_exists": 1,
    "max_partitions_per_insert_block": 1,
    "allow_suspicious_codecs": 0,
    "allow_suspicious_fixed_string_types": 0,
    "allow_suspicious_indices": 0,
    "allow_suspicious_low_cardinality_types": 0,
    "allow_suspicious_primary_key": 0,
    "allow_suspicious_ttl_expressions": 0,
    "allow_suspicious_types_in_order_by": 0,
    "allow_suspicious_variant_types": 0,
    "async_insert": 1,
    "deduplicate_insert": "enable",
    "deduplicate_insert_select": "force_enable",
    "insert_deduplicate": 1,
    "alter_sync": 0,
    "mutations_sync": 0,
    "lightweight_deletes_sync": 0,
    "lightweight_delete_mode": "lightweight_update_force",
}

# Limits that a load reaches, and what the engine then says.
LIMITS = {
    "max_rows_to_read": (10, "TOO_MANY_ROWS"),
    "max_result_rows": (1, "TOO_MANY_ROWS_OR_BYTES"),
}
_USERS = """
<clickhouse>
  <users>
    <default>
      <password></password>
      <networks><ip>::/0</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
      <databases>{policies}</databases>
    </default>
  </users>
  <profiles><default>{profile}</default></profiles>
  <quotas><default/></quotas>
</clickhouse>
"""


@contextmanager
def user_of(
    warehouse: Warehouse,
    values: Values = MappingProxyType({}),
    *,
    profile: str = "",
    policies: str = "",
) -> Iterator[None]:
    """Be a user with other values of settings, and a profile and row policies as XML."""
    folder = warehouse.settings.state_dir
    users, config = folder / "users.xml", folder / "config.xml"
    users.write_text(_USERS.format(profile=profile, policies=policies), encoding="utf-8")
    config.write_text(f"<clickhouse><users_config>{users}</users_config></clickhouse>")
    original = clickhouse_connect.get_client

    def configured(**arguments: Any) -> Any:
        client = original(**{**arguments, "path": f"{arguments['path']}?config-file={config}"})
        if values:  # not by the profile: the driver's own first questions would fail
            assigned = (f"{name} = {quote_text(str(value))}" for name, value in values.items())
            client.command(f"SET {', '.join(assigned)}")
        return client

    warehouse.close()
    with ExitStack() as until_closed:
        until_closed.callback(warehouse.reopen)
        with patch.object(clickhouse_connect, "get_client", configured):
            yield
            warehouse.close()


def policy_of(table: str, condition: str) -> str:
    return f"<default><{table}><filter>{condition}</filter></{table}></default>"


@pytest.fixture
def day(warehouse: Warehouse) -> Warehouse:
    """Two hours of a day, in one part."""
    warehouse.load(MIDNIGHT, 30)
    warehouse.load(MIDNIGHT + HOUR, 30)
    warehouse.merge(MIDNIGHT)
    return warehouse


def test_every_pinned_setting_has_another_value_here() -> None:
    pinned = {name for each in PINS for name in each.values}
    assert pinned == {*BREAKING, *OTHER} - {"query_cache_system_table_handling"}


@pytest.mark.parametrize("values", [BREAKING, OTHER], ids=["that cut answers", "of other values"])
def test_under_any_profile_every_statement_carries_every_pin(
    warehouse: Warehouse, values: Values
) -> None:
    pinned = {name: str(value) for each in PINS for name, value in each.values.items()}
    with user_of(warehouse, values), connect(warehouse.settings) as database:
        found = database.rows(
            "SELECT name, value FROM system.settings WHERE name IN {names:Array(String)}",
            {"names": list(pinned)},
        )
    assert {row["name"]: row["value"] for row in found} == pinned


def test_a_profile_of_other_values_changes_no_load(day: Warehouse) -> None:
    with user_of(day, OTHER):
        day.reopen()
        day.load(MIDNIGHT, 20, 2)
        day.load(MIDNIGHT + 2 * HOUR, 10)
        day.load(MIDNIGHT + HOUR, 0, 2)
        day.load(MIDNIGHT + 24 * HOUR, 10)
        assert check_target(day.settings) == []
    day.check()


def test_an_hour_may_have_more_partitions_than_a_profile_allows_an_insert(
    warehouse: Warehouse,
) -> None:
    make = render("clickhouse/llm_traces.sql", table=TABLE, engine="MergeTree")
    warehouse.database.execute(make.replace("toDate(created_at)", "organization_id"))
    with user_of(warehouse, {"max_partitions_per_insert_block": 1}):
        warehouse.reopen()
        warehouse.load(MIDNIGHT, 6)  # of three organizations
    warehouse.check()


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_of_a_profile_ends_a_load_by_an_error(day: Warehouse, limit: str) -> None:
    value, said = LIMITS[limit]
    manifest = day.publish(MIDNIGHT, 20, 2)
    with (
        user_of(day, {**BREAKING, limit: value}),
        pytest.raises(ClickHouseError, match=rf"\({said}\).*; raise that limit"),
        connect(day.settings) as database,
    ):
        loader_of(database, day.store).load([manifest.hour])
    day.load_batch(manifest)
    day.check()


def test_a_setting_that_a_profile_holds_fixed_is_named(warehouse: Warehouse) -> None:
    fixed = "<final>1</final><constraints><final><const/></final></constraints>"
    with (
        user_of(warehouse, profile=fixed),
        pytest.raises(ClickHouseError, match="profile of the user holds final = 1 fixed"),
        connect(warehouse.settings),
    ):
        pass
    with user_of(warehouse, profile=fixed.replace("1", "0", 1)), connect(warehouse.settings):
        pass


def test_a_row_policy_is_refused_before_anything_changes(day: Warehouse) -> None:
    before = day.rows()
    manifest = day.publish(MIDNIGHT, 20, 2)
    with user_of(day, policies=policy_of(TABLE, "prompt_tokens = 0")):
        day.reopen()
        for _ in range(2):
            with pytest.raises(ClickHouseError, match="only the rows where prompt_tokens = 0"):
                day.load_batch(manifest)
        [problem] = check_target(day.settings)
        assert problem.is_fatal
        assert "SHOW ROW POLICIES ON `default`.`llm_traces`" in problem.repair
    assert day.rows() == before
    day.load_batch(manifest)
    day.check()


@pytest.mark.parametrize("table", [TABLE, f"{TABLE}__staging"])
def test_a_row_policy_of_an_empty_table_lets_in_no_row_twice(
    warehouse: Warehouse, table: str
) -> None:
    manifest = warehouse.publish(MIDNIGHT, 20)
    with user_of(warehouse, policies=policy_of(table, "0")):
        warehouse.reopen()
        with pytest.raises(ClickHouseError, match=f"the user of .*{table}. only the rows where 0"):
            warehouse.load_batch(manifest)
    assert len(warehouse.rows()) in (0, 20)
    warehouse.load_batch(manifest)
    warehouse.check()


def test_a_policy_that_shows_all_rows_is_none(day: Warehouse) -> None:
    with user_of(day, policies=policy_of(TABLE, "prompt_tokens = 0 OR 1")):
        day.reopen()
        day.load(MIDNIGHT, 20, 2)
    day.check()


def test_a_limit_of_what_may_be_dropped_stops_no_load_nor_retention(day: Warehouse) -> None:
    smallest = {"max_partition_size_to_drop": 1, "max_table_size_to_drop": 1}
    with user_of(day, smallest):
        day.reopen()
        day.load(MIDNIGHT, 20, 2)
        day.load(MIDNIGHT + HOUR, 0, 2)
        day.check()
        with pytest.raises(ClickHouseError, match=r"Reason: 1\. Size .* is greater than max_"):
            day.database.execute(f"DROP TABLE {TABLE}")
        settings = day.settings.model_copy(update={"retention_days": 1})
        dropped = apply_retention(day.database, day.store, settings, MIDNIGHT + 9 * DAY)
        assert len(dropped.partitions) == 1
    assert day.rows() == []
