"""The SQL files under ``sql/``: found in a checkout and in an installed wheel alike."""

from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
# The wheel carries sql/ inside the package, a checkout beside it.
ROOT = next(root for root in (_HERE / "sql", _HERE.parent / "sql") if root.is_dir())


@cache
def read_sql(name: str) -> str:
    """Return the text of one file under ``sql/``, such as ``operational/traces.sql``."""
    return (ROOT / name).read_text(encoding="utf-8")


def quote_identifier(name: str) -> str:
    """Quote a name for ClickHouse; every identifier that is put into SQL passes here."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def quote_text(text: str) -> str:
    """Quote what is no name and cannot be a parameter: arguments of a table's engine."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
