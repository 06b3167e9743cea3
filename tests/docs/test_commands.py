"""The commands of the pages: each is run here as it stands, or by the file that is named."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.generate import ROOT
from llm_trace_pipeline.clickhouse.tables import ROLLUP
from llm_trace_pipeline.demo import postgres as demo
from llm_trace_pipeline.hours import HOUR, key_of
from llm_trace_pipeline.settings import Settings
from tests.harness.demo import begin_demo, passable_folder
from tests.harness.pages import bare, block_that_sets, commands, page, rows_of_tables

HOURS = 3  # of the demo here, to be quick
PROOF = "source rows = batch rows = ClickHouse rows, in every hour"
COMMANDS = commands()
# What other files run; whatever else the pages say is run here.
RUN_ELSEWHERE = {
    "make dev": (ROOT / "tests/defs/test_dagster_ui.py", '"llm_trace_pipeline.cli", "dev"'),
    "make lint": (ROOT / ".ci/run", "make lint"),
    "make test": (ROOT / ".ci/run", "make test"),
}
RUN_HERE = [
    line
    for line in COMMANDS
    if line not in RUN_ELSEWHERE and not line.startswith(("git clone ", "export "))
]


def name_of(command: str) -> str:
    """Return the make target, or the subcommand of ``llm-traces``."""
    return command.split()[1]


class Demo:
    """A demo that began a few hours ago, used as the pages say, from another folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / "state"
        self.first = begin_demo(self.state, HOURS)

    def run(self, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the pages in a shell."""
        words = ["make", "-C", str(ROOT), "--no-print-directory"]
        words.append(f"LLM_TRACES_STATE={self.state}")
        if command.startswith("make "):
            command = f"{shlex.join(words)} {command.removeprefix('make ')}"
        else:
            environment["LLM_TRACES_STATE"] = str(self.state)
        ours = {str(field.alias) for field in Settings.model_fields.values()}
        inherited = {
            name: text
            for name, text in os.environ.items()
            if name not in ours and not name.startswith(("MAKE", "MFLAGS"))  # of "make test"
        }
        return subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder if command.startswith("make ") else ROOT,
            env=inherited | environment,
            check=False,
            capture_output=True,
            text=True,
        )

    def key(self, number: int) -> str:
        """Return the key of one of the demo's hours."""
        return key_of(self.first + number * HOUR)


@pytest.fixture(scope="module")
def of_demo() -> Iterator[Demo]:
    with passable_folder("docs") as folder:
        yield Demo(folder)


@pytest.fixture(scope="module")
def first_run(of_demo: Demo) -> str:
    """What the first ``make run`` printed."""
    done = of_demo.run("make run")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


def loaded(output: str) -> dict[str, int]:
    """Return the rows by hour, of the report's last table."""
    _, _, table = output.partition("Hour (UTC)")
    lines = [line.replace(",", "").split() for line in table.splitlines()]
    return {
        line[0]: int(line[1]) for line in lines if re.match(r"\d{4}-\d\d-\d\d-", "".join(line[:1]))
    }


def one_line_of(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line by which a command said what is wrong; make adds one of its own."""
    message, of_make = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert of_make.startswith("make: *** [")
    return message


def test_every_command_is_run_somewhere() -> None:
    for command, (file, text) in RUN_ELSEWHERE.items():
        assert command in COMMANDS
        assert text in file.read_text(encoding="utf-8")
    assert set(map(name_of, RUN_HERE)) == {
        "run",
        "sql",
        "preflight",
        "backfill",
        "restore",
        "invoice",
        "report",
        "erase",
    }


def test_help_lists_every_target_that_is_meant_for_people(of_demo: Demo) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    listed = [line.split()[0] for line in of_demo.run("make help").stdout.splitlines()]
    assert listed == re.findall(r"^([.a-z-]+):.*## ", makefile, re.MULTILINE)


def test_run_loads_the_demo_and_proves_it(of_demo: Demo, first_run: str) -> None:
    found = loaded(first_run)
    assert list(found)[:HOURS] == [of_demo.key(number) for number in range(HOURS)]
    assert all(found.values()), found
    assert PROOF in first_run.splitlines()
    for heading in ("By plan and cost source", "The largest organizations"):
        assert heading in first_run


def test_run_again_changes_nothing(of_demo: Demo, first_run: str) -> None:
    done = of_demo.run("make run")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert PROOF in done.stdout.splitlines()
    again = loaded(done.stdout)
    assert {hour: again[hour] for hour in loaded(first_run)} == loaded(first_run)


@pytest.mark.parametrize(
    "command",
    [line for line in RUN_HERE if name_of(line) not in {"run", "invoice"}],
    ids=name_of,
)
def test_a_command_works_as_it_stands(of_demo: Demo, first_run: str, command: str) -> None:
    bounds = [of_demo.key(number) for number in (1, 2)]
    if name_of(command) == "report":  # of days
        bounds = [bound[: len("2026-03-01")] for bound in bounds]
    here = re.sub(r"FROM=\S+", f"FROM={bounds[0]}", command)
    here = re.sub(r"TO=\S+", f"TO={bounds[1]}", here)
    done = of_demo.run(here)
    assert (done.returncode, done.stderr) == (0, "")
    rows = loaded(first_run)
    batches, table = (
        [f"{asset}: hour {hour}: {rows[hour]} rows" for hour in (of_demo.key(1), of_demo.key(2))]
        for asset in ("trace_batches", "llm_traces")
    )
    rolled_up = [f"{ROLLUP}: hour {of_demo.key(1)}: ", f"{ROLLUP}: hour {of_demo.key(2)}: "]
    expected = {
        "backfill": [*batches, *table, *rolled_up],
        "restore": [*table, *rolled_up],
        "preflight": ["operational database: ", "ClickHouse: OK"],
        "sql": ["model", "sum(total_tokens)"],
        "report": [f"{of_demo.state}/reports/{bounds[0]}_{bounds[1]}.html"],
        "erase": ["ClickHouse: 0 traces in 0 hours", "Dry run: nothing was changed."],
    }
    for text in expected[name_of(command)]:
        assert text in done.stdout


def test_an_invoice_holds_the_hours_that_are_loaded(of_demo: Demo, first_run: str) -> None:
    [command] = [line for line in RUN_HERE if name_of(line) == "invoice"]
    month = f"{of_demo.first:%Y-%m}"
    done = of_demo.run(command.replace("2026-03", month))
    of_month = [rows for hour, rows in loaded(first_run).items() if hour.startswith(month)]
    [calls] = re.findall(r"^calls +([\d,]+)$", done.stdout, re.MULTILINE)
    assert int(calls.replace(",", "")) >= sum(of_month) > 0  # an hour may have come in since
    files = {path.name for path in (of_demo.state / "invoices").iterdir()}
    exported = {
        bare(row[0]).replace("2026-03", month)
        for row in rows_of_tables(page("docs/invoices.md"), "export")
    }
    assert files == {f"{name}.{kind}" for name in exported for kind in ("csv", "parquet")}
    # Hours that have ended since are holes.
    holes = [line for line in done.stdout.splitlines() if line.startswith("hole: ")]
    assert all(line >= f"hole: {of_demo.key(HOURS)}" for line in holes)
    assert (done.returncode, bool(done.stderr)) == ((2, True) if holes else (0, False))


def exports_of(block: str) -> dict[str, str]:
    """Return the variables that a block sets."""
    exports = [line for line in block.splitlines() if line.startswith("export ")]
    words = [word for line in exports for word in shlex.split(line)[1:]]
    return dict(word.split("=", 1) for word in words)


def test_the_configuration_of_a_cluster_is_accepted() -> None:
    exported = exports_of(block_that_sets("CLICKHOUSE_ENDPOINT"))
    assert Settings.from_environment(exported).clickhouse_cluster


def test_the_configuration_of_a_service_is_accepted() -> None:
    exported = exports_of(block_that_sets("CLICKHOUSE_S3_ROLE_ARN"))
    assert Settings.from_environment(exported).clickhouse_s3_role_arn


def test_the_configuration_of_a_bucket_is_accepted() -> None:
    exported = exports_of(block_that_sets("TRACE_BATCH_URI"))
    assert Settings.from_environment(exported).is_in_bucket


def test_the_configuration_of_an_own_database_works(of_demo: Demo, first_run: str) -> None:
    assert PROOF in first_run
    block = block_that_sets("OPERATIONAL_DATABASE_URL")
    exported = exports_of(block)
    assert Settings.from_environment(exported).first_hour
    mine = {
        "OPERATIONAL_DATABASE_URL": demo.embedded_postgres(of_demo.state),
        "LLM_TRACES_START": of_demo.key(HOURS - 1),
        "CLICKHOUSE_ENDPOINT": f"chdb://{of_demo.folder}/own",
        "CLICKHOUSE_USERNAME": "default",
        "CLICKHOUSE_PASSWORD": "",
    }
    assert sorted(exported) == sorted(mine)
    try:
        for command in ("make preflight", "make run"):
            assert command in block.splitlines()
            done = of_demo.run(command, **mine)
            assert (done.returncode, done.stderr) == (0, ""), done.stdout
    finally:
        demo.leave_postgres(of_demo.state)
    assert PROOF in done.stdout.splitlines()


def test_quotes_of_a_statement_are_its_own(of_demo: Demo, first_run: str) -> None:
    assert PROOF in first_run
    done = of_demo.run(
        """make sql Q="SELECT 'it''s', count() > 0 AS \\"some rows\\" FROM llm_traces\""""
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "it's" in done.stdout.replace("''", "'")
    assert "some rows" in done.stdout


def test_a_wrong_statement_is_one_line(of_demo: Demo, first_run: str) -> None:
    assert PROOF in first_run
    message = one_line_of(of_demo.run('make sql Q="SELECT nothing FROM llm_traces"'))
    assert message.startswith("ClickHouse: ")
    assert "nothing" in message


def test_no_statement_is_one_line_that_shows_how(of_demo: Demo) -> None:
    assert one_line_of(of_demo.run("make sql")).startswith("Q: a statement is needed; usage: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "FROM, TO: both are needed"),
        ("FROM={1}", "FROM, TO: both are needed"),
        ("FROM=2026-03-01 TO=2026-03-31", "FROM, TO: must be an hour such as "),
        ("FROM={2} TO={1}", "TO: {1} lies before FROM: {2}"),
        ("FROM={-1} TO={1}", "FROM: {-1} lies before the first partition, {0} (LLM_TRACES_START)"),
        ("FROM={1} TO={99}", "TO: the hour {99} has not ended yet"),
    ],
    ids=["nothing", "no end", "days", "backwards", "before the first hour", "in the future"],
)
def test_a_wrong_range_is_one_line(of_demo: Demo, arguments: str, message: str) -> None:
    def filled(text: str) -> str:
        return re.sub(r"\{(-?\d+)\}", lambda match: of_demo.key(int(match[1])), text)

    assert one_line_of(of_demo.run(f"make backfill {filled(arguments)}")).startswith(
        filled(message)
    )
