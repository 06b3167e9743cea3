"""The memory of one load: bounded, whatever the hour's size, for rows up to 5 MB."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.operational import Operational

LIMIT_MB = 1200

# Prints the largest resident size in MB that the process ever had.
LOAD = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from llm_trace_pipeline.batches.rules import Rules
from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.batches.history import capture_billing
from llm_trace_pipeline.batches.extract import extract_hour
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.source.postgres import Source
from llm_trace_pipeline.clickhouse.cluster import loader_of

settings = Settings.from_environment()
source = Source(settings.operational_database_url.get_secret_value(), connections=2)
store = BatchStore.of(settings)
hour = datetime(2026, 3, 1, 9, tzinfo=UTC)
if sys.argv[1] == "extract":
    rules = Rules(capture_billing(source, store.files).history)
    manifest = extract_hour(source, store, rules, hour)
else:
    manifest = store.manifest(hour)
    with connect(settings) as database:
        [result] = loader_of(database, store).load([hour])
    assert result.differences == (), result.differences
# Not ru_maxrss, which begins with the size of the process that started this one.
status = Path("/proc/self/status").read_text()
peak_mb = int(status.partition("VmHWM:")[2].split()[0]) >> 10
print(manifest.rows, manifest.payload_bytes, peak_mb)
"""

INSERT = """
INSERT INTO provider_traces (
    id, organization_id, llm_config, request_json, response_json, created_at, updated_at
)
SELECT
    'provider_trace-' || n, 'org-' || n % 9, '{{"model": "m", "model_endpoint_type": "openai"}}',
    json_build_object('text', repeat(md5(n::text), {payload_bytes} / 32)),
    '{{"usage": {{"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}}}',
    timestamptz '2026-03-01 09:00Z' + n * interval '1 ms', now()
FROM generate_series(1, {rows}) AS n
"""


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(
    ("rows", "payload_bytes"),
    [
        pytest.param(240, 5_000_000, id="240 rows of 5 MB"),
        pytest.param(100_000, 7_000, id="100,000 rows of 7 KB"),
    ],
)
def test_the_memory_of_a_load_is_bounded(
    operational: Operational, tmp_path: Path, rows: int, payload_bytes: int
) -> None:
    operational.execute(INSERT.format(rows=rows, payload_bytes=payload_bytes))
    for step in ("extract", "load"):
        done = subprocess.run(
            [sys.executable, "-c", LOAD, step],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        )
        loaded, size, peak_mb = map(int, done.stdout.split())
        assert loaded == rows
        assert size > rows * payload_bytes * 0.99
        assert peak_mb < LIMIT_MB, step
