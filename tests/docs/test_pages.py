"""The pages held against the code and against each other: generated parts, tables, links."""

import re
from pathlib import Path

import pytest

from docs.generate import COMMON_VARIABLES, ROOT, filled, parts
from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.clickhouse.tables import ROLLUP, define_table
from llm_trace_pipeline.reports.invoice import EVENT_SCHEMA, ITEM_SCHEMA
from llm_trace_pipeline.settings import Settings
from tests.harness.operational import Operational
from tests.harness.pages import (
    TEXTS,
    anchors,
    bare,
    blocks,
    commands,
    links,
    page,
    relative,
    rows_of_tables,
)

PACKAGE = ROOT / "llm_trace_pipeline"


def test_generated_parts_are_what_make_docs_writes(database: Database) -> None:
    written = parts(database)
    for path, text in TEXTS.items():
        assert filled(text, written) == text, f"{relative(path)}: run make docs"
    assert all(f"<!-- generated: {name} -->" in "".join(TEXTS.values()) for name in written)


def test_every_variable_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
    assert set(COMMON_VARIABLES) <= {field.alias for field in Settings.model_fields.values()}


def test_the_readme_is_read_in_minutes() -> None:
    text = page("README.md")
    assert len(text.splitlines()) <= 200
    assert len(text.encode()) <= 16 * 1024


@pytest.mark.parametrize("path", TEXTS, ids=relative)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target, anchor in links(TEXTS[path]):
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{target}#{anchor}"
        if anchor:
            assert anchor in anchors(TEXTS[file]), f"{target}#{anchor}"


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {(ROOT / target).resolve() for target, _ in links(page("README.md"))}
    assert {path for path in TEXTS if path != ROOT / "README.md"} <= linked


def test_every_file_that_is_named_exists() -> None:
    for path, text in TEXTS.items():
        named = re.findall(r"`((?:sql|tests|bench|llm_trace_pipeline)/[\w/.]+)`", text)
        assert [name for name in named if not (ROOT / name).exists()] == [], relative(path)


def test_every_name_of_a_step_is_in_a_file_that_the_step_names() -> None:
    """Of CONTRIBUTING.md: a step without files speaks of those of the step before."""
    files: list[str] = []
    for line in page("CONTRIBUTING.md").splitlines():
        files = re.findall(r"`((?:sql|tests|llm_trace_pipeline)/[\w/]+\.\w+)`", line) or files
        texts = [(ROOT / file).read_text(encoding="utf-8") for file in files]
        if re.match(r"\d+\. ", line):
            for name in re.findall(r"`(_?[A-Za-z]\w*)`", line):
                assert any(re.search(rf"\b{name}\b", text) for text in texts), f"{name}: {files}"


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for text in TEXTS.values():
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_make_target_is_on_a_page() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE):
        assert any(f"make {target}" in text for text in TEXTS.values()), target


def test_every_benchmark_exists() -> None:
    for text in TEXTS.values():
        for module in re.findall(r"`(?:python -m )?bench\.(\w+)`", text):
            assert (ROOT / "bench" / f"{module}.py").exists(), module


def test_every_proof_exists() -> None:
    proofs = rows_of_tables(page("docs/guarantees.md"), "guarantee")
    assert proofs
    for _, proof in proofs:
        for file, names in re.findall(r"`(tests/[\w/]+\.py)`((?:[^;`]*`test_\w+`)*)", proof):
            text = (ROOT / file).read_text(encoding="utf-8")
            for name in re.findall(r"`(test_\w+)`", names):
                assert f"def {name}(" in text, f"{file}: {name}"


def test_the_columns_of_an_invoice_are_those_of_its_files() -> None:
    exports = rows_of_tables(page("docs/invoices.md"), "export")
    assert [re.findall(r"`(\w+)`", row[2]) for row in exports] == [
        EVENT_SCHEMA.names,
        ITEM_SCHEMA.names,
    ]


def test_the_queries_of_the_rollup_are_taken_by_the_engine(database: Database) -> None:
    for table in ("llm_traces", ROLLUP):
        define_table(database, table)
    [queries] = blocks(page("docs/table.md"), "text")
    assert [database.rows(query) for query in queries.split("\n\n")] == [[], []]


def test_the_sum_of_an_invoice_is_taken_by_the_engine(database: Database) -> None:
    define_table(database, "llm_traces")
    [query] = blocks(page("docs/invoices.md"), "text")
    assert len(database.rows(query)) == 1


def test_the_indexes_are_ones_that_postgres_makes(operational: Operational) -> None:
    operational.execute("DROP INDEX ix_provider_traces_created_at, ix_steps_created_at")
    [block] = blocks(page("docs/configuration.md"), "sql")
    for statement in block.splitlines():
        operational.execute(statement)
    made = operational.rows("SELECT tablename FROM pg_indexes WHERE indexdef LIKE '%(created_at)'")
    assert sorted(row["tablename"] for row in made) == ["provider_traces", "steps"]


def test_every_room_is_described() -> None:
    [layout] = [
        block
        for block in blocks(page("CONTRIBUTING.md"), "text")
        if block.startswith("llm_trace_pipeline/")
    ]
    lines = [line for line in layout.splitlines() if line.startswith("  ")]
    named = [name for line in lines for name in re.split(r"\s{2,}", line.strip())[0].split(", ")]
    modules = {path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert sorted(named) == sorted(modules | rooms)


def test_every_file_of_the_deployment_is_listed() -> None:
    files = {path.name for path in (ROOT / "deploy").iterdir() if path.name != ".env"}
    listed = rows_of_tables(page("deploy/README.md"), "file")
    assert {row[0].partition("]")[0].strip("[") for row in listed} == files - {"README.md"}


def test_commands_of_a_deployment_call_what_exists() -> None:
    text = page("deploy/README.md")
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    assert {line.split()[0] for line in lines} == {"cp", "docker", "kubectl", "helm"}
    assert not set(lines) & set(commands())
    for line in lines:
        for module in re.findall(r"python -m ([\w.]+)", line):
            assert (ROOT / f"{module.replace('.', '/')}.py").exists()
        for file in re.findall(r"deploy/[\w./]+", line):
            assert (ROOT / file).exists() or file == "deploy/.env", file


def test_every_cell_of_a_table_is_closed() -> None:
    for path, text in TEXTS.items():
        for line in text.splitlines():
            if line.startswith("| "):
                assert bare(line).endswith("|"), f"{relative(path)}: {line}"
