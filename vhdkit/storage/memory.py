"""Files in memory, for tests and for callers who have the bytes already."""

from __future__ import annotations

import errno
import math
import os.path
import posixpath
import warnings
from itertools import count
from typing import TYPE_CHECKING

from vhdkit.storage.file_copy import copy_one_by_one, copy_through_memory
from vhdkit.storage.handle import Handle
from vhdkit.storage.locks import OWN, in_use
from vhdkit.storage.protocols import Entry, Walk
from vhdkit.storage.read_many import read_one_by_one

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from typing_extensions import Buffer

    from vhdkit.storage.protocols import Reach, Storage, Syncing


class MemoryFile:
    """What a name in a `MemoryFolder` leads to: the bytes, and the number that tells files apart."""

    def __init__(self, number: int, content: bytes = b"", *, mtime: float = 0.0) -> None:
        self.number = number
        self.content = bytearray(content)
        self.mtime = mtime
        self.ctime = mtime
        self.read_only = False
        self.owner = 0
        self.holders: dict[int, bool] = {}


class _Synced:
    """A sync of what has no other storage."""

    def is_done(self) -> bool:
        return True

    def wait(self) -> float:
        return 0.0


class MemoryStorage(Handle):
    """An open file in memory; one that is dropped without being closed warns, and lets others lock the file."""

    def __init__(self, path: str, file: MemoryFile, *, writable: bool) -> None:
        self._path = path
        self._file = file
        self._writable = writable

    def __repr__(self) -> str:
        """Return the path, and whether it is closed."""
        return f"<{type(self).__name__} {self._path!r}{' (closed)' if self._closed else ''}>"

    def __del__(self, warn: Callable[..., None] = warnings.warn) -> None:
        if self._closed or not hasattr(self, "_file"):
            return
        try:
            warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
        finally:
            self.close()

    @property
    def path(self) -> str:
        return self._path

    @property
    def identity(self) -> tuple[int, int]:
        return (0, self._file.number)

    @property
    def writable(self) -> bool:
        return self._writable

    @property
    def link_count(self) -> int:
        self.check_open()
        return 1

    @property
    def mtime(self) -> float:
        self.check_open()
        return self._file.mtime

    @property
    def ctime(self) -> float:
        self.check_open()
        return self._file.ctime

    @property
    def owner(self) -> int:
        self.check_open()
        return self._file.owner

    @property
    def allocated_size(self) -> int:
        return len(self._content())

    @property
    def is_protected(self) -> bool:
        self.check_open()
        return self._file.read_only

    def size(self) -> int:
        return len(self._content())

    def read_into(self, offset: int, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        piece = memoryview(self._content())[offset : offset + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def read_many_into(self, offsets: Sequence[int], buffers: Sequence[memoryview]) -> list[int]:
        return read_one_by_one(self, offsets, buffers)

    def write_at(self, offset: int, buffer: Buffer) -> None:
        self._check_writable()
        data = memoryview(buffer).cast("B")
        if not len(data):
            return
        self.reserve(offset, len(data))
        self._content()[offset : offset + len(data)] = data

    def copy_from(self, source: Storage, source_offset: int, offset: int, length: int) -> None:
        copy_through_memory(source, source_offset, self, offset, length)

    def copy_many_from(
        self,
        source: Storage,
        source_offsets: Sequence[int],
        offsets: Sequence[int],
        lengths: Sequence[int],
        until: float = math.inf,
    ) -> int:
        return copy_one_by_one(source, source_offsets, self, offsets, lengths, until)

    def reserve(self, offset: int, length: int) -> None:
        self._check_writable()
        missing = offset + length - self.size()
        if missing > 0:
            self._content().extend(bytes(missing))

    def hole_bytes(self, offset: int, length: int) -> int:
        self.check_open()
        del offset, length
        return 0

    def truncate(self, size: int) -> None:
        self._check_writable()
        self.reserve(0, size)
        del self._content()[size:]

    def sync(self) -> None:
        self._content()

    def begin_sync(self) -> Syncing:
        self.sync()
        return _Synced()

    def forget(self, offset: int, length: int) -> None:
        self.check_open()
        del offset, length

    def lock(self, *, exclusive: bool) -> None:
        self._content()
        others = [held for holder, held in self._file.holders.items() if holder != id(self)]
        if others and (exclusive or any(others)):
            raise in_use(self._path, (OWN,))
        self._file.holders[id(self)] = exclusive

    def begin_close(self) -> None:
        self.close()

    def close(self) -> None:
        self._closed = True
        self._file.holders.pop(id(self), None)

    def _content(self) -> bytearray:
        self.check_open()
        return self._file.content

    def _check_writable(self) -> None:
        self.check_open()
        if not self._writable:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self._path)


class MemoryFolder:
    """A file tree in memory, its paths absolute and with slashes; directories exist by being named.

    >>> folder = MemoryFolder({"/vms/a.vhd": b"abc"})
    >>> with folder.open("/vms/a.vhd") as storage:
    ...     storage.size()
    3
    """

    def __init__(self, files: dict[str, bytes] | None = None, *, free: int = 1 << 50) -> None:
        self._numbers = count(1)
        self._files = {
            self.real(path): MemoryFile(next(self._numbers), content) for path, content in (files or {}).items()
        }
        self.free = free

    def __getitem__(self, path: str) -> MemoryFile:
        try:
            return self._files[self.real(path)]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None

    def open(self, path: str, *, writable: bool = False) -> Storage:
        file = self[path]
        if writable and file.read_only:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return MemoryStorage(path, file, writable=writable)

    def create(self, path: str, *, private: bool = False) -> Storage:
        del private
        if self.exists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self._files[self.real(path)] = file = MemoryFile(next(self._numbers))
        return MemoryStorage(path, file, writable=True)

    def publish(self, temporary: str, path: str) -> None:
        if self.exists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self._files[self.real(path)] = self[temporary]
        del self._files[self.real(temporary)]

    def replace(self, temporary: str, path: str) -> None:
        self._files[self.real(path)] = self[temporary]
        del self._files[self.real(temporary)]

    def remove(self, path: str) -> None:
        self[path]
        del self._files[self.real(path)]

    def real(self, path: str) -> str:
        return posixpath.normpath(posixpath.join("/", path))

    def is_without_links(self, path: str, identity: tuple[int, int]) -> bool:
        return self.real(path) in self._files and self[path].number == identity[1]

    def display(self, path: str) -> str:
        return path

    def exists(self, path: str) -> bool:
        real = self.real(path)
        return real in self._files or any(name.startswith(real.rstrip("/") + "/") for name in self._files)

    def make_directory(self, directory: str) -> None:
        """Directories exist by being named."""

    def check_directory(self, directory: str) -> None:
        """Directories exist by being named."""

    def names(self, directory: str) -> tuple[str, ...]:
        top = self.real(directory).rstrip("/") + "/"
        return tuple(sorted({path[len(top) :].split("/")[0] for path in self._files if path.startswith(top)}))

    def walk(
        self,
        directory: str,
        *,
        deep: bool = True,
        one_device: bool = False,
        reach: Reach | None = None,
    ) -> Walk:
        del one_device, reach
        return Walk(self._entries(self.real(directory).rstrip("/") + "/", deep=deep))

    def _entries(self, top: str, *, deep: bool) -> Iterator[Entry]:
        for path, file in sorted(self._files.items()):
            if path.startswith(top) and (deep or "/" not in path[len(top) :]):
                yield Entry(path=path, size=len(file.content), identity=(0, file.number))

    def may_write(self, path: str) -> bool:
        file = self._files.get(self.real(path))
        return file is None or not file.read_only

    def may_remove(self, path: str) -> bool:
        self[path]
        return True

    def may_protect(self, path: str) -> bool:
        self[path]
        return True

    def protect(self, path: str, *, is_protected: bool) -> None:
        self[path].read_only = is_protected

    def free_space(self, directory: str) -> int:  # noqa: ARG002 - one room for all directories
        return self.free

    def sync(self, directory: str) -> None:
        """Memory is as stable as it gets."""
