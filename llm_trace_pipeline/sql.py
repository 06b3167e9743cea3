"""The SQL files under ``sql/``, found in a checkout and in an installed wheel alike."""

import re
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
# The wheel carries sql/ inside the package, a checkout beside it.
ROOT = next(root for root in (_HERE / "sql", _HERE.parent / "sql") if root.is_dir())

# A ClickHouse parameter, {name:Type}, is none. Comments explain placeholders, and keep them.
_PLACEHOLDER = re.compile(r"--.*|\{(\w+)\}")


@cache
def read_sql(name: str) -> str:
    """Return the text of one file under ``sql/``, such as ``operational/traces.sql``."""
    return (ROOT / name).read_text(encoding="utf-8")


def render(name: str, /, **parts: str) -> str:
    """Return a statement of ``sql/`` with SQL text in the place of its ``{placeholders}``.

    Only SQL goes in here: quoted identifiers, conditions, expressions. Values are parameters.

    Args:
        name: the file, such as ``clickhouse/hour_totals.sql``.
        parts: the text for every placeholder of the file, by the placeholder's name.

    Raises:
        KeyError: a placeholder of the file has no part.
        ValueError: the file has no placeholder for a part.
    """
    text = read_sql(name)
    if unknown := parts.keys() - set(_PLACEHOLDER.findall(text)):
        raise ValueError(f"sql/{name} has no placeholder {', '.join(sorted(unknown))}")
    return _PLACEHOLDER.sub(lambda found: parts[found[1]] if found[1] else found[0], text)


def without_comments(text: str) -> str:
    """Return a statement without its comments, so that what is left is what it reads."""
    return re.sub(r"[ ]*--.*", "", text).strip()


def quote_identifier(name: str) -> str:
    """Quote a name for ClickHouse; every identifier that is put into SQL passes here."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def quote_text(text: str) -> str:
    """Quote a text that cannot be a parameter: an argument of a table's engine, a comment."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
