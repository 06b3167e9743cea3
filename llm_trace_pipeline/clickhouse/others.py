"""What others order to be changed in a table: mutations, and lightweight updates.

A swap takes a partition as it was when it was cloned. What changes rows after that would be undone,
while the server counts it as done.
"""

import time

from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.clickhouse.errors import STATEMENT_SECONDS
from llm_trace_pipeline.errors import ClickHouseError, TransientClickHouseError
from llm_trace_pipeline.sql import quote_text, read_sql, render

_PARTS = "system.parts"
# On shared storage a replica may not know yet what another one wrote.
_ALL_PARTS = "clusterAllReplicas('default', system.parts)"
_APPLY_PATCHES = "APPLY PATCHES IN PARTITION ID"


def wait_for_mutations(database: Database, table: str, partition: str) -> None:
    """Wait until no mutation of somebody has parts of a partition still to change.

    A swap in between would undo it: the parts that it puts in place count as changed already.

    Raises:
        ClickHouseError: a mutation fails, or runs for longer than a statement may.
    """
    deadline = time.monotonic() + STATEMENT_SECONDS
    statement = read_sql("clickhouse/unfinished_mutations.sql")
    of_partition = {"database": database.name, "table": table, "partition": partition}
    while running := database.rows(statement, of_partition):
        reason = next(filter(None, (each["latest_fail_reason"] for each in running)), "")
        if reason or time.monotonic() > deadline:
            ids = ", ".join(f"'{each['mutation_id']}'" for each in running)
            raise ClickHouseError(
                f"partition {partition} of {table} has a mutation that is not done"
                + (f", which fails: {reason}" if reason else ""),
                f"wait, or KILL MUTATION WHERE database = '{database.name}' AND table = '{table}' "
                f"AND mutation_id IN ({ids})",
            )
        time.sleep(0.2)  # nothing tells when it ends


def ordered_changes(database: Database, table: str, partition: str) -> list[str]:
    """Return the names of all changes that were ordered of a partition, as far as they are kept."""
    changes = database.rows(
        render("clickhouse/changes.sql", parts=_parts(database)),
        {"database": database.name, "table": table, "partition": partition},
    )
    return sorted(each["name"] for each in changes)


def is_changed_since(database: Database, table: str, journal: str) -> bool:
    """Whether a change of a table was ordered after the journal of a swap of it was made."""
    [since] = database.rows(
        render("clickhouse/changed_since_journal.sql", parts=_parts(database)),
        {"database": database.name, "table": table, "journal": journal},
    )
    return bool(since["changes"])


def _parts(database: Database) -> str:
    return _ALL_PARTS if database.is_shared else _PARTS


def apply_patches(database: Database, table: str, partition: str) -> None:
    """Write lightweight updates into the parts of a partition, which cannot be cloned before.

    Raises:
        ClickHouseError: the user may not, or the server cannot.
    """
    statement = f"ALTER TABLE {database.qualified(table)} {_APPLY_PATCHES}"
    try:
        database.execute(f"{statement} {{partition:String}}", {"partition": partition})
    except TransientClickHouseError:
        raise
    except ClickHouseError as error:
        raise ClickHouseError(
            f"partition {partition} of {table} has updates that are not applied: {error.message}",
            f"{statement} {quote_text(partition)} as an administrator, then load the hour again",
        ) from error
