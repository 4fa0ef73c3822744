"""A folder that names from elsewhere are made in, and never anything outside of it.

Whoever chose the names (a disk that files are extracted from) may have put links there, or names that climb: each part
of a path is looked up in the directory above it, which is held open, and no link is ever followed. Nothing that is
there is replaced.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_HELD = os.open in os.supports_dir_fd and os.mkdir in os.supports_dir_fd and hasattr(os, "O_DIRECTORY")
_STEP = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_NEW |= getattr(os, "O_BINARY", 0)
# What is wrong with a name, or with what has it already: not with the disk that is written to.
NAME_ERRORS = {errno.EINVAL, errno.EEXIST, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EILSEQ}
# On Windows these mean a drive, a stream of a file, or a device.
_BAD_CHARACTERS = set('\\/:*?"<>|\0') if os.name == "nt" else {"/", "\0"}


class ConfinedFolder:
    """A folder to make files in, which `make` makes if it is not there. Paths are sequences of names."""

    def __init__(self, path: str) -> None:
        self.path = os.path.realpath(path)

    @property
    def nearest(self) -> str:
        """The folder, or the nearest one above it that is there."""
        path = self.path
        while not os.path.isdir(path) and os.path.dirname(path) != path:
            path = os.path.dirname(path)
        return path

    def make(self) -> None:
        """Make the folder, and those above it, unless they are there."""
        os.makedirs(self.path, exist_ok=True)

    def make_directory(self, names: Sequence[str]) -> None:
        """Make a directory, and those above it, unless they are there.

        Raises:
            OSError: a name is none, or leads to a link or to a file.

        """
        with self._inside(names):
            pass

    @contextmanager
    def create(self, names: Sequence[str], modified: float | None = None) -> Iterator[BinaryIO]:
        """Lend a new file to write into; it is removed if the block raises. `modified` is a time to set.

        Raises:
            FileExistsError: the name is taken.
            OSError: a name is none, or leads through a link.

        """
        with self._inside(names[:-1]) as (above, directory):
            name = _checked(names[-1])
            path = name if above is not None else os.path.join(directory, name)
            descriptor = os.open(path, _NEW, 0o666, dir_fd=above)
            try:
                with open(descriptor, "wb") as file:
                    yield file
                if modified is not None:
                    with suppress(OSError, OverflowError):  # a time that no file here can have
                        os.utime(path, (modified, modified), dir_fd=above)
            except BaseException:
                os.unlink(path, dir_fd=above)
                raise

    @contextmanager
    def _inside(self, names: Sequence[str]) -> Iterator[tuple[int | None, str]]:
        """Lend a directory, made if need be: held open where the system can do that, or by a path without links."""
        if not _HELD:
            yield None, self._path_without_links(names)
            return
        held = os.open(self.path, _STEP)
        try:
            for name in map(_checked, names):
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=held)
                below = os.open(name, _STEP, dir_fd=held)
                os.close(held)
                held = below
            yield held, self.path
        finally:
            os.close(held)

    def _path_without_links(self, names: Sequence[str]) -> str:
        path = self.path
        for name in map(_checked, names):
            path = os.path.join(path, name)
            with suppress(FileExistsError):
                os.mkdir(path)
            if os.path.realpath(path) != path or not os.path.isdir(path):
                raise OSError(errno.ELOOP, "it leads through a link", path)
        return path


def _checked(name: str) -> str:
    """Return a name that is a single part of a path.

    Raises:
        OSError: it is none.

    """
    if name in {"", ".", ".."} or _BAD_CHARACTERS & set(name) or (os.name == "nt" and name[-1] in ". "):
        raise OSError(errno.EINVAL, "no file here can have this name", name)
    return name
