"""Values out of JSON text that may be anything: no text makes a reader raise or lose a row."""

import json
import re
from typing import Any, Final

import msgspec

INT64_MAX: Final = 2**63 - 1

UNREADABLE: Final = object()
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_DIGITS: Final = re.compile("[0-9]{1,19}")


def parse(decoder: msgspec.json.Decoder[Any], text: bytes | memoryview) -> object:
    r"""Decode quickly what fits the decoder's type, and slowly, as a whole, any other JSON.

    msgspec refuses lone surrogates (`"\ud83d"`), which PostgreSQL's json keeps, and numbers out of
    range. Neither parser goes deeper than Python's recursion limit: such a text is unreadable.
    Strings that are skipped are not checked to be UTF-8; PostgreSQL did that.
    """
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return json.loads(str(text, "utf-8"), parse_int=_parse_int)
    except (ValueError, RecursionError):
        return UNREADABLE


def _parse_int(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:  # more than 4,300 digits (CVE-2020-10735): infinite, hence no count
        return float(digits)


def text_of(value: object) -> str:
    """Return a string as it is, another value as its JSON text, null as ''."""
    if value is None:
        return ""
    if not isinstance(value, str):
        try:
            value = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        except RecursionError:  # it was parsed a few stack frames higher up
            return ""
    return value if value.isascii() else _LONE_SURROGATE.sub("\ufffd", value)


def string_of(value: object) -> str:
    """Return a string as it is, and any other value as ''."""
    return text_of(value) if isinstance(value, str) else ""


def count_of(value: object) -> int | None:
    """Return a token count; what cannot be one counts as not reported."""
    if type(value) is not int:  # not isinstance, to which a bool is an int
        if isinstance(value, str):
            value = int(value) if _DIGITS.fullmatch(value) else None
        elif isinstance(value, float):
            value = int(value) if value.is_integer() else None
        else:
            return None
    return value if value is not None and 0 <= value <= INT64_MAX else None
