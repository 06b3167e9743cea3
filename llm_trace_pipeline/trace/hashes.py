r"""The content hash: one number for an hour's rows, the same number here and in ClickHouse.

The hash of a row is the xxh3 of the row's text. That text is the columns joined by 0x1f: integers
in decimal, NULL as '', times as microseconds since 1970, a list as its length and its elements
joined by 0x1e. Payloads enter by ``payload_hash``, so that verifying an hour does not read them.
The configuration enters by its own xxh3, which is computed once per distinct text. Costs enter as
one number, and only together with a ``price_version``: a row without a price has the hash that it
had before this table had prices.

The hash of an hour is the sum of its rows' hashes modulo 2**64, so that their order does not count.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest

from llm_trace_pipeline.sql import quote_identifier
from llm_trace_pipeline.trace.columns import COLUMNS, COST_COLUMNS, COST_TYPE, PAYLOAD_COLUMNS

Hashes = npt.NDArray[np.uint64]

_APART = (*PAYLOAD_COLUMNS, *COST_COLUMNS, "price_version")
_HASHED = tuple(column for column in COLUMNS if column.name not in _APART)
# The lower 64 bits of every cost are multiplied by an odd number of its own: a cost alone cannot
# change without changing the sum.
_WEIGHTS = {name: xxh3_64_intdigest(name.encode()) | 1 for name in COST_COLUMNS}
_BY_HASH = "llm_config_json"
_BETWEEN_COLUMNS = "\x1f"
_BETWEEN_ELEMENTS = "\x1e"


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


def hash_distinct(texts: pa.StringArray) -> Hashes:
    """Return the xxh3 of every text, computed once per distinct text."""
    encoded = texts.dictionary_encode()
    hashes: Hashes = hash_each(encoded.dictionary)[encoded.indices.to_numpy()]
    return hashes


def row_hashes(batch: pa.RecordBatch) -> Hashes:
    """Return the hash of every row of a batch of ``ARROW_SCHEMA``; see ``row_hash_sql``."""
    parts: list[pa.Array] = []
    for column in _HASHED:
        values = batch.column(column.name)
        if column.name == _BY_HASH:
            values = pa.array(hash_distinct(values)).cast(pa.string())
        elif pa.types.is_list(column.arrow_type):
            length = pc.list_value_length(values).cast(pa.string())
            elements = pc.binary_join(values, _BETWEEN_ELEMENTS)
            values = pc.binary_join_element_wise(length, elements, _BETWEEN_ELEMENTS)
        elif pa.types.is_timestamp(column.arrow_type):
            values = values.cast(pa.int64()).cast(pa.string())
        elif pa.types.is_integer(column.arrow_type):
            values = values.cast(pa.string()).fill_null("")
        parts.append(values)
    version = batch.column("price_version")
    costs = pa.array(_sums_of_costs(batch)).cast(pa.string())
    priced = pc.binary_join_element_wise("", version, costs, _BETWEEN_COLUMNS)
    priced = pc.if_else(pc.equal(version, ""), "", priced)
    text = pc.binary_join_element_wise(*parts, _BETWEEN_COLUMNS)
    return hash_each(pc.binary_join_element_wise(text, priced, ""))


def _sums_of_costs(batch: pa.RecordBatch) -> Hashes:
    """Return the costs of every row as one number modulo 2**64, a NULL cost as 0."""
    sums: Hashes = np.zeros(batch.num_rows, np.uint64)
    for name, weight in _WEIGHTS.items():
        costs = pc.fill_null(batch.column(name), pa.scalar(0, COST_TYPE))
        halves = np.frombuffer(costs.buffers()[1], np.uint64).reshape(-1, 2)
        sums += halves[costs.offset : costs.offset + len(costs), 0] * np.uint64(weight)
    return sums


def row_hash_sql() -> str:
    """Return the expression by which ClickHouse computes ``row_hashes`` of ``llm_traces``."""
    parts: list[str] = []
    for column in _HASHED:
        name = quote_identifier(column.name)
        if column.name == _BY_HASH:
            name = f"toString(xxh3({name}))"
        elif pa.types.is_list(column.arrow_type):
            name = f"concat(toString(length({name})), '\\x1e', arrayStringConcat({name}, '\\x1e'))"
        elif pa.types.is_timestamp(column.arrow_type):
            name = f"toString(toUnixTimestamp64Micro({name}))"
        elif pa.types.is_integer(column.arrow_type):
            name = f"ifNull(toString({name}), '')"
        parts.append(name)
    costs = " + ".join(
        f"toUInt64(reinterpret(ifNull({quote_identifier(name)}, 0), 'UInt128')) * {weight}"
        for name, weight in _WEIGHTS.items()
    )
    return (
        f"xxh3(concat(concatWithSeparator('\\x1f', {', '.join(parts)}), "
        f"if(price_version = '', '', concat('\\x1f', price_version, '\\x1f', toString({costs})))))"
    )


def sum_of_hashes(hashes: Hashes | npt.NDArray[np.int64]) -> int:
    """Return the sum modulo 2**64."""
    return int(hashes.view(np.uint64).sum(dtype=np.uint64))
