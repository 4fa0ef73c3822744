"""Paths as text, in this machine's writing. Nothing here looks at a file: what exists, a `Folder` tells."""

from __future__ import annotations

import re
from os import fsencode
from os.path import abspath as abspath_here
from os.path import basename, dirname, join, normpath, relpath, sep, splitext
from typing import TYPE_CHECKING

from vhdkit.storage.remote_paths import is_remote, remote_place

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "abspath",
    "as_given",
    "basename",
    "can_be_named",
    "dirname",
    "is_below",
    "is_remote",
    "is_windows_absolute",
    "join",
    "normpath",
    "relpath",
    "sep",
    "splitext",
]

_WINDOWS_ABSOLUTE = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def abspath(path: str) -> str:
    """Return a path from the root of this machine, or of all others if it is a URL (see `remote_paths`)."""
    return remote_place(path).rooted if is_remote(path) else abspath_here(path)


def as_given(path: str) -> str:
    """Return a path as users write it: the URL of a file on another machine, and any other as it is."""
    try:
        return remote_place(path).url if is_remote(path) else path
    except ValueError:  # it only looks like one
        return path


def is_below(directory: str, roots: Iterable[str]) -> bool:
    """Whether a directory, links already followed, is one of the roots or below one."""
    return any((directory + sep).startswith(root.rstrip(sep) + sep) for root in roots)


def is_windows_absolute(path: str) -> bool:
    """Whether a path in Windows' writing has a drive letter and a root, or is a UNC path.

    >>> is_windows_absolute("C:\\\\vms\\\\a.vhd"), is_windows_absolute(".\\\\a.vhd")
    (True, False)
    """
    return _WINDOWS_ABSOLUTE.match(path) is not None


def can_be_named(path: str) -> bool:
    """Whether a file can have that name here: not half of a surrogate pair, nor letters that the locale lacks."""
    try:
        fsencode(path)
    except UnicodeEncodeError:
        return False
    return True
