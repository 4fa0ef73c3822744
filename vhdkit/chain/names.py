"""What a child's locators and name field say, as paths to look at: text to text, nothing is opened.

**Source**: reference 2.1 to 2.4.
"""

from __future__ import annotations

import ntpath
import os.path
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhdkit.format.locator import PlatformCode
from vhdkit.image.reference import is_windows_absolute

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vhdkit.image.metadata import Metadata

_ORDER = [
    PlatformCode.WINDOWS_RELATIVE,
    PlatformCode.MAC_URL,
    PlatformCode.WINDOWS_RELATIVE_8BIT,
    PlatformCode.WINDOWS_ABSOLUTE,
    PlatformCode.WINDOWS_ABSOLUTE_8BIT,
]
_EXTENSIONS = (".vhd", ".avhd", ".vud")
NAME_FIELD = "name field"


@dataclass(frozen=True, slots=True)
class Clue:
    """A path that might lead to the parent, and where it came from."""

    path: str
    origin: str


def texts(metadata: Metadata) -> Iterator[Clue]:
    """Yield the paths as they stand in the file: relative locators first, the name field last."""
    by_code = {path.platform_code: path.text for path in reversed(metadata.parent_paths)}
    for code in _ORDER:
        if code in by_code:
            yield Clue(by_code[code], code.decode())
    name = metadata.header.parent_name if metadata.header is not None else ""
    if name:
        yield Clue(name, NAME_FIELD)


def is_absolute(text: str) -> bool:
    """Whether a path does not start at the child: drive, UNC, device or root, in any system's writing."""
    return is_windows_absolute(text) or text.startswith(("/", "\\")) or text[1:2] == ":"


def mapped(metadata: Metadata, parent_map: Mapping[str, str]) -> Iterator[Clue]:
    """Yield the local paths of absolute ones whose folder the caller's map knows; case does not matter."""
    for clue in texts(metadata):
        text = ntpath.normpath(clue.path)
        for remote, local in parent_map.items():
            top = ntpath.normpath(remote).rstrip("\\")
            if is_absolute(clue.path) and text.lower().startswith(top.lower() + "\\"):
                rest = text[len(top) + 1 :].replace("\\", os.sep)
                yield Clue(os.path.join(local, rest), f"{clue.origin} by --parent-map")


def relative(metadata: Metadata) -> Iterator[Clue]:
    """Yield the paths that start at the child, with slashes; absolute ones are data, not paths, and left out."""
    for clue in texts(metadata):
        if clue.origin != NAME_FIELD and not is_absolute(clue.path):
            yield Clue(clue.path.replace("\\", "/"), clue.origin)


def base_names(metadata: Metadata) -> Iterator[Clue]:
    """Yield the last components of all paths, then the same with the other extensions of images."""
    names: dict[str, str] = {}
    for clue in texts(metadata):
        name = ntpath.basename(clue.path.rstrip("\\/"))
        if name not in {"", ".", ".."}:
            names.setdefault(name, clue.origin)
    for name, origin in names.items():
        yield Clue(name, f"base name of {origin}")
    for name, origin in names.items():
        stem, extension = os.path.splitext(name)
        if extension.lower() in _EXTENSIONS:
            for other in _EXTENSIONS:
                if other != extension.lower():
                    yield Clue(stem + other, f"base name of {origin}, other extension")


def named_paths(metadata: Metadata, directory: str) -> Iterator[str]:
    """Yield every path, as text, that the child names relative to its directory or by base name in it."""
    for clue in (*relative(metadata), *base_names(metadata)):
        yield os.path.normpath(os.path.join(directory, clue.path))
