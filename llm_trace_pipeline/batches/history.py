"""The billing history: every version of an organization's billing details that was ever seen."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel

from llm_trace_pipeline.batches.files import Files, translated
from llm_trace_pipeline.batches.manifest import Part
from llm_trace_pipeline.batches.parts import seal_part
from llm_trace_pipeline.batches.records import (
    manifest_key,
    read_manifest,
    remove_litter,
    switch_manifest,
)
from llm_trace_pipeline.errors import BatchError, SourceError
from llm_trace_pipeline.source.postgres import Source
from llm_trace_pipeline.sql import read_sql, render
from llm_trace_pipeline.trace.billing import HISTORY_SCHEMA, unseen_versions

_FOLDER = "billing_history"


class _HistoryManifest(BaseModel):
    part: Part


@dataclass(frozen=True)
class BillingCapture:
    """The outcome of one reading of the billing table."""

    history: pa.Table  # every version ever seen: rows of billing.HISTORY_SCHEMA
    new: int  # versions that the history did not have
    set_aside: tuple[str, ...]  # organizations of versions without an organization or a date


def capture_billing(source: Source, files: Files) -> BillingCapture:
    """Add the versions of the billing table that are new to the history.

    Raises:
        SourceError: the billing table cannot be read as ``sql/operational/billing.sql`` says.
        BatchError: the history is damaged, or another process extends it and did not finish.
    """
    with files.locked(_FOLDER):
        history = read_history(files)
        with source.session() as session:
            mapping = read_sql("operational/billing.sql")
            versions = session.table(render("operational/billing_versions.sql", billing=mapping))
        if getattr(versions.schema.field("valid_from").type, "tz", None) is None:
            raise SourceError(
                "sql/operational/billing.sql does not return valid_from timestamptz; edit that "
                "file: (…) AT TIME ZONE 'UTC' AS valid_from, or with the zone it was written in"
            )
        unplaced = pc.or_(
            pc.is_null(versions.column("organization_id")),
            pc.is_null(versions.column("valid_from")),
        )
        placed = versions.filter(pc.invert(unplaced))
        new = unseen_versions(history, placed, datetime.now(UTC))
        if new.num_rows:
            history = pa.concat_tables([history, new])
            _switch_history(files, history)
        aside = versions.filter(unplaced).column("organization_id").fill_null("")
        return BillingCapture(history, new.num_rows, tuple(sorted(aside.unique().to_pylist())))


def read_history(files: Files) -> pa.Table:
    """Return every billing version ever seen: rows of ``billing.HISTORY_SCHEMA``.

    Raises:
        BatchError: the history is missing in part, or damaged.
    """
    key, is_intact = manifest_key(files, _FOLDER), False
    with suppress(ValueError):  # reported below
        if (manifest := read_manifest(files, _FOLDER, _HistoryManifest)) is None:
            return HISTORY_SCHEMA.empty_table()
        key = f"{_FOLDER}/{manifest.part.name}"
        is_intact = files.checksum(key) == manifest.part.checksum
    if not is_intact:
        raise BatchError(
            f"billing history: {files.location(key)} is missing or damaged; restore the "
            "folder from a backup: versions that the billing table no longer has exist nowhere "
            "else"
        )
    with translated(files.location(key)):
        return pq.read_table(files.path(key), schema=HISTORY_SCHEMA, filesystem=files.filesystem)


def _switch_history(files: Files, history: pa.Table) -> None:
    """Keep a history in place of the earlier one; it is small, so that one file holds it."""
    key = f"{_FOLDER}/{uuid4().hex}.parquet"
    with translated(files.location(key)):
        pq.write_table(history, files.path(key), filesystem=files.filesystem, compression="zstd")
    part = seal_part(files, key, history.num_rows)
    switch_manifest(files, _FOLDER, _HistoryManifest(part=part))
    remove_litter(files, _FOLDER, {part.name})
