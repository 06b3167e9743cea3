"""The manifest of an hour's batch: its part files, and the figures that every check compares."""

from datetime import datetime
from decimal import Decimal
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

MANIFEST_VERSION: Final = 3


class Part(BaseModel):
    """One Parquet file of a batch."""

    model_config = ConfigDict(frozen=True)

    name: str
    rows: int
    bytes: int
    checksum: str  # xxh3-128 of the file, hexadecimal


class Manifest(BaseModel):
    """The part files of one hour's batch, and the figures that every check compares.

    A reader uses only the files that the manifest names.
    """

    model_config = ConfigDict(frozen=True)

    # A batch of version 2 lacks the columns of ADDED_COLUMNS, and nobody read its responses for
    # what else decides a cost. It is renewed from its own payloads; see enrich.py.
    version: Literal[2, 3] = MANIFEST_VERSION
    hour: datetime
    batch_id: str
    written_at: datetime
    parts: tuple[Part, ...]
    rows: int
    distinct_ids: int
    tokens: dict[str, int]  # the sum of each token column
    content_hash: str  # hexadecimal; see trace/hashes.py
    min_created_at: datetime | None
    max_created_at: datetime | None
    payload_bytes: int  # of request and response text
    source_rows: int  # rows that the source stores and did not delete, before folding
    source_deleted: int  # soft-deleted rows
    source_folded: int  # rows, not deleted, that gave way to another row of the same id
    source_erased: int  # rows, not deleted, that an erasure covers
    source_hash: str
    source_newest_change: datetime | None
    unreadable: int  # rows whose response could not be read
    unreadable_ids: tuple[str, ...]  # examples
    billing_matches: dict[str, int]
    organizations_without_billing: int
    organizations_without_billing_ids: tuple[str, ...]  # examples
    cost_usd: Decimal
    unpriced: int  # rows whose usage is known, and their cost is not
    unpriced_models: tuple[str, ...]  # examples, as provider/model
    unmetered: int = 0  # rows of calls that answered, and whose usage is not known
    unmetered_models: tuple[str, ...] = ()  # examples, as provider/model
    steps_without_trace: int = 0  # steps of the hour that called a model and left no trace
    # Rows of a renewed batch of version 2 whose response was not kept: their cost is that of their
    # tokens alone.
    unread_responses: int = 0

    @property
    def expected_rows(self) -> int:
        """How many rows the source says that the batch must have."""
        return self.source_rows - self.source_folded - self.source_erased

    @property
    def is_complete(self) -> bool:
        """Whether the batch has one row an expected trace: a join can lose rows or double them."""
        return self.rows == self.distinct_ids == self.expected_rows

    def has_content_of(self, other: "Manifest") -> bool:
        """Whether both batches hold the same rows."""
        mine, theirs = (
            (each.rows, each.distinct_ids, each.tokens, each.content_hash) for each in (self, other)
        )
        return mine == theirs

    @property
    def bytes(self) -> int:
        """Size of the part files."""
        return sum(part.bytes for part in self.parts)


class _Versioned(BaseModel):
    version: int


def is_newer(manifest: bytes | None) -> bool:
    """Whether a newer version of the program wrote a manifest, which this version cannot read."""
    try:
        return _Versioned.model_validate_json(manifest or b"").version > MANIFEST_VERSION
    except ValueError:
        return False
