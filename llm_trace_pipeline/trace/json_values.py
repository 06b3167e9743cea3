"""Values out of JSON text that may hold anything: no text makes a reader raise, or lose a row."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

Object = Mapping[str, Any]  # of JSON

INT64_MAX: Final = 2**63 - 1
UINT64_MAX: Final = 2**64 - 1  # the target's counts are UInt64

UNREADABLE: Final = object()  # stands for a text that is no JSON, or nested too deeply

_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_DIGITS: Final = re.compile("[0-9]{1,19}")


def parse(decoder: msgspec.json.Decoder[Any], text: bytes | memoryview) -> object:
    r"""Return the decoder's value of a JSON text, or Python's own value where the decoder refuses.

    A decoder skips the keys that its type does not name. It refuses values of another type, lone
    surrogates (`"\ud83d"`), which PostgreSQL's json keeps, and numbers out of range. Neither parser
    goes deeper than Python's recursion limit; a deeper text is ``UNREADABLE``. The decoder does not
    check that skipped strings are UTF-8, which PostgreSQL did.
    """
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return json.loads(str(text, "utf-8"), parse_int=_integer)
    except (ValueError, RecursionError):
        return UNREADABLE


def _integer(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:  # more than 4,300 digits (CVE-2020-10735): infinite, hence no count
        return float(digits)


def text_of(value: object) -> str:
    """Return a string as it is, null as '', and any other value as its JSON text.

    A lone surrogate becomes U+FFFD, since UTF-8 cannot hold it.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        try:
            value = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        except RecursionError:  # the parser, a few stack frames higher up, could go as deep
            return ""
    return value if value.isascii() else _LONE_SURROGATE.sub("\ufffd", value)


def string_of(value: object) -> str:
    """Return a string as it is, and any other value as ''."""
    return text_of(value) if isinstance(value, str) else ""


def object_of(value: object) -> Object:
    """Return an object as it is, and any other value as {}."""
    return value if isinstance(value, dict) else {}


def count_of(value: object) -> int | None:
    """Return a count from 0 to 2**63 - 1, written as a number or in digits; None for the rest."""
    if type(value) is not int:  # not isinstance, to which a bool is an int
        if isinstance(value, str):
            value = int(value) if _DIGITS.fullmatch(value) else None
        elif isinstance(value, float):
            value = int(value) if value.is_integer() else None
        else:
            return None
    return value if value is not None and 0 <= value <= INT64_MAX else None
