"""Calls of every provider with the usage, model and errors that are to be read of them."""

import json
from pathlib import Path
from typing import Any


def _expanded(value: Any) -> Any:
    """Write out ``{"$repeat": n, "$value": s}``."""
    if isinstance(value, dict):
        if value.keys() == {"$repeat", "$value"}:
            return value["$value"] * value["$repeat"]
        return {key: _expanded(item) for key, item in value.items()}
    return [_expanded(item) for item in value] if isinstance(value, list) else value


_FILE = Path(__file__).parents[1] / "data" / "usage_cases.jsonl"
CASES: list[dict[str, Any]] = [
    _expanded(json.loads(line)) for line in _FILE.read_text(encoding="utf-8").splitlines()
]
