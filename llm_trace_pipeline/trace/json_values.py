"""Values out of JSON text that may hold anything: no text makes a reader raise, or lose a row."""

import json
import re
from collections.abc import Mapping
from decimal import Context, Decimal
from typing import Any, Final

import msgspec

Object = Mapping[str, Any]  # of JSON

# No call has more tokens than this: a larger count is none, and the usage beside it is not known.
MOST_TOKENS: Final = 10**12
MOST_DOLLARS: Final = 10**6  # the same of an amount for one call

UNREADABLE: Final = object()  # stands for a text that is no JSON, or nested too deeply

_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_NUMBER: Final = re.compile(r"[0-9]{1,40}(\.[0-9]{1,400})?([eE][+-]?[0-9]{1,3})?")
_DIGITS: Final = re.compile("[0-9]{1,40}")
_TOO_MUCH, _LAST_DIGIT, _DIGITS_OF_ALL = Decimal(10**20), Decimal(1).scaleb(-24), Context(prec=50)


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
    """Return a whole number from 0 on, written as a number or in digits; None for the rest.

    A number above ``MOST_TOKENS`` stays one; how far above is not told.
    """
    if type(value) is not int:  # not isinstance, to which a bool is an int
        if isinstance(value, str):
            value = int(value) if _DIGITS.fullmatch(value) else None
        elif isinstance(value, float):
            if value > MOST_TOKENS:
                return MOST_TOKENS + 1
            value = int(value) if value.is_integer() else None
        else:
            return None
    return value if value is not None and value >= 0 else None


def counts_alone(value: object) -> object:
    """Return a value with null in the place of everything in it that no call's count can be."""
    if isinstance(value, dict):
        return {key: counts_alone(item) for key, item in value.items()}
    if isinstance(value, list):
        return list(map(counts_alone, value))
    count = count_of(value)
    return count if count is not None and count <= MOST_TOKENS else None


def decimal_of(value: object) -> Decimal | None:
    """Return a number from 0 on, below 10**20, written as a number or in digits; None for the rest.

    A float is the shortest decimal number that reads as it, which is the number that was written.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    text = str(value)
    if not _NUMBER.fullmatch(text):
        return None
    number = Decimal(text)
    return None if number >= _TOO_MUCH else number.quantize(_LAST_DIGIT, context=_DIGITS_OF_ALL)


def amount_of(value: object) -> Decimal | None:
    """Return an amount of USD below ``MOST_DOLLARS``, rounded to 18 decimals; None for the rest."""
    amount = decimal_of(value)
    return round(amount, 18) if amount is not None and amount < MOST_DOLLARS else None
