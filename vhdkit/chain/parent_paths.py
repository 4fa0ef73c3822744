"""What a child's locators and name field say, as paths to look at: text to text, nothing is opened.

**Source**: docs/reference/vhd.md 2.1 to 2.4.
"""

from __future__ import annotations

import ntpath
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhdkit.formats import SUFFIX_FAMILIES
from vhdkit.storage import paths

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vhdkit.disk.parent_link import ParentLink

# Of paths that are longer than 260 letters, and of what the kernel calls a path, before the plain form.
_LONG_PREFIXES = (("\\\\?\\unc\\", "\\\\"), ("\\\\?\\", ""), ("\\\\.\\unc\\", "\\\\"), ("\\\\.\\", ""), ("\\??\\", ""))


@dataclass(frozen=True, slots=True)
class Clue:
    """A path that might lead to the parent, and where it came from; `derived` ones are nowhere written so."""

    path: str
    origin: str
    derived: bool = False
    is_bare_name: bool = False


def texts(link: ParentLink) -> Iterator[Clue]:
    """Yield the paths as they stand in the file: relative locators first, the name field last.

    What no file can be called here is left out; `unnameable` has it.
    """
    yield from (clue for clue in _all_texts(link) if can_be_a_path(clue.path))


def unnameable(link: ParentLink) -> Iterator[Clue]:
    """Yield the paths that hold letters which the names of files cannot have here: the locale's encoding lacks them."""
    yield from (clue for clue in _all_texts(link) if not can_be_a_path(clue.path))


def _all_texts(link: ParentLink) -> list[Clue]:
    return [Clue(path.text, path.origin, is_bare_name=path.is_bare_name) for path in link.paths]


def can_be_a_path(text: str) -> bool:
    """Whether text can name a file at all: a NUL cannot, nor letters that the names of files cannot have here."""
    return "\0" not in text and paths.can_be_named(text)


def is_absolute(text: str) -> bool:
    """Whether a path does not start at the child: drive, UNC, device or root, in any system's writing."""
    return paths.is_windows_absolute(text) or text.startswith(("/", "\\")) or text[1:2] == ":"


def plain_windows_path(path: str) -> str:
    r"""Return a Windows path without the prefix of long paths, which says nothing: one path has several forms.

    >>> plain_windows_path("\\\\?\\C:\\vms/base.vhd"), plain_windows_path("\\\\?\\UNC\\server\\share\\a.vhd")
    ('C:\\vms\\base.vhd', '\\\\server\\share\\a.vhd')
    """
    text = ntpath.normpath(path)
    for prefix, plain in _LONG_PREFIXES:
        if text.lower().startswith(prefix):
            return ntpath.normpath(plain + text[len(prefix) :])
    return text


def mapped(link: ParentLink, parent_map: Mapping[str, str]) -> Iterator[tuple[str, Clue]]:
    """Yield (local folder, path below it) of absolute paths in a folder that the caller's map knows, whatever case."""
    for clue in texts(link):
        text = plain_windows_path(clue.path)
        for remote, local in parent_map.items():
            top = plain_windows_path(remote).rstrip("\\")
            if is_absolute(clue.path) and text.lower().startswith(top.lower() + "\\"):
                rest = text[len(top) + 1 :].replace("\\", "/")
                yield local, Clue(rest, f"{clue.origin} by the map of folders")


def relative(link: ParentLink) -> Iterator[Clue]:
    """Yield the paths that start at the child, with slashes; absolute ones are data, not paths, and left out."""
    for clue in texts(link):
        if not clue.is_bare_name and not is_absolute(clue.path):
            yield Clue(clue.path.replace("\\", "/"), clue.origin)


def base_names(link: ParentLink) -> Iterator[Clue]:
    """Yield the last components of all paths, then the same with the other extensions of images."""
    names: dict[str, str] = {}
    for clue in texts(link):
        name = ntpath.basename(clue.path.rstrip("\\/"))
        if name not in {"", ".", ".."}:
            names.setdefault(name, clue.origin)
    for name, origin in names.items():
        yield Clue(name, f"base name of {origin}")
    for name, origin in names.items():
        stem, extension = paths.splitext(name)
        for others in SUFFIX_FAMILIES:
            for other in others if extension.lower() in others else ():
                if other != extension.lower():
                    yield Clue(stem + other, f"base name of {origin}, other extension", derived=True)


def named_paths(link: ParentLink, directory: str) -> Iterator[str]:
    """Yield every path, as text, that the child names relative to its directory or by base name in it."""
    for clue in (*relative(link), *base_names(link)):
        yield paths.normpath(paths.join(directory, clue.path))
