"""Erasures: requests to remove traces, recorded so that no later load brings the traces back."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AwareDatetime, BaseModel, ConfigDict

from llm_trace_pipeline.batches.files import Files
from llm_trace_pipeline.batches.records import (
    manifest_key,
    read_manifest,
    remove_litter,
    switch_manifest,
)
from llm_trace_pipeline.errors import BatchError

_FOLDER = "erasures"
_TIME = pa.timestamp("us", tz="UTC")


class Erasure(BaseModel):
    """The traces of an organization, or of one of its agents, made before some time.

    Later traces are kept: an organization that goes on making calls goes on being billed.
    """

    model_config = ConfigDict(frozen=True)

    organization_id: str
    agent_id: str | None
    before: AwareDatetime
    recorded_at: AwareDatetime

    def covers(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        """Return for every row whether the erasure covers it.

        Args:
            batch: rows with ``organization_id``, ``agent_id`` and ``created_at``.
        """
        covered = pc.and_(
            pc.equal(batch.column("organization_id"), self.organization_id),
            pc.less(batch.column("created_at"), pa.scalar(self.before, _TIME)),
        )
        if self.agent_id is not None:
            covered = pc.and_(covered, pc.equal(batch.column("agent_id"), self.agent_id))
        return covered.fill_null(False)

    def includes(self, other: "Erasure") -> bool:
        """Whether every trace that the other erasure covers is covered by this one too."""
        return (
            self.organization_id == other.organization_id
            and self.agent_id in (None, other.agent_id)
            and self.before >= other.before
        )


class _ErasureManifest(BaseModel):
    erasures: tuple[Erasure, ...]


def read_erasures(files: Files) -> tuple[Erasure, ...]:
    """Return every erasure that was recorded.

    Raises:
        BatchError: the record is damaged.
    """
    try:
        recorded = read_manifest(files, _FOLDER, _ErasureManifest)
    except ValueError:
        raise BatchError(
            f"{files.location(manifest_key(files, _FOLDER))} is damaged; restore it from a "
            "backup: without it, loads would bring back what was erased"
        ) from None
    return recorded.erasures if recorded else ()


def record_erasure(files: Files, erasure: Erasure) -> None:
    """Record an erasure, so that no later load brings its traces back.

    An erasure that a recorded one includes adds nothing.
    """
    with files.locked(_FOLDER):
        recorded = read_erasures(files)
        if not any(earlier.includes(erasure) for earlier in recorded):
            switch_manifest(files, _FOLDER, _ErasureManifest(erasures=(*recorded, erasure)))
        remove_litter(files, _FOLDER)


def without_erased(batch: pa.RecordBatch, erasures: Sequence[Erasure]) -> pa.RecordBatch:
    """Return the rows that no erasure covers."""
    for erasure in erasures:
        batch = batch.filter(pc.invert(erasure.covers(batch)))
    return batch
