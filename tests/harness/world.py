"""A real deployment to which the events of a random history happen, beside its model."""

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

from adbc_driver_postgresql import dbapi
from dagster import AssetKey

from llm_trace_pipeline.batches import erasures, history, store
from llm_trace_pipeline.batches.enrich import enrich_hour
from llm_trace_pipeline.batches.erasures import record_erasure
from llm_trace_pipeline.batches.extract import extract_hour
from llm_trace_pipeline.batches.history import capture_billing, read_history
from llm_trace_pipeline.batches.parts import PartWriter
from llm_trace_pipeline.batches.rules import Rules
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import Database, connect
from llm_trace_pipeline.clickhouse.cluster import loader_of
from llm_trace_pipeline.clickhouse.rollup import roll_up
from llm_trace_pipeline.defs.runs import LLM_TRACES, LLM_USAGE_HOURLY, TRACE_BATCHES, hours_of_run
from llm_trace_pipeline.defs.sensors import requests_for
from llm_trace_pipeline.errors import SourceError
from llm_trace_pipeline.hours import floor
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.source.postgres import Source
from llm_trace_pipeline.source.session import Session
from llm_trace_pipeline.upkeep.erase import remove_from_batches, remove_from_clickhouse
from llm_trace_pipeline.upkeep.reconcile import Reconciliation, reconcile
from tests.harness.bucket import Folder
from tests.harness.model import COLUMNS, HOURS, MOMENTS, Erased, Event, Model, Rows, Trace
from tests.harness.rows import TABLE, erasure
from tests.harness.statements import Stopped, stopping_after
from tests.harness.warehouse import drop_database, environment_of, make_database

ORGANIZATIONS = ("org-1", "org-2")
AGENTS = ("agent-1", "agent-2")
PLANS = ("free", "pro", "team")
# A run is stopped after one of these: something else is on disk then.
STOPPED_CALLS = (
    (Database, "execute"),
    (Database, "rows"),
    (PartWriter, "write"),
    (PartWriter, "_close_part"),
    *((module, "switch_manifest") for module in (store, history, erasures)),
    *((module, "remove_litter") for module in (store, history, erasures)),
)
CALLS = 35  # a run makes about so many of them


class KeptSource(Source):
    """A source that keeps its connection: opening one costs more than reading a few rows."""

    def __init__(self, connection: dbapi.Connection) -> None:
        super().__init__("", connections=1)
        self._kept = connection

    @contextmanager
    def session(self) -> Iterator[Session]:
        session = Session(self._kept)
        session.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            session.run("SET LOCAL TimeZone = 'UTC'")
            yield session
        finally:
            session.run("ROLLBACK")


class World:
    """A deployment, and the model of it, to which the same events happen."""

    def __init__(self, url: str, folder: Path) -> None:
        self._opened = ExitStack()
        self._engine = ExitStack()
        self._opened.enter_context(patch("os.fsync"))  # no power fails during a test
        reading, writing = (
            self._opened.enter_context(dbapi.connect(url, autocommit=True)) for _ in range(2)
        )
        self._source = KeptSource(reading)
        self._cursor = self._opened.enter_context(writing.cursor())
        self.folder = folder
        self._settings = Settings.from_environment(environment_of(folder))
        make_database(self._settings)
        self._database = self._engine.enter_context(connect(self._settings))

    def close(self) -> None:
        self._engine.close()
        self._opened.close()
        drop_database(self._settings)

    def reset(self) -> None:
        """Begin anew, without anything."""
        self._write(
            "TRUNCATE provider_traces, provider_trace_metadata, steps, organization_billing_details"
        )
        shutil.rmtree(self._settings.trace_batch_uri, ignore_errors=True)
        self._drop_tables()
        self._store = BatchStore.of(self._settings)
        self._loader = loader_of(self._database, self._store)
        self.model = Model()
        self._last_hour = HOURS[0]
        self._found_last: Reconciliation | None = None
        self._made = 0

    def _drop_tables(self) -> None:
        for table in self._tables():
            self._database.execute(f"DROP TABLE {table} SYNC")

    def _tables(self) -> list[str]:
        found = self._database.rows(
            "SELECT name FROM system.tables WHERE database = {database:String}",
            {"database": self._database.name},
        )
        return [table["name"] for table in found]

    def _write(self, sql: str) -> None:
        self._cursor.adbc_statement.set_sql_query(sql)
        self._cursor.adbc_statement.execute_update()

    # Events

    def happen(self, event: Event) -> None:
        """Let an event happen to both, then compare."""
        handlers: dict[str, Callable[[int, int, int], object]] = {
            "insert": self._insert,
            "late insert": self._insert_late,
            "update": self._update,
            "soft delete": self._soft_delete,
            "delete": self._delete,
            "move": self._move,
            "plan change": self._change_plan,
            "load hour": self._load_hour,
            "load range": self._load_range,
            "kill": self._kill,
            "re-run": self._run_again,
            "reconcile": self._reconcile,
            "sensor tick": self._tick,
            "prune": self._prune,
            "restore": self._restore,
            "erase": self._erase,
            "enrich": self._enrich,
            "accept loss": self._accept_loss,
            "meddle": self._meddle,
        }
        handlers[event.kind](event.a, event.b, event.c)
        self._compare()

    def _insert(self, a: int, b: int, c: int) -> None:
        for each in range(1 + c % 3):
            self._insert_into(HOURS[a % len(HOURS)], b + each * 7)

    def _insert_late(self, a: int, b: int, c: int) -> None:
        loaded = sorted(self.model.batches) or HOURS
        self._insert_into(loaded[a % len(loaded)], b + c)

    def _insert_into(self, hour: datetime, b: int) -> None:
        self._made += 1
        at = hour + MOMENTS[b % 4]
        trace = Trace(
            number=self._made,
            organization=ORGANIZATIONS[b // 4 % 2],
            agent=AGENTS[b // 8 % 2],
            created_at=at,
            step_created_at=at,
            is_metadata_only=b // 16 % 5 == 0,
            has_own_billing=b // 16 % 5 == 1,
        )
        self.model.traces[trace.number] = trace
        self.model.steps[trace.number] = at
        self._store_trace(trace)

    def _store_trace(self, trace: Trace) -> None:
        """Write a trace and its step, whatever was there."""
        table = "provider_trace_metadata" if trace.is_metadata_only else "provider_traces"
        values = {
            "id": f"provider_trace-{trace.id}",
            "organization_id": trace.organization,
            "agent_id": trace.agent,
            "step_id": f"step-{trace.number}",
            "created_at": trace.created_at.isoformat(),
            "updated_at": datetime.now(UTC).isoformat(),
            "is_deleted": str(trace.is_deleted),
        }
        if not trace.is_metadata_only:
            values |= {"request_json": trace.request, "response_json": trace.response}
            if trace.has_own_billing:
                values["billing_context"] = (
                    '{"plan_type": "own", "cost_source": "credits", "customer_id": "cus_own"}'
                )
        step = {
            "id": f"step-{trace.number}",
            "project_id": trace.project,
            "prompt_tokens": str(trace.prompt_tokens),
            "completion_tokens": "3",
            "total_tokens": str(trace.prompt_tokens + 3),
            "created_at": trace.step_created_at.isoformat(),
        }
        self._write(
            f"DELETE FROM {table} WHERE id = '{values['id']}'; "
            f"DELETE FROM steps WHERE id = '{step['id']}'; "
            f"{_insert_sql(table, values)}; {_insert_sql('steps', step)}"
        )

    def _any(self, a: int) -> int | None:
        """Return one of the stored traces."""
        numbers = sorted(self.model.traces)
        return numbers[a % len(numbers)] if numbers else None

    def _change(self, number: int | None, **values: object) -> None:
        if number is not None:
            self._store_trace(self.model.change(number, **values))

    def _update(self, a: int, _b: int, _c: int) -> None:
        if (number := self._any(a)) is not None:
            self._change(number, version=self.model.traces[number].version + 1)

    def _soft_delete(self, a: int, b: int, _c: int) -> None:
        self._change(self._any(a), is_deleted=b % 4 > 0)

    def _move(self, a: int, b: int, c: int) -> None:
        self._change(self._any(a), created_at=HOURS[b % len(HOURS)] + MOMENTS[c % 4])

    def _delete(self, a: int, _b: int, _c: int) -> None:
        if (number := self._any(a)) is not None:
            del self.model.traces[number]
            for table in ("provider_traces", "provider_trace_metadata"):
                self._write(f"DELETE FROM {table} WHERE id = 'provider_trace-trace-{number}'")

    def _prune(self, a: int, _b: int, _c: int) -> None:
        boundary = HOURS[a % len(HOURS)]
        for number, trace in list(self.model.traces.items()):
            if trace.created_at < boundary and not trace.is_metadata_only:
                del self.model.traces[number]
        self._write(f"DELETE FROM provider_traces WHERE created_at < '{boundary}'")

    def _change_plan(self, a: int, b: int, c: int) -> None:
        organization, plan = ORGANIZATIONS[a % 2], PLANS[a // 2 % 3]
        since = HOURS[b % len(HOURS)] + MOMENTS[c % 4]
        replaced = [
            key
            for key in self.model.plans
            # Every other deployment keeps only the current version.
            if key == (organization, since) or (c // 4 % 2 and key[0] == organization)
        ]
        for key in replaced:
            del self.model.plans[key]
            self._write(
                f"DELETE FROM organization_billing_details WHERE organization_id = '{key[0]}' "
                f"AND updated_at = '{key[1]}'"
            )
        self.model.plans[organization, since] = plan
        values = {
            "organization_id": organization,
            "plan_type": plan,
            "cost_source": "quota",
            "stripe_customer_id": f"cus_{plan}",
            "updated_at": since.isoformat(),
        }
        self._write(_insert_sql("organization_billing_details", values))

    def _load_hour(self, a: int, b: int, _c: int) -> None:
        self._extract_and_load([HOURS[a % len(HOURS)]], only_changed=b % 3 == 0)

    def _accept_loss(self, a: int, _b: int, _c: int) -> None:
        self._extract_and_load([HOURS[a % len(HOURS)]], accept_loss=True)

    def _load_range(self, a: int, b: int, c: int) -> None:
        first, last = sorted((a % len(HOURS), b % len(HOURS)))
        self._extract_and_load(HOURS[first : last + 1], only_changed=c % 2 == 0)

    def _run_again(self, _a: int, b: int, _c: int) -> None:
        self._extract_and_load([self._last_hour], only_changed=b % 2 == 0)

    def _extract_and_load(
        self, hours: Sequence[datetime], *, only_changed: bool = False, accept_loss: bool = False
    ) -> None:
        """Do what a run does; refused hours are left out of its second step."""
        self._last_hour = hours[-1]
        history = capture_billing(self._source, self._store.files).history
        self.model.capture()
        made = []
        for hour in hours:
            refused = not accept_loss and self.model.refuses(hour)
            try:
                manifest = extract_hour(
                    self._source,
                    self._store,
                    Rules(history),
                    hour,
                    only_changed=only_changed,
                    accept_loss=accept_loss,
                )
            except SourceError:
                if not refused:
                    raise
                continue
            assert not refused, f"{hour} was not refused"
            assert manifest.is_complete
            self.model.extract(hour, accept_loss=accept_loss)
            made.append(hour)
        self._load_in_groups(made)

    def _load_in_groups(self, hours: Sequence[datetime]) -> None:
        """Load hours as a run does, of which the first ones are small enough to go in together."""
        for first, last in ((0, 3), (3, len(hours))):
            if group := hours[first:last]:
                self._load(group, frozenset(hours[last:]))

    def _load(self, hours: Sequence[datetime], awaiting: frozenset[datetime] = frozenset()) -> None:
        results = self._loader.load(hours, awaiting)
        assert [each.differences for each in results] == [()] * len(hours)
        for hour in hours:
            self.model.load(hour, awaiting.union(hours))

    def _kill(self, a: int, b: int, c: int) -> None:
        """Stop a run at some point; what it had published and begun stays."""
        hour = HOURS[a % len(HOURS)]
        self._last_hour = hour
        before = self._batch_id(hour)
        is_loading = False
        try:
            with stopping_after(1 + b % CALLS, to=STOPPED_CALLS):
                history = capture_billing(self._source, self._store.files).history
                extract_hour(self._source, self._store, Rules(history), hour)
                is_loading = True
                [result] = self._loader.load([hour])
                assert result.differences == ()
        except SourceError:
            self.model.capture()
            if not self.model.refuses(hour):
                raise
        except Stopped:
            # Either wholly or not at all: the history, then the batch.
            if read_history(self._store.files).num_rows == len(
                self.model.history | self.model.plans
            ):
                self.model.capture()
            if is_loading or self._batch_id(hour) != before:
                assert self.model.extract(hour)
            if is_loading:
                self.model.load_cut(hour)
            if c % 4 == 0:
                self._reopen()
        else:
            self.model.capture()
            assert self.model.extract(hour)
            self.model.load(hour)

    def _batch_id(self, hour: datetime) -> str | None:
        manifest = self._store.manifest(hour)
        return manifest.batch_id if manifest else None

    def _reopen(self) -> None:
        """Start the engine again, as the next process would."""
        self._engine.close()
        self._database = self._engine.enter_context(connect(self._settings))
        self._loader = loader_of(self._database, self._store)

    def _restore(self, a: int, _b: int, _c: int) -> None:
        """Lose ClickHouse; load every batch."""
        self._drop_tables()
        self.model.table = {hour: {()} for hour in HOURS}
        hours = self._store.hours()
        assert hours == sorted(self.model.batches)
        random.Random(a).shuffle(hours)  # noqa: S311 -- test data
        for position, hour in enumerate(hours):
            self._load([hour], frozenset(hours[position + 1 :]))

    def _enrich(self, a: int, _b: int, _c: int) -> None:
        if hours := sorted(self.model.batches):
            hour = hours[a % len(hours)]
            enrich_hour(self._store, Rules(read_history(self._store.files)), hour)
            self.model.enrich(hour)
            self._load([hour])

    def _meddle(self, a: int, b: int, _c: int) -> None:
        """Change an hour in ClickHouse past the pipeline: double its rows, or delete them."""
        hours = sorted(self.model.batches)
        if not hours or TABLE not in self._tables():
            return
        hour = hours[a % len(hours)]
        found = self._found(hour)
        condition = f"toStartOfHour(created_at) = toDateTime('{hour:%Y-%m-%d %H:%M:%S}', 'UTC')"
        if b % 2:
            self._database.execute(f"INSERT INTO {TABLE} SELECT * FROM {TABLE} WHERE {condition}")
            found = tuple(sorted(found * 2))
        else:
            self._database.execute(f"DELETE FROM {TABLE} WHERE {condition}")
            found = ()
        self.model.table[hour] |= {found}

    def _erase(self, a: int, b: int, c: int) -> None:
        organization, agent = ORGANIZATIONS[a % 2], (*AGENTS, None)[a // 2 % 3]
        before = HOURS[b % len(HOURS)] + MOMENTS[c % 4]
        self.model.erase(Erased(organization, agent, before))
        erased = erasure(organization, before, agent)
        record_erasure(self._store.files, erased)
        remove_from_batches(self._store, erased)
        remove_from_clickhouse(self._database, self._store, erased)

    def _reconcile(self, _a: int = 0, _b: int = 0, _c: int = 0) -> None:
        """Compare all stores; a tick of the sensor may come much later."""

        @contextmanager
        def open_database() -> Iterator[Database]:
            yield self._database

        history = capture_billing(self._source, self._store.files).history
        self.model.capture()
        self._found_last = reconcile(
            self._source, self._store, open_database, HOURS, Rules(history)
        )

    def _tick(self, _a: int = 0, _b: int = 0, _c: int = 0) -> bool:
        """Do what the sensor requests; return whether it requested anything."""
        if self._found_last is None:
            return False
        requests = requests_for(self._found_last, ())
        for request in requests:
            hours = hours_of_run(request.tags)
            config = request.run_config.get("ops", {}).get(TRACE_BATCHES, {}).get("config", {})
            if config == {"only_changed": True}:
                self._extract_and_load(hours, only_changed=True)
                roll_up(self._database, self._store, hours)
                continue
            if config == {"enrich_only": True}:
                for hour in hours:
                    enrich_hour(self._store, Rules(read_history(self._store.files)), hour)
                    self.model.enrich(hour)
            else:
                assert request.asset_selection == [AssetKey(LLM_TRACES), AssetKey(LLM_USAGE_HOURLY)]
            self._load_in_groups(hours)
            roll_up(self._database, self._store, hours)
        self._found_last = None
        return bool(requests)

    # At rest

    def come_to_rest(self) -> None:
        """Compare and repair until nothing differs, then compare everything, exactly."""
        expected = self.model.at_rest()
        for _ in range(3):
            self._reconcile()
            if not self._tick():
                break
        else:
            raise AssertionError("the sensor does not stop requesting hours")
        self._compare()
        assert {hour: self._found(hour) for hour in HOURS} == expected
        assert self.model.batches.keys() == set(self._store.hours())
        views = ("llm_usage_daily", "llm_usage_monthly")
        assert set(self._tables()) <= {TABLE, LLM_USAGE_HOURLY, *views}
        root = Path(self._settings.trace_batch_uri)
        for hour in self._store.begun_hours():
            with self._store.writing(hour):  # whatever a cut write left goes with the next one
                manifest = self._store.manifest(hour)
            folder = root / "llm_traces" / f"{hour:%Y-%m-%d}" / f"{hour:%H}"
            assert {path.name for path in folder.glob("*.parquet")} == (
                {part.name for part in manifest.parts} if manifest else set()
            )
        assert len(Folder(str(root)).keys("billing_history")) == 2 * bool(self.model.history)

    # Comparing

    def _found(self, hour: datetime) -> Rows:
        return self._all_found().get(hour, ())

    def _all_found(self) -> dict[datetime, Rows]:
        if TABLE not in self._tables():
            return {}
        rows = self._database.rows(f"SELECT {', '.join(COLUMNS)} FROM {TABLE}")
        found: dict[datetime, list[Any]] = {}
        for row in rows:
            hour = floor(row["created_at"])
            found.setdefault(hour, []).append(tuple(row.values()))
        return {hour: tuple(sorted(each)) for hour, each in found.items()}

    def _compare(self) -> None:
        """See what a reader sees: of each hour one of the states that it may be in."""
        found = self._all_found()
        assert set(found) <= set(HOURS)
        for hour, states in self.model.table.items():
            assert found.get(hour, ()) in states, f"{hour:%d %H}: {found.get(hour)} not in {states}"
        if set(self._tables()) <= {TABLE}:  # no journal that could bring the other state back
            self.model.table = {hour: {found.get(hour, ())} for hour in HOURS}


def _insert_sql(table: str, values: dict[str, str]) -> str:
    texts = ", ".join(f"'{value}'" for value in values.values())
    return f"INSERT INTO {table} ({', '.join(values)}) VALUES ({texts})"
