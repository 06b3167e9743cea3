"""What the tests of the pages read: code blocks, tables, links and headings."""

import re
from pathlib import Path
from textwrap import dedent

from docs.generate import PAGES, ROOT

DEPLOY = ROOT / "deploy" / "README.md"
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}


def page(path: str) -> str:
    """Return the text of a page."""
    return TEXTS[ROOT / path]


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a language, also those within steps."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", text, re.DOTALL | re.MULTILINE)
    return [dedent(block) for _, block in found]


def prose(text: str) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.DOTALL | re.MULTILINE)


def rows_of_tables(text: str, first_header: str) -> list[list[str]]:
    """Return the cells of all tables whose header begins with a cell."""
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for table in text.split(f"\n| {first_header} |")[1:]
        for line in table.split("\n\n")[0].splitlines()[2:]
        if line.startswith("|")
    ]


def bare(cell: str) -> str:
    """Return a cell without the backticks around it."""
    return cell.strip().strip("`")


def headings(text: str) -> list[tuple[int, str]]:
    """Return the headings of a page, each with its level."""
    found = re.findall(r"^(#+) (.*)$", prose(text), re.MULTILINE)
    return [(len(marks), title) for marks, title in found]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    found: list[str] = []
    for _, title in headings(text):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        again = sum(
            re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found
        )
        found.append(f"{slug}-{again}" if again else slug)
    return set(found)


def links(text: str) -> list[tuple[str, str]]:
    """Return the targets of a page's links within the repository: path and anchor, '' if none."""
    found = re.findall(r"\]\(([^)]+)\)", prose(text))
    inside = [link.partition("#") for link in found if not re.match(r"https?:", link)]
    return [(path, anchor) for path, _, anchor in inside]


def commands() -> list[str]:
    """Return the commands of the pages, each once; those of a deployment run nowhere here."""
    lines = [
        line
        for path, text in TEXTS.items()
        if path != DEPLOY
        for block in blocks(text, "sh")
        for line in block.splitlines()
    ]
    return list(dict.fromkeys(lines))


def block_that_sets(variable: str) -> str:
    """Return the block that exports a variable first."""
    [found] = [
        block
        for text in TEXTS.values()
        for block in blocks(text, "sh")
        if block.startswith(f"export {variable}=")
    ]
    return found


def relative(path: Path) -> str:
    """Return a path as the repository has it."""
    return str(path.relative_to(ROOT))
