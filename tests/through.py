"""A storage and a folder that hand every call on: test doubles change the calls that they are about."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from vhdkit.storage.file_copy import copy_one_by_one
from vhdkit.storage.handle import Handle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from vhdkit.storage.protocols import Folder, Reach, Storage, Syncing, Walk


class LateSyncing:
    """A sync that is made when it is waited for, by the double's own way."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def is_done(self) -> bool:
        return False

    def wait(self) -> float:
        begun = time.monotonic()
        self._storage.sync()
        return time.monotonic() - begun


class ThroughStorage(Handle):
    """All of the seam's Storage, by way of another.

    Many pieces are copied one by one, and a sync that is begun is made later: by the double's own `copy_from` and
    `sync`.
    """

    def __init__(self, inner: Storage) -> None:
        self.inner = inner

    @property
    def path(self) -> str:
        return self.inner.path

    @property
    def identity(self) -> tuple[int, int]:
        return self.inner.identity

    @property
    def writable(self) -> bool:
        return self.inner.writable

    @property
    def link_count(self) -> int:
        return self.inner.link_count

    @property
    def mtime(self) -> float:
        return self.inner.mtime

    @property
    def ctime(self) -> float:
        return self.inner.ctime

    @property
    def owner(self) -> int:
        return self.inner.owner

    @property
    def allocated_size(self) -> int:
        return self.inner.allocated_size

    @property
    def is_protected(self) -> bool:
        return self.inner.is_protected

    def size(self) -> int:
        return self.inner.size()

    def read_into(self, offset: int, buffer: Buffer) -> int:
        return self.inner.read_into(offset, buffer)

    def read_many_into(self, offsets: Sequence[int], buffers: Sequence[memoryview]) -> list[int]:
        return self.inner.read_many_into(offsets, buffers)

    def write_at(self, offset: int, buffer: Buffer) -> None:
        self.inner.write_at(offset, buffer)

    def copy_from(self, source: Storage, source_offset: int, offset: int, length: int) -> None:
        inner = source.inner if isinstance(source, ThroughStorage) else source
        self.inner.copy_from(inner, source_offset, offset, length)

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
        self.inner.reserve(offset, length)

    def hole_bytes(self, offset: int, length: int) -> int:
        return self.inner.hole_bytes(offset, length)

    def truncate(self, size: int) -> None:
        self.inner.truncate(size)

    def sync(self) -> None:
        self.inner.sync()

    def begin_sync(self) -> Syncing:
        return LateSyncing(self)

    def forget(self, offset: int, length: int) -> None:
        self.inner.forget(offset, length)

    def lock(self, *, exclusive: bool) -> None:
        self.inner.lock(exclusive=exclusive)

    def begin_close(self) -> None:
        self.close()

    def close(self) -> None:
        self.inner.close()


class ThroughFolder:
    """All of the seam's Folder, by way of another."""

    def __init__(self, inner: Folder) -> None:
        self.inner = inner

    def open(self, path: str, *, writable: bool = False) -> Storage:
        return self.inner.open(path, writable=writable)

    def create(self, path: str, *, private: bool = False) -> Storage:
        return self.inner.create(path, private=private)

    def publish(self, temporary: str, path: str) -> None:
        self.inner.publish(temporary, path)

    def replace(self, temporary: str, path: str) -> None:
        self.inner.replace(temporary, path)

    def may_remove(self, path: str) -> bool:
        return self.inner.may_remove(path)

    def may_protect(self, path: str) -> bool:
        return self.inner.may_protect(path)

    def protect(self, path: str, *, is_protected: bool) -> None:
        self.inner.protect(path, is_protected=is_protected)

    def remove(self, path: str) -> None:
        self.inner.remove(path)

    def real(self, path: str) -> str:
        return self.inner.real(path)

    def is_without_links(self, path: str, identity: tuple[int, int]) -> bool:
        return self.inner.is_without_links(path, identity)

    def display(self, path: str) -> str:
        return self.inner.display(path)

    def exists(self, path: str) -> bool:
        return self.inner.exists(path)

    def make_directory(self, directory: str) -> None:
        self.inner.make_directory(directory)

    def check_directory(self, directory: str) -> None:
        self.inner.check_directory(directory)

    def names(self, directory: str) -> tuple[str, ...]:
        return self.inner.names(directory)

    def walk(
        self,
        directory: str,
        *,
        deep: bool = True,
        one_device: bool = False,
        reach: Reach | None = None,
    ) -> Walk:
        return self.inner.walk(directory, deep=deep, one_device=one_device, reach=reach)

    def may_write(self, path: str) -> bool:
        return self.inner.may_write(path)

    def free_space(self, directory: str) -> int:
        return self.inner.free_space(directory)

    def sync(self, directory: str) -> None:
        self.inner.sync(directory)
