"""The settings that every statement carries, whatever the profile of its user says.

A decision is taken from what ClickHouse answers: is this hour there, is it whole, which partitions
hold it. A profile that was made for people can change these answers without an error, and a load
would then repair what is not broken. So every setting that can change an answer, or what a
statement leaves behind, is set by us, on every statement of a connection.

A limit is left as the profile has it, but it may only end a statement by an error.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from clickhouse_connect.driver.client import Client

from llm_trace_pipeline.errors import ClickHouseError
from llm_trace_pipeline.sql import read_sql

_THROW = "throw"


@dataclass(frozen=True)
class Pins:
    """Settings that are set for one reason."""

    reason: str
    values: MappingProxyType[str, int | str]


def _pins(reason: str, **values: int | str) -> Pins:
    return Pins(reason, MappingProxyType(values))


# The question which settings there are carries these: its answer may be cut too.
_WHOLE_ANSWERS = (
    _pins(
        "A limit that is reached is an error: `break` would count the rows that were read so far.",
        read_overflow_mode=_THROW,
        read_overflow_mode_leaf=_THROW,
        result_overflow_mode=_THROW,
        timeout_overflow_mode=_THROW,
        timeout_overflow_mode_leaf=_THROW,
        group_by_overflow_mode=_THROW,
        sort_overflow_mode=_THROW,
        distinct_overflow_mode=_THROW,
        set_overflow_mode=_THROW,
        join_overflow_mode=_THROW,
        transfer_overflow_mode=_THROW,
    ),
    _pins(
        "An answer has all its rows, and is not that of a moment ago.",
        limit=0,
        offset=0,
        additional_table_filters="{}",
        additional_result_filter="",
        use_query_cache=0,
    ),
)
PINS = (
    *_WHOLE_ANSWERS,
    _pins(
        "No replica, shard, part or sample of a table is left out.",
        partial_result_on_first_cancel=0,
        parallel_replicas_count=0,
        parallel_replica_offset=0,
        enable_parallel_replicas=0,
        skip_unavailable_shards=0,
        ignore_cold_parts_seconds=0,
    ),
    _pins(
        "Rows are read as they are stored: none is folded away, none comes back that was deleted.",
        final=0,
        apply_deleted_mask=1,
        apply_patch_parts=1,
        apply_mutations_on_fly=0,
    ),
    _pins(
        "An expression means what it says: what nothing adds up to is 0, and a name in it is the "
        "column's.",
        empty_result_for_aggregation_by_empty_set=0,
        empty_result_for_aggregation_by_constant_keys_on_empty_set=1,
        aggregate_functions_null_for_empty=0,
        count_distinct_implementation="uniqExact",
        distributed_group_by_no_merge=0,
        group_by_use_nulls=0,
        join_use_nulls=0,
        transform_null_in=0,
        cast_keep_nullable=0,
        prefer_column_name_to_alias=0,
        decimal_check_overflow=1,
        session_timezone="",
    ),
    _pins(
        "A table is made as its definition says, and takes what a batch holds.",
        data_type_default_nullable=0,
        insert_null_as_default=1,
        input_format_null_as_default=1,
        input_format_parquet_allow_missing_columns=1,
        s3_ignore_file_doesnt_exist=0,
        engine_file_empty_if_not_exists=0,
        max_partitions_per_insert_block=0,
    ),
    _pins(
        "A table can be made like one that is there, whatever its owner allowed himself.",
        allow_suspicious_codecs=1,
        allow_suspicious_fixed_string_types=1,
        allow_suspicious_indices=1,
        allow_suspicious_low_cardinality_types=1,
        allow_suspicious_primary_key=1,
        allow_suspicious_ttl_expressions=1,
        allow_suspicious_types_in_order_by=1,
        allow_suspicious_variant_types=1,
    ),
    _pins(
        "Rows are there when the insert ends, and none is taken for a repetition of another.",
        async_insert=0,
        deduplicate_insert="disable",
        deduplicate_insert_select="disable",
        insert_deduplicate=0,
    ),
    _pins(
        "What changes a table has happened, on all its replicas, when the statement ends; and a "
        "DELETE leaves no patch behind, with which a partition cannot be moved.",
        alter_sync=2,
        mutations_sync=2,
        lightweight_deletes_sync=2,
        lightweight_delete_mode="alter_update",
    ),
)

# On a statement that drops or replaces what a load itself has made, or what a retention is to drop.
# The server's limits guard against a slip of the hand, and would stop a load at a day of 50 GB.
OF_ANY_SIZE: Final = {"max_partition_size_to_drop": 0, "max_table_size_to_drop": 0}

# Where replicas share storage behind one address, every statement may reach another one.
SHARED_PINS = (
    _pins(
        "A statement sees what the statements before it did, whichever replica answers; an ALTER "
        "too, which moves the parts that its replica knows.",
        select_sequential_consistency=1,
        shared_merge_tree_sync_parts_on_partition_operations=1,
    ),
    _pins(
        "A table that was made, renamed or dropped is so on every replica that is awake. One that "
        "sleeps is not waited for.",
        database_replicated_enforce_synchronous_settings=1,
        distributed_ddl_output_mode="none_only_active",
        distributed_ddl_task_timeout=180,
        alter_sync=3,
        mutations_sync=3,
        lightweight_deletes_sync=3,
    ),
)


def pin(client: Client, pins: tuple[Pins, ...]) -> None:
    """Set some settings for every statement of a connection, as far as its engine has them.

    Nothing is set for a user with ``readonly = 1``, who may change neither settings nor tables.

    Raises:
        ClickHouseError: a profile holds one of the settings at another value.
    """
    wanted = dict(_settings(pins))
    found = client.query(
        read_sql("clickhouse/settings.sql"),
        parameters={"names": ["readonly", *wanted]},
        settings=dict(_settings(_WHOLE_ANSWERS)),
    )
    known = {name: (value, is_fixed) for name, value, is_fixed in found.result_rows}
    if known["readonly"][0] == "1":
        return
    held = ", ".join(
        f"{name} = {value}"
        for name, (value, is_fixed) in known.items()
        if is_fixed and name in wanted and value != str(wanted[name])
    )
    if held:
        raise ClickHouseError(
            f"ClickHouse: the profile of the user holds {held} fixed, which can change what a "
            "load reads or writes",
            "take the constraint from the profile of CLICKHOUSE_USERNAME, or give that user a "
            "profile without it",
        )
    for name, value in wanted.items():
        if name in known and not known[name][1]:
            client.set_client_setting(name, value)


def _settings(pins: tuple[Pins, ...]) -> Iterator[tuple[str, Any]]:
    for each in pins:
        yield from each.values.items()
