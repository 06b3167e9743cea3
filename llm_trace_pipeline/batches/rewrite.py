"""The rewriting: a new batch of an hour from its current batch, without the source."""

from collections.abc import Callable
from datetime import UTC, datetime

import pyarrow as pa

from llm_trace_pipeline.batches.manifest import Manifest
from llm_trace_pipeline.batches.store import HourWriter
from llm_trace_pipeline.trace.tally import Tally, tally_of


def rewrite(
    writer: HourWriter, current: Manifest, change: Callable[[pa.RecordBatch], pa.RecordBatch]
) -> Manifest:
    """Write an hour's batch anew, row group by row group.

    Args:
        writer: holds the hour.
        current: the batch to read.
        change: returns the rows that take the place of a row group; it may return fewer.

    Returns:
        The manifest of the new batch, which the caller publishes. The figures of the rows are those
        of the new rows. The figures of the source are those of ``current``, and so is the number of
        unreadable responses: only a reading of the source tells which they are.
    """
    tally = Tally()
    with writer.part_writer() as parts:
        for rows in writer.store.row_groups(current):
            changed = change(rows)
            if changed.num_rows:
                parts.write(changed)
                tally.add(tally_of(changed))
    figures = tally.figures()
    del figures["unreadable"], figures["unreadable_ids"]
    return current.model_copy(
        update={
            **figures,
            "batch_id": writer.batch_id,
            "written_at": datetime.now(UTC),
            "parts": tuple(parts.parts),
        }
    )
