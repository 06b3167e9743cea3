"""Hours that change after they were loaded: each is found, requested once, and then exact."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetKey,
    DagsterInstance,
    DagsterRunStatus,
    RunRequest,
    SensorResult,
    build_sensor_context,
)

from llm_trace_pipeline.batches.erasures import record_erasure
from llm_trace_pipeline.batches.rules import prices_key
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.definitions import defs
from llm_trace_pipeline.defs.checks import (
    BATCH_CHECKS,
    RECONCILIATION_CHECKS,
    ROLLUP_CHECKS,
    TABLE_CHECKS,
    repair_commands,
    without_hours,
)
from llm_trace_pipeline.defs.runs import hours_of_run
from llm_trace_pipeline.defs.sensors import Asked
from llm_trace_pipeline.defs.stores import Stores
from llm_trace_pipeline.hours import HOUR, floor, key_of
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.upkeep.reconcile import (
    Reconciliation,
    read_reconciliation,
    record_reconciliation,
)
from tests.harness.backfills import backfill_of_job
from tests.harness.jobs import Jobs
from tests.harness.operational import Operational, trace
from tests.harness.rows import erasure

H0 = floor(datetime.now(UTC)) - 12 * HOUR
H1, H2, H3 = (H0 + n * HOUR for n in (1, 2, 3))
MINUTE = timedelta(minutes=1)
JOB = defs.resolve_job_def("hourly_llm_traces")
RECONCILE = defs.resolve_job_def("reconcile_hours")
SENSOR = defs.resolve_sensor_def("changed_hours_sensor")


class Deployment(Jobs):
    """A deployment whose jobs and sensor run the way the daemon runs them."""

    def __init__(
        self, operational: Operational, settings: Settings, instance: DagsterInstance
    ) -> None:
        super().__init__(settings, instance)
        self.operational = operational
        self.store = BatchStore.of(settings)
        self.cursor: str | None = None

    def reconcile(self) -> dict[str, bool]:
        """Run the job; return what its checks say of the hours."""
        result = self.run("reconcile_hours")
        assert result.success
        return {
            each.check_name: each.passed
            for each in result.get_asset_check_evaluations()
            if each.check_name != "is_written_to"
        }

    def found(self) -> Reconciliation:
        found = read_reconciliation(self.store.files)
        assert found is not None
        return found

    def requests(self) -> list[RunRequest]:
        context = build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            repository_def=defs.get_repository_def(),
            resources={"stores": Stores()},
        )
        result = SENSOR(context)
        if not isinstance(result, SensorResult):
            return []
        self.cursor = result.cursor
        return list(result.run_requests or ())

    def execute(self, request: RunRequest) -> None:
        result = self.run(
            "hourly_llm_traces",
            tags=dict(request.tags),
            run_config=dict(request.run_config),
            asset_selection=request.asset_selection and list(request.asset_selection),
        )
        assert result.success

    def repair(self) -> list[datetime]:
        """Reconcile, execute what is requested, and see that nothing is left to do."""
        self.reconcile()
        requests = self.requests()
        for request in requests:
            self.execute(request)
        assert set(self.reconcile().values()) == {True}
        assert self.requests() == []
        return sorted(hour for request in requests for hour in hours_of_run(request.tags))

    def values(self, columns: str = "id") -> list[Any]:
        """Return what ClickHouse holds: the values of one column, or a tuple of several."""
        found = [tuple(row.values()) for row in self.rows(columns)]
        return [row if len(row) > 1 else row[0] for row in found]

    def clickhouse(self, sql: str) -> None:
        with connect(self.settings) as database:
            database.execute(sql, settings={"mutations_sync": 2, "lightweight_deletes_sync": 2})


@pytest.fixture
def deployment(operational: Operational, settings: Settings) -> Iterator[Deployment]:
    operational.insert(
        "steps",
        {"id": "step-1", "provider_name": "p", "model": "m", "project_id": "before"},
    )
    operational.insert("step_metrics", {"id": "step-1", "llm_request_ns": 1_000_000})
    operational.insert("provider_traces", *(trace(H0 + n * HOUR, id=f"h{n}") for n in range(4)))
    operational.insert("provider_traces", trace(H1 + MINUTE, id="stepped", step_id="step-1"))
    with DagsterInstance.ephemeral() as instance:
        deployment = Deployment(operational, settings, instance)
        assert deployment.load(H0, H3).success
        yield deployment


ALL = ["h0", "h1", "stepped", "h2", "h3"]
UPDATE = "UPDATE provider_traces SET"
CHANGES = {
    "a row committed late": (
        (
            f"INSERT INTO provider_traces (id, organization_id, created_at, updated_at) "
            f"VALUES ('late', 'org-1', '{H1 + 2 * MINUTE}', '{H1 + 2 * MINUTE}')"
        ),
        {H1: {"drifted"}},
        ("id", ["h0", "h1", "stepped", "late", "h2", "h3"]),
    ),
    "updated_at moved": (
        f"{UPDATE} call_type = 'x', updated_at = now() WHERE id = 'h1'",
        {H1: {"drifted"}},
        ("call_type", ["unknown", "x", "unknown", "unknown", "unknown"]),
    ),
    "a column changed alone": (
        f"{UPDATE} run_id = 'run-x' WHERE id = 'h2'",
        {H2: {"drifted"}},
        ("run_id", ["", "", "", "run-x", ""]),
    ),
    "a soft delete": (
        f"{UPDATE} is_deleted = true WHERE id = 'h1'",
        {H1: {"drifted"}},
        ("id", ["h0", "stepped", "h2", "h3"]),
    ),
    "created_at moved to another hour": (
        f"{UPDATE} created_at = '{H3 + MINUTE}' WHERE id = 'h0'",
        {H0: {"drifted"}, H3: {"drifted"}},
        ("id", ["h1", "stepped", "h2", "h3", "h0"]),
    ),
    "a changed step": (
        "UPDATE steps SET project_id = 'after'",
        {H1: {"drifted"}},
        ("project_id", ["", "", "after", "", ""]),
    ),
    "a changed step metric": (
        "UPDATE step_metrics SET llm_request_ns = 7000000",
        {H1: {"drifted"}},
        ("latency_ms", [0, 0, 7, 0, 0]),
    ),
    "an hour never loaded": (
        (
            f"INSERT INTO provider_traces (id, organization_id, created_at) "
            f"VALUES ('new', 'org-1', '{H3 + 2 * HOUR}')"
        ),
        {H3 + 2 * HOUR: {"drifted"}},
        ("id", [*ALL, "new"]),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_source_is_found_and_loaded(deployment: Deployment, change: str) -> None:
    sql, expected, (column, values) = CHANGES[change]
    deployment.operational.execute(sql)
    checks = deployment.reconcile()
    found = deployment.found()
    assert set(found.drifted) == set(expected)
    assert found.stale == found.damaged == found.pruned == ()
    assert checks == {
        "source_matches_batches": False,
        "source_keeps_loaded_traces": True,
        "clickhouse_matches_batches": True,
    }
    assert set(expected) <= set(deployment.repair())
    assert deployment.values(column) == values


def test_nothing_differs_and_nothing_is_requested(deployment: Deployment) -> None:
    assert set(deployment.reconcile().values()) == {True}
    assert deployment.found().loaded == (H0, H1, H2, H3)
    assert deployment.requests() == []


def test_a_reconciliation_is_acted_on_once_also_after_a_restart(deployment: Deployment) -> None:
    deployment.operational.execute(f"{UPDATE} run_id = 'x' WHERE id IN ('h0', 'h2')")
    deployment.reconcile()
    (request,) = deployment.requests()
    assert hours_of_run(request.tags) == [H0, H1, H2]  # the unchanged one between costs nothing
    assert deployment.requests() == []
    before = deployment.store.manifest(H1)
    deployment.execute(request)
    assert deployment.store.manifest(H1) == before
    assert deployment.found().id in str(deployment.cursor)


def test_an_hour_that_a_load_did_not_help_is_not_requested_again(deployment: Deployment) -> None:
    deployment.operational.execute(f"{UPDATE} run_id = 'x' WHERE id IN ('h0', 'h2')")
    for requested in (1, 0):
        assert deployment.reconcile()["source_matches_batches"] is False
        assert len(deployment.requests()) == requested  # which nobody executes
    deployment.operational.execute(f"{UPDATE} run_id = 'y' WHERE id = 'h2'")
    deployment.reconcile()
    (request,) = deployment.requests()
    assert hours_of_run(request.tags) == [H2]


def test_a_hopeless_hour_is_requested_again_some_hours_later() -> None:
    found = Reconciliation(id="1", at=H0, drifted=(H1,), differences={H1: ("a",)})
    asked = Asked().and_now(found, found)
    assert asked.in_vain(found) == {H1}
    assert asked.in_vain(found.model_copy(update={"at": H0 + 5 * HOUR})) == {H1}
    assert asked.in_vain(found.model_copy(update={"at": H0 + 7 * HOUR})) == set()
    assert asked.in_vain(found.model_copy(update={"differences": {H1: ("b",)}})) == set()
    assert asked.in_vain(found.model_copy(update={"drifted": ()})) == set()


def test_a_damaged_manifest_keeps_no_other_hour_from_being_compared_or_loaded(
    deployment: Deployment,
) -> None:
    folder = Path(deployment.settings.trace_batch_uri) / f"llm_traces/{H1:%Y-%m-%d}/{H1:%H}"
    text = (folder / "_manifest.json").read_bytes()
    (folder / "_manifest.json").write_bytes(text[:100])
    deployment.operational.execute(f"{UPDATE} run_id = 'x' WHERE id = 'h2'")
    assert deployment.reconcile()["source_matches_batches"] is False
    assert deployment.found().unreadable == (H1,)
    (request,) = deployment.requests()
    assert hours_of_run(request.tags) == [H2]
    deployment.execute(request)
    assert deployment.values("run_id") == ["", "", "", "x", ""]
    (folder / "_manifest.json").write_bytes(text)
    assert set(deployment.reconcile().values()) == {True}


def test_traces_that_are_gone_are_reported_and_kept(deployment: Deployment) -> None:
    deployment.operational.execute("DELETE FROM provider_traces WHERE id IN ('h0', 'h2')")
    deployment.operational.insert("provider_traces", trace(H2 + MINUTE, id="new in h2"))
    for _ in range(2):
        checks = deployment.reconcile()
        assert checks == {
            "source_matches_batches": True,
            "source_keeps_loaded_traces": False,
            "clickhouse_matches_batches": True,
        }
        assert deployment.found().pruned == (H0, H2)
        assert deployment.requests() == []
    assert deployment.values() == ALL


def test_a_pruned_hour_is_repaired_from_its_batch_alone(deployment: Deployment) -> None:
    deployment.operational.execute(f"DELETE FROM provider_traces WHERE created_at < '{H1}'")
    deployment.clickhouse("DELETE FROM llm_traces WHERE id = 'h0'")
    deployment.reconcile()
    (request,) = deployment.requests()
    assert hours_of_run(request.tags) == [H0]
    assert request.asset_selection == [AssetKey("llm_traces"), AssetKey("llm_usage_hourly")]
    deployment.execute(request)
    assert deployment.values() == ALL


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM llm_traces WHERE id = 'h2'",
        "INSERT INTO llm_traces SELECT * FROM llm_traces WHERE id = 'h2'",
        "ALTER TABLE llm_traces UPDATE error_type = 'x' WHERE id = 'h2'",
        f"DELETE FROM llm_usage_hourly WHERE hour = fromUnixTimestamp({int(H2.timestamp())})",
    ],
    ids=lambda sql: sql.split()[0],
)
def test_damage_to_clickhouse_is_found_and_repaired(deployment: Deployment, damage: str) -> None:
    exact = deployment.values("*")
    deployment.clickhouse(damage)
    assert deployment.reconcile()["clickhouse_matches_batches"] is False
    assert deployment.found().damaged == (H2,)
    assert repair_commands(deployment.found()) == [
        f"make restore FROM={key_of(H2)} TO={key_of(H2)}"
    ]
    assert deployment.repair() == [H2]
    assert deployment.values("*") == exact


def test_a_missing_table_is_made_anew(deployment: Deployment) -> None:
    exact = deployment.values("*")
    deployment.clickhouse("DROP TABLE llm_traces SYNC")
    assert deployment.repair() == [H0, H1, H2, H3]
    assert deployment.values("*") == exact


def test_a_plan_is_attached_as_it_is_known_from_basic_to_max_to_restated(
    deployment: Deployment,
) -> None:
    def bill(plan: str, valid_from: datetime) -> None:
        deployment.operational.execute("DELETE FROM organization_billing_details")
        deployment.operational.insert(
            "organization_billing_details",
            {"organization_id": "org-1", "plan_type": plan, "updated_at": valid_from},
        )

    def plans() -> dict[str, str]:
        return dict(deployment.values("id, billing_plan_type"))

    assert set(plans().values()) == {""}
    bill("basic", H0 - timedelta(days=30))  # arrives late
    assert deployment.repair() == [H0, H1, H2, H3]
    assert set(plans().values()) == {"basic"}
    bill("max", H1 + MINUTE / 2)  # between the two calls of the hour
    deployment.reconcile()
    assert deployment.found().stale == (H1, H2, H3)
    (request,) = deployment.requests()
    assert request.run_config == {"ops": {"trace_batches": {"config": {"enrich_only": True}}}}
    deployment.execute(request)
    mid_hour = {"h0": "basic", "h1": "basic", "stepped": "max", "h2": "max", "h3": "max"}
    assert plans() == mid_hour
    bill("restated", H0 - timedelta(days=7))
    assert deployment.repair() == [H0, H1]
    assert plans() == mid_hour | {"h0": "restated", "h1": "restated"}


def test_a_plan_restated_for_long_ago_is_attached_there_too(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_TRACES_RECONCILE_DAYS", "1")
    old, older = H0 - timedelta(days=20), H0 - timedelta(days=21)
    deployment.operational.insert("provider_traces", trace(old, id="old"), trace(older, id="older"))
    for hour in (old, older):
        deployment.load(hour, hour)
    assert set(deployment.reconcile().values()) == {True}
    deployment.operational.insert(
        "organization_billing_details",
        {"organization_id": "org-1", "plan_type": "max", "updated_at": old - MINUTE},
    )
    deployment.reconcile()
    assert deployment.found().stale == (older, old, H0, H1, H2, H3)
    # Until it is done, also where no further version comes.
    deployment.reconcile()
    assert deployment.found().stale == (older, old, H0, H1, H2, H3)
    requests = deployment.requests()
    deployment.operational.execute("DROP TABLE provider_traces")  # which nothing of this reads
    for request in requests:
        deployment.execute(request)
    assert set(deployment.values("billing_plan_type")) == {"max"}


def test_an_old_hour_is_watched_until_clickhouse_follows_its_batch(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_TRACES_RECONCILE_DAYS", "1")
    old = H0 - timedelta(days=20)
    deployment.operational.insert("provider_traces", trace(old, id="old"))
    assert deployment.load(old, old).success
    deployment.operational.insert(
        "organization_billing_details",
        {"organization_id": "org-1", "plan_type": "max", "updated_at": old - MINUTE},
    )
    assert deployment.repair()  # all but the old hour's load, which fails as on a dead server
    deployment.clickhouse("ALTER TABLE llm_traces UPDATE billing_plan_type = '' WHERE id = 'old'")
    found = deployment.found().model_copy(update={"restated": (old,)})
    record_reconciliation(deployment.store.files, found)
    deployment.reconcile()
    assert (deployment.found().damaged, deployment.found().restated) == ((old,), (old,))
    assert deployment.repair() == [old]
    assert deployment.found().restated == ()
    assert set(deployment.values("billing_plan_type")) == {"max"}


def test_a_new_price_file_is_kept_and_reaches_every_hour(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "contract.toml"
    path.write_text(
        '[[prices]]\nprovider = "openai"\nmodel = "gpt-4o"\ninput = 1\noutput = 2\n',
        encoding="utf-8",
    )
    monkeypatch.setenv("LLM_TRACES_PRICES", str(path))
    assert deployment.repair() == [H0, H1, H2, H3]
    [version] = set(deployment.values("price_version"))
    assert set(deployment.values("cost_usd")) == {Decimal("0.00002")}
    kept = Path(deployment.settings.trace_batch_uri) / prices_key(version)
    assert kept.read_bytes() == path.read_bytes()


def test_other_prices_are_another_way_to_differ() -> None:
    """A price file that is mended within hours is not taken for one that did not help."""
    found = Reconciliation(id="1", at=H3, stale=(H0,), prices="file:1")
    asked = Asked().and_now(found, found)
    assert asked.in_vain(found) == {H0}
    assert asked.in_vain(found.model_copy(update={"prices": "file:2"})) == set()


def test_erased_rows_are_no_drift(deployment: Deployment) -> None:
    deployment.operational.insert("provider_traces", trace(H0, id="other", organization_id="org-2"))
    record_erasure(deployment.store.files, erasure("org-2", before=datetime.now(UTC)))
    assert deployment.load(H0, H3).success
    assert set(deployment.reconcile().values()) == {True}
    assert deployment.values() == ALL


def test_hours_that_are_being_loaded_are_not_requested(deployment: Deployment) -> None:
    deployment.operational.execute(f"{UPDATE} run_id = 'x'")
    deployment.reconcile()
    assert deployment.found().drifted == (H0, H1, H2, H3)
    run = deployment.instance.create_run_for_job(
        JOB, tags={"dagster/partition": key_of(H1)}, status=DagsterRunStatus.STARTED
    )
    deployment.instance.add_backfill(
        # A report's day is not its hours.
        backfill_of_job("hourly_llm_traces", [key_of(H3), f"{H0:%Y-%m-%d}"])
    )
    assert [hours_of_run(each.tags) for each in deployment.requests()] == [[H0], [H2]]
    # A run that has not ended changes its hours: nothing certain is known of them.
    deployment.reconcile()
    assert deployment.found().drifted == (H0, H2, H3)
    deployment.instance.delete_run(run.run_id)


def test_an_hours_load_does_not_compare_all_hours() -> None:
    assert {str(each) for each in JOB.asset_layer.asset_graph.asset_check_keys} == {
        str(spec.key) for spec in (*BATCH_CHECKS, *TABLE_CHECKS, *ROLLUP_CHECKS)
    }
    assert {str(each) for each in RECONCILE.asset_layer.asset_graph.asset_check_keys} == {
        str(spec.key) for spec in RECONCILIATION_CHECKS
    }


def test_hours_can_be_left_out() -> None:
    found = Reconciliation(
        id="1", at=H0, drifted=(H0, H1), loaded=(H0, H1), differences={H0: ("a",), H1: ("b",)}
    )
    left = without_hours(found, {H0})
    assert (left.drifted, left.loaded, left.differences) == ((H1,), (H1,), {H1: ("b",)})
