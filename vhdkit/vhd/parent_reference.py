"""How a child says who its parent is: ids, names, and paths that other systems' tools find it by.

Pure: from paths as text to header fields and locator data. The base name goes into the name field; W2ru gets the
path relative to the child, with backslashes and a leading `.\\` or `..\\`; W2ku gets the Windows path where one is
known and the relative path again where none is, as blktap writes it and as its readers and Windows accept it.

**Source**: docs/reference/vhd.md 2.1, 2.2, 2.6, 2.7, B2, B4.
"""

from __future__ import annotations

import ntpath
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhdkit.storage import paths
from vhdkit.vhd.locator import PlatformCode, encode_locator

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentReference:
    """What a child's header is to say: the parent's id, time stamp (seconds since 2000), base name and paths."""

    unique_id: bytes
    timestamp: int
    name: str
    relative_path: str
    windows_path: str

    def text_for(self, platform_code: bytes) -> str | None:
        """Return the path as that kind of locator holds it, or None where it cannot be said."""
        if platform_code in {PlatformCode.WINDOWS_RELATIVE, PlatformCode.WINDOWS_RELATIVE_8BIT}:
            return self.relative_path
        if platform_code in {PlatformCode.WINDOWS_ABSOLUTE, PlatformCode.WINDOWS_ABSOLUTE_8BIT}:
            return self.windows_path
        if platform_code == PlatformCode.MAC_URL:
            path = self.relative_path.replace("\\", "/")
            return path if not path or path.startswith("./") else f"./{path}"
        return None

    def data_for(self, platform_code: bytes) -> bytes | None:
        """Return a locator's data, or None where this code cannot hold it."""
        text = self.text_for(platform_code)
        return encode_locator(platform_code, text) if text else None


def reference_to(
    parent: str,
    child: str,
    *,
    unique_id: bytes,
    timestamp: int,
    parent_map: Mapping[str, str] | None = None,
    known_windows_path: str = "",
) -> ParentReference:
    """Return the reference by which a child at path `child` finds its parent at path `parent` (both real paths).

    The Windows path is `known_windows_path`, or the parent's own path if it is a Windows path, or the path that the
    folder map (Windows folder to real local folder) gives it.
    """
    relative = relative_windows_path(parent, child)
    windows = known_windows_path or _windows_path(parent, parent_map or {}) or relative
    return ParentReference(
        unique_id=unique_id,
        timestamp=timestamp,
        name=paths.basename(parent),
        relative_path=relative,
        windows_path=windows,
    )


def relative_windows_path(parent: str, child: str) -> str:
    """Return the parent's path relative to the child's folder, the Windows way; "" if there is none.

    >>> relative_windows_path("/vms/base.vhd", "/vms/snapshots/a.avhd")
    '..\\\\base.vhd'
    """
    try:
        relative = paths.relpath(parent, paths.dirname(child)).replace(paths.sep, "\\")
    except ValueError:  # another drive of a Windows machine
        return ""
    return relative if relative.startswith("..\\") else f".\\{relative}"


def moved_windows_path(old_windows_path: str, old_parent: str, new_parent: str) -> str:
    """Return where on the Windows machine the new parent is, known where the old one was; "" if that does not tell.

    >>> moved_windows_path("C:\\\\vms\\\\a.avhd", "/mnt/a.avhd", "/mnt/b.vhd")
    'C:\\\\vms\\\\b.vhd'
    """
    old_name = paths.basename(old_parent)
    if not paths.is_windows_absolute(old_windows_path) or ntpath.basename(old_windows_path).lower() != old_name.lower():
        return ""
    return ntpath.normpath(ntpath.join(ntpath.dirname(old_windows_path), relative_windows_path(new_parent, old_parent)))


def _windows_path(path: str, parent_map: Mapping[str, str]) -> str:
    if paths.is_windows_absolute(path):
        return path
    for windows_folder, local_folder in parent_map.items():
        inside = paths.relpath(path, local_folder)
        if paths.is_windows_absolute(windows_folder) and not inside.startswith(".."):
            return ntpath.normpath(ntpath.join(windows_folder, inside.replace(paths.sep, "\\")))
    return ""
