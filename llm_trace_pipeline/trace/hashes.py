r"""The content hash: one number for an hour's rows, the same number here and in ClickHouse.

The hash of a row is the xxh3 of the row's text. That text is the columns joined by 0x1f: integers
in decimal, NULL as '', times as microseconds since 1970, a list as its length and its elements
joined by 0x1e. Payloads enter by ``payload_hash``, so that verifying an hour does not read them.
The configuration enters by its own xxh3, which is computed once per distinct text. Costs enter as
one number. A row of a batch of manifest version 2, which has no ``usage_source``, keeps the hash
that it had then: without the added columns, and with its costs only where it has a
``price_version``.

The hash of an hour is the sum of its rows' hashes modulo 2**64, so that their order does not count.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest

from llm_trace_pipeline.sql import quote_identifier
from llm_trace_pipeline.trace.columns import (
    ADDED_COLUMNS,
    COLUMNS,
    COST_COLUMNS,
    COST_TYPE,
    PAYLOAD_COLUMNS,
)

Hashes = npt.NDArray[np.uint64]


def octets(texts: pa.StringArray) -> list[bytes]:
    """Return the UTF-8 bytes of every text.

    These are copies, at 0.3 µs a text. Slices of one memoryview took 1.3 µs a text, since the
    garbage collector looks at slices.
    """
    copies: list[bytes] = texts.cast(pa.binary()).to_pylist()
    return copies


def hash_each(texts: pa.StringArray) -> Hashes:
    """Return the xxh3 of every text."""
    return np.fromiter(map(xxh3_64_intdigest, octets(texts)), dtype=np.uint64, count=len(texts))


def _hash_of_distinct(texts: pa.StringArray) -> pa.StringArray:
    encoded = texts.dictionary_encode()
    return pa.array(hash_each(encoded.dictionary)).cast(pa.string()).take(encoded.indices)


def _text_of_list(lists: pa.ListArray) -> pa.StringArray:
    length = pc.list_value_length(lists).cast(pa.string())
    return pc.binary_join_element_wise(length, pc.binary_join(lists, "\x1e"), "\x1e")


# How a column becomes text, here and in ClickHouse: by its name, else by its type.
_AsText = tuple[Callable[[pa.Array], pa.StringArray], str]
_INTEGER: _AsText = (lambda each: each.cast("string").fill_null(""), "ifNull(toString({0}), '')")
_AS_TEXT: dict[str | pa.DataType, _AsText] = {
    "llm_config_json": (_hash_of_distinct, "toString(xxh3({0}))"),
    pa.string(): (lambda each: each, "{0}"),
    pa.uint8(): _INTEGER,
    pa.uint64(): _INTEGER,
    pa.timestamp("us", tz="UTC"): (
        lambda each: each.cast("int64").cast("string"),
        "toString(toUnixTimestamp64Micro(toDateTime64({0}, 6)))",
    ),
    pa.list_(pa.string()): (
        _text_of_list,
        "concat(toString(length({0})), '\\x1e', arrayStringConcat({0}, '\\x1e'))",
    ),
}
_HASHED = {
    column.name: _AS_TEXT.get(column.name) or _AS_TEXT[column.arrow_type]
    for column in COLUMNS
    if column.name not in (*PAYLOAD_COLUMNS, *COST_COLUMNS, *ADDED_COLUMNS, "price_version")
}
_ADDED_TEXTS = [name for name in ADDED_COLUMNS if name not in COST_COLUMNS]
# The lower 64 bits of every cost are multiplied by an odd number of its own: a cost alone cannot
# change without changing the sum. A NULL cost adds another number of its own.
_WEIGHTS = {name: xxh3_64_intdigest(name.encode()) | 1 for name in COST_COLUMNS}
_NULLS = {name: xxh3_64_intdigest(f"{name} is NULL".encode()) for name in COST_COLUMNS}


def row_hashes(batch: pa.RecordBatch) -> Hashes:
    """Return the hash of every row of a batch of ``ARROW_SCHEMA``; see ``row_hash_sql``."""
    texts = [as_text(batch.column(name)) for name, (as_text, _) in _HASHED.items()]
    version, source = batch.column("price_version"), batch.column("usage_source")
    is_of_version_2 = pc.equal(source, "")
    costs = pa.array(_sums_of_costs(batch, is_of_version_2)).cast(pa.string())
    added = [batch.column(name) for name in _ADDED_TEXTS]
    whole = pc.binary_join_element_wise(*texts, version, costs, *added, "\x1f")
    if pc.any(is_of_version_2).as_py():
        text = pc.binary_join_element_wise(*texts, "\x1f")
        priced = pc.binary_join_element_wise(text, version, costs, "\x1f")
        of_version_2 = pc.if_else(pc.equal(version, ""), text, priced)
        whole = pc.if_else(is_of_version_2, of_version_2, whole)
    return hash_each(whole)


def _sums_of_costs(batch: pa.RecordBatch, is_of_version_2: pa.BooleanArray) -> Hashes:
    """Return the costs of every row as one number modulo 2**64."""
    sums: Hashes = np.zeros(batch.num_rows, np.uint64)
    tells_null = pc.invert(is_of_version_2)
    for name, weight in _WEIGHTS.items():
        column = batch.column(name)
        costs = pc.fill_null(column, pa.scalar(0, COST_TYPE))
        sums += np.frombuffer(costs.buffers()[1], np.uint64)[::2] * np.uint64(weight)
        if column.null_count:
            is_null = pc.and_(pc.is_null(column), tells_null).cast(pa.uint64()).to_numpy()
            sums += is_null * np.uint64(_NULLS[name])
    return sums


def row_hash_sql() -> str:
    """Return the expression by which ClickHouse computes ``row_hashes`` of ``llm_traces``."""
    texts = [sql.format(quote_identifier(name)) for name, (_, sql) in _HASHED.items()]
    added = ", ".join(map(quote_identifier, _ADDED_TEXTS))
    costs = " + ".join(
        f"toUInt64(reinterpret(ifNull({quote_identifier(name)}, 0), 'UInt128')) * {weight}"
        for name, weight in _WEIGHTS.items()
    )
    nulls = " + ".join(
        f"toUInt64(isNull({quote_identifier(name)})) * {number}" for name, number in _NULLS.items()
    )
    priced = f"'\\x1f', price_version, '\\x1f', toString({costs}"
    return (
        f"xxh3(concat(concatWithSeparator('\\x1f', {', '.join(texts)}), multiIf("
        f"usage_source != '', concat({priced} + {nulls}), '\\x1f', "
        f"concatWithSeparator('\\x1f', {added})), "
        f"price_version = '', '', concat({priced})))))"
    )


def sum_of_hashes(hashes: Hashes | npt.NDArray[np.int64]) -> int:
    """Return the sum modulo 2**64."""
    return int(hashes.view(np.uint64).sum(dtype=np.uint64))
