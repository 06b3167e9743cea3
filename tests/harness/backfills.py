"""Backfills as the UI requests them, of a job or of assets."""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import uuid4

import dagster as dg
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemotePartitionSetOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin


def backfill_of_job(
    job: str, partitions: Sequence[str], at: datetime | None = None
) -> PartitionBackfill:
    """Return a backfill that was just requested, or at some time."""
    location = ManagedGrpcPythonEnvCodeLocationOrigin(LoadableTargetOrigin(), "anywhere")
    repository = RemoteRepositoryOrigin(location, "__repository__")
    return PartitionBackfill(
        backfill_id=uuid4().hex[:8],
        status=BulkActionStatus.REQUESTED,
        from_failure=False,
        tags={},
        backfill_timestamp=(at or datetime.now(UTC)).timestamp(),
        partition_set_origin=RemotePartitionSetOrigin(
            repository_origin=repository, partition_set_name=f"{job}_partition_set"
        ),
        partition_names=list(partitions),
    )


def backfill_of_assets(
    instance: dg.DagsterInstance,
    defs: dg.Definitions,
    partitions: Sequence[str],
    *assets: str,
) -> PartitionBackfill:
    """Return a backfill of assets that was just requested."""
    return PartitionBackfill.from_asset_partitions(
        backfill_id=uuid4().hex[:8],
        asset_graph=defs.resolve_asset_graph(),
        partition_names=list(partitions),
        asset_selection=[dg.AssetKey(name) for name in assets],
        backfill_timestamp=datetime.now(UTC).timestamp(),
        tags={},
        dynamic_partitions_store=instance,
        all_partitions=False,
        title=None,
        description=None,
        run_config=None,
    )
