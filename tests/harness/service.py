"""A service of shared storage before the embedded engine: what ClickHouse Cloud does, imitated.

Several replicas stand behind one address, and statements are handed round robin. All of them are
the one engine, which is made to look like this:

- A replica that did not make the last change of a table answers as before that change, unless the
  statement asks for sequential consistency; an ALTER then moves the parts of before. So that there
  is something to answer, a table is copied (hard links) before it is changed.
- A table that was made or renamed is unknown to the other replicas once, unless the statement asked
  to be synchronous.
- MergeTree is shown as SharedMergeTree, on a storage policy of the service's own, in a database of
  the engine Shared; system.processes shows the statements of this replica, that is of no other
  request; system.parts is refused, since it tells of one replica alone, but for that of all.
- ``s3()`` with a role is read without it; a role of the name ``refused`` is refused.

Faults are those of ``tests/harness/http_engine.py``. What this does not imitate is said in
docs/clickhouse-cloud.md.
"""

import re
import sys
from contextlib import closing
from itertools import count
from threading import RLock

from tests.harness.http_engine import EngineError, Request, Server, main, open_engine

REPLICAS = 3
STORAGE_POLICY = "s3WithKeeperDisk"
REFUSED_ROLE = "arn:aws:iam::123456789012:role/refused"

_BEHIND = "`replicas_behind`"  # the database of what tables held before their last change
_NAME = r"(?:`[^`]+`|\w+)(?:\.(?:`[^`]+`|\w+))?"
_WRITE = re.compile(rf"(?:INSERT INTO|ALTER TABLE|DELETE FROM)\s+({_NAME})")
_DEFINES = re.compile(r"ALTER TABLE \S+\s+(?:ADD|MODIFY|DROP) (?:COLUMN|COMMENT|SETTING)")
_DDL = re.compile(rf"(?:CREATE TABLE(?: IF NOT EXISTS)?|DROP TABLE(?: IF EXISTS)?)\s+({_NAME})")
_RENAME = re.compile(rf"RENAME TABLE ({_NAME}) TO ({_NAME})")
_DROP_DATABASE = re.compile(r"DROP DATABASE IF EXISTS `([^`]+)`")
_READ_PART = re.compile(r"(?s)(?:(?<=^)|\b)(?:SELECT|EXPLAIN|WITH)\b.*|(?<= )FROM \S+$")
_SHOWN = {
    "system.tables": "(SELECT * REPLACE ("
    "if(engine LIKE '%MergeTree', concat('Shared', engine), engine) AS engine, "
    "replaceRegexpOne(engine_full, '^(\\\\w*MergeTree)', "
    "'Shared\\\\1(\\'/clickhouse/tables/{{uuid}}/{{shard}}\\', \\'{{replica}}\\')') "
    "AS engine_full, "
    f"if(storage_policy = '', '', '{STORAGE_POLICY}') AS storage_policy) FROM system.tables)",
    "system.table_engines": "(SELECT concat('Shared', name) AS name FROM system.table_engines)",
    "system.databases": "(SELECT * REPLACE ('Shared' AS engine) FROM system.databases)",
    "clusterAllReplicas('default', system.processes)": "(SELECT * FROM system.processes)",
    "system.processes": "(SELECT * FROM system.processes WHERE 0)",
}
_SHARED_ENGINE = re.compile(r"\bShared(\w*MergeTree)\('[^)]*'\)")
_CREDENTIALS = re.compile(r", extra_credentials\(role_arn = '([^']*)'\)")


class Service(Server):
    """The front, its replicas, and what the replicas have not seen yet."""

    def __init__(self, address: tuple[str, int], path: str, users: dict[str, str]) -> None:
        super().__init__(address, path, users)
        self._turns = count()
        self._changing = RLock()
        self._behind: dict[str, tuple[str, int]] = {}  # tables: a copy of before, and who changed
        self._unknown: dict[str, int] = {}  # tables that only this replica knows
        self._query_engine(f"CREATE DATABASE IF NOT EXISTS {_BEHIND}")

    def execute(self, request: Request) -> tuple[bytes, dict[str, str]]:
        """Execute a statement on the replica whose turn it is."""
        replica = next(self._turns) % REPLICAS
        bare = re.sub(r"(?m)^--.*\n?", "", request.sql).strip()
        if re.search(r"FROM system\.parts\b", bare):
            raise EngineError("Code: 36. DB::Exception: system.parts is of one replica alone")
        self._refuse_unknown(bare, replica)
        is_current = request.settings.get("select_sequential_consistency") == "1"
        request.sql = _as_shown(request.sql, replica)
        if not is_current:
            request.sql = self._as_before(request.sql, bare, request.database or "", replica)
        table = _full(found[1], request.database) if (found := _WRITE.match(bare)) else ""
        if not table:
            answer = super().execute(request)
            self._note_definition(bare, request, replica)
            return answer
        with self._changing:
            if _DEFINES.match(bare):
                self._forget(table)
            else:
                self._keep(table, replica)
            return super().execute(request)

    def _refuse_unknown(self, bare: str, replica: int) -> None:
        for table, knows in list(self._unknown.items()):
            if table in bare and replica != knows and not bare.startswith("DROP TABLE IF EXISTS"):
                del self._unknown[table]
                raise EngineError(f"Code: 60. DB::Exception: Table {table} does not exist")

    def _as_before(self, sql: str, bare: str, database: str, replica: int) -> str:
        """Return a statement that reads the tables as they were before others changed them."""
        if not (reads := _READ_PART.search(bare)):
            return sql
        part = reads[0]
        for table, (copy, changed_by) in self._behind.items():
            if changed_by != replica:
                own = table.removeprefix(f"`{database}`.")
                short = rf"|(?<=FROM ){re.escape(own.strip('`'))}\b" if own != table else ""
                part = re.sub(re.escape(table) + short, copy.replace("\\", r"\\"), part)
        return sql.replace(reads[0], part)

    def _keep(self, table: str, replica: int) -> None:
        """Copy a table before a replica changes it."""
        copy = f"{_BEHIND}.`{table.replace('`', '')}`"
        self._query_engine(f"DROP TABLE IF EXISTS {copy} SYNC")
        self._query_engine(f"CREATE TABLE {copy} AS {table}")
        partitions = self._query_engine(f"SELECT DISTINCT _partition_id FROM {table}")
        for partition in partitions.split():
            moved = f"ATTACH PARTITION ID '{partition}' FROM {table}"
            self._query_engine(f"ALTER TABLE {copy} {moved}")
        self._behind[table] = copy, replica

    def _forget(self, table: str) -> None:
        if known := self._behind.pop(table, None):
            self._query_engine(f"DROP TABLE IF EXISTS {known[0]} SYNC")

    def _note_definition(self, bare: str, request: Request, replica: int) -> None:
        """Forget what tables held that are no more, and who does not know those that are new."""
        if found := _DROP_DATABASE.match(bare):
            for table in [name for name in self._behind if name.startswith(f"`{found[1]}`.")]:
                self._forget(table)
        found = _RENAME.match(bare) or _DDL.match(bare)
        names = found.groups() if found else ()
        for name in names:
            table = _full(name, request.database)
            self._forget(table)
            self._unknown.pop(table, None)
            is_made = bare.startswith(("CREATE", "RENAME")) and name == names[-1]
            if (
                is_made
                and "database_replicated_enforce_synchronous_settings" not in request.settings
            ):
                self._unknown[table] = replica

    def _query_engine(self, sql: str) -> str:
        with closing(open_engine(self.path)) as connection:
            try:
                return str(connection.query(sql, "TabSeparated"))
            except RuntimeError as error:
                raise EngineError(str(error)) from None


def _as_shown(sql: str, replica: int) -> str:
    """Return a statement that is answered as a service would answer it."""
    role = _CREDENTIALS.search(sql)
    if role and role[1] == REFUSED_ROLE:
        raise EngineError(
            "Code: 499. DB::Exception: Access Denied: is not authorized to perform: "
            f"sts:AssumeRole on resource: {role[1]}. (S3_ERROR)"
        )
    sql = _CREDENTIALS.sub("", sql).replace("hostName()", f"'replica-{replica}'")
    sql = _SHARED_ENGINE.sub(r"\1", sql)
    sql = sql.replace("clusterAllReplicas('default', system.parts)", "system.parts")
    for name, shown in _SHOWN.items():
        if f"FROM {name}" in sql:
            return sql.replace(f"FROM {name}", f"FROM {shown.format()}")
    return sql


def _full(name: str, database: str | None) -> str:
    """Return the quoted name of a table with its database."""
    parts = [part.strip("`") for part in re.findall(r"`[^`]+`|\w+", name)]
    if len(parts) == 1:
        parts.insert(0, database or "default")
    return ".".join(f"`{part}`" for part in parts)


if __name__ == "__main__":
    main(sys.argv[1:], Service)
