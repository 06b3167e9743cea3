"""What a terminal is sent: text of the data, such as a model's name, must not steer it."""

import re

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but the tab and the line's end


def printable(text: str) -> str:
    r"""Return a text with its control characters written out, such as ``\x1b``."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
