"""Calls of every provider with what is to be read of them: usage, model, errors, cost."""

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


def _cases(name: str) -> list[dict[str, Any]]:
    file = Path(__file__).parents[1] / "data" / name
    return [_expanded(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


CASES = _cases("usage_cases.jsonl")
COST_CASES = _cases("cost_cases.jsonl")
