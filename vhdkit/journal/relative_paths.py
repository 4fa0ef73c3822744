"""Paths as a manifest has them: relative to its folder, with slashes."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from vhdkit.storage import paths

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Folder


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
