"""File names that are no UTF-8, held in JSON while it is decoded."""

from __future__ import annotations

import re
from typing import Any

import msgspec

_ESCAPE = re.compile(rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|u....|.)", re.DOTALL)


# Bytes of a file name that are no UTF-8, as Python has them in text and JSON escapes them.
_LONE = re.compile(rb"\\u[dD][cC][89a-fA-F][0-9a-fA-F]")


_HELD = re.compile(r"\0([0-9a-f]{2})")


def held_names(raw: bytes) -> bytes:
    r"""Return JSON with each byte of a file name that is no UTF-8 as a NUL and two digits: no decoder takes the other.

    >>> held_names(rb'"\udcff"')
    b'"\\u0000ff"'
    """
    if b"\\u" not in raw:
        return raw

    held, done = bytearray(), 0
    # Not `sub`, which has all the pieces in memory together: of a file of nothing but escapes 200 MiB.
    for found in _ESCAPE.finditer(raw):
        escape = found[0]
        if escape.lower() == b"\\u0000":
            raise ValueError("a NUL can be in no path or name")
        if _LONE.fullmatch(escape):
            held += raw[done : found.start()] + b"\\u0000" + escape[4:].lower()
            done = found.end()
    return bytes(held + raw[done:]) if done else raw


def names_of(text: str) -> str:
    """Return text with names as Python has them, where `held_names` has changed them."""
    return _HELD.sub(lambda found: chr(0xDC00 + int(found[1], 16)), text) if "\0" in text else text


def let_go(value: Any) -> Any:  # noqa: ANN401 - any part of a manifest, and the same part
    """Return a part of a manifest with names as Python has them, where `held_names` has changed them."""
    if isinstance(value, str):
        return names_of(value)
    if isinstance(value, tuple):
        return tuple(map(let_go, value))
    if isinstance(value, msgspec.Struct):
        return type(value)(**{name: let_go(getattr(value, name)) for name in value.__struct_fields__})
    return value
