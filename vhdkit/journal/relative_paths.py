"""Paths as a manifest has them: relative to its folder, with slashes; and which of them may stand there."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from vhdkit.storage import paths

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Folder

# Relative paths from one folder of a system to another, which has 4,096 letters at most for each.
_MAX_PATH, _MAX_COMPONENTS = 8192, 256


class RelativePaths:
    """Paths relative to one folder, and where they lead; each folder on the way is resolved once."""

    def __init__(self, folder: Folder, directory: str) -> None:
        self._folder = folder
        self.directory = directory
        self._real: dict[str, str] = {}

    def absolute(self, path: str) -> str:
        """Return where a file lies: links to its folder are followed, one with its own name is not.

        What `Folder.open` opens there is no link then.
        """
        directory, name = posixpath.split(path)
        real = self._real.get(directory)
        if real is None:
            real = paths.join(self._folder.real(paths.join(self.directory, *directory.split("/"))), "")
            self._real[directory] = real
        return real + name

    def relative(self, path: str) -> str:
        """Return the relative path of a file at a real path."""
        try:
            return paths.relpath(path, self.directory).replace(paths.sep, "/")
        except ValueError:  # another drive of a Windows machine
            return path.replace(paths.sep, "/")

    def look_again(self) -> None:
        """Resolve folders anew: they may have become others."""
        self._real.clear()


def check_path(path: str) -> None:
    """Refuse a path that is none as manifests have it: relative, plain, and of a file.

    Raises:
        ValueError: it is not.

    """
    is_plain = posixpath.normpath(path) == path and not path.startswith("/") and path.count("/") < _MAX_COMPONENTS
    is_other_kind = paths.sep != "/" and (paths.sep in path or ":" in path)
    if not is_plain or is_other_kind or len(path) > _MAX_PATH or posixpath.basename(path) in {"", ".", ".."}:
        raise ValueError(f"{path[:80]!r} is no path of a file as a manifest has it")


def is_plain_name(name: str) -> bool:
    """Whether text can be a file's name: it leads to no other folder."""
    return name not in {"", ".", ".."} and "/" not in name and paths.sep not in name and "\0" not in name
