"""A folder whose n-th call fails once, or is done by half, and which then goes on.

    folder = FailingFolder(CrashFolder(files), Fault(at=3, error=errno.ENOSPC))

Every call through the seam that can fail on a real machine counts, in the order of their making; `kinds` counts only
some. For calls of the kernel that read or write less than they were asked to, see `shorten_system_calls`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.crashfs import SECTOR, CrashStorage, CrashSyncing
from tests.through import ThroughFolder, ThroughStorage
from vhdkit.storage.protocols import Walk

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest
    from typing_extensions import Buffer

    from vhdkit.storage.protocols import Folder, Reach, Storage, Syncing

CHANGING: Final = frozenset(
    {"write", "copy", "reserve", "truncate", "sync", "create", "publish", "replace", "remove", "sync folder"}
)
LOOKING: Final = frozenset({"open", "size", "read", "lock", "names", "walk", "free space", "check directory"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The call of number `at` (from 0) of those in `kinds` raises `error`; without one it is done by half.

    Half of a read returns half of the bytes; nothing else can be done by half and be silent about it. With `partly` a
    failing write, copy or reserve has done its first half, in whole sectors, before it raises. With `lasting` all later
    ones fail too.
    """

    at: int
    error: int | None = None
    kinds: frozenset[str] = CHANGING | LOOKING
    partly: bool = False
    lasting: bool = False


class FailingFolder(ThroughFolder):
    """A folder with one fault. `calls` counts those that the fault may hit, `struck` tells at which one it did."""

    def __init__(self, inner: Folder, fault: Fault) -> None:
        super().__init__(inner)
        self.fault = fault
        self.calls = 0
        self.struck: str | None = None

    def strikes(self, kind: str) -> bool:
        """Count a call, and tell whether it is to fail."""
        if kind not in self.fault.kinds:
            return False
        number, self.calls = self.calls, self.calls + 1
        hit = number == self.fault.at or (self.fault.lasting and number > self.fault.at)
        if hit and self.struck is None:
            self.struck = kind
        return hit

    def fail(self, kind: str, path: str) -> None:
        """Count a call, and raise if it is to fail."""
        if self.strikes(kind) and self.fault.error is not None:
            raise self.error(path)

    def error(self, path: str) -> OSError:
        """Return what the fault raises."""
        code = self.fault.error or 0
        return OSError(code, os.strerror(code), path)

    def open(self, path: str, *, writable: bool = False) -> Storage:
        self.fail("open", path)
        return FailingStorage(self.inner.open(path, writable=writable), self)

    def create(self, path: str, *, private: bool = False) -> Storage:
        self.fail("create", path)
        return FailingStorage(self.inner.create(path, private=private), self)

    def publish(self, temporary: str, path: str) -> None:
        self.fail("publish", path)
        self.inner.publish(temporary, path)

    def replace(self, temporary: str, path: str) -> None:
        self.fail("replace", path)
        self.inner.replace(temporary, path)

    def protect(self, path: str, *, is_protected: bool) -> None:
        self.fail("protect", path)
        self.inner.protect(path, is_protected=is_protected)

    def remove(self, path: str) -> None:
        self.fail("remove", path)
        self.inner.remove(path)

    def check_directory(self, directory: str) -> None:
        self.fail("check directory", directory)
        self.inner.check_directory(directory)

    def names(self, directory: str) -> tuple[str, ...]:
        """Return the names; a directory that cannot be listed has none (see the seam)."""
        if self.strikes("names") and self.fault.error is not None:
            return ()
        return self.inner.names(directory)

    def walk(
        self,
        directory: str,
        *,
        deep: bool = True,
        one_device: bool = False,
        reach: Reach | None = None,
    ) -> Walk:
        if self.strikes("walk") and self.fault.error is not None:
            return Walk(iter(()), {directory: self.error(directory)})
        return self.inner.walk(directory, deep=deep, one_device=one_device, reach=reach)

    def free_space(self, directory: str) -> int:
        self.fail("free space", directory)
        return self.inner.free_space(directory)

    def sync(self, directory: str) -> None:
        self.fail("sync folder", directory)
        self.inner.sync(directory)


class FailingStorage(ThroughStorage):
    """A storage of a `FailingFolder`."""

    def __init__(self, inner: Storage, folder: FailingFolder) -> None:
        super().__init__(inner)
        self._folder = folder

    def size(self) -> int:
        self._folder.fail("size", self.path)
        return self.inner.size()

    def read_into(self, offset: int, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        if self._folder.strikes("read"):
            if self._folder.fault.error is not None:
                raise self._folder.error(self.path)
            return self.inner.read_into(offset, view[: len(view) // 2])
        return self.inner.read_into(offset, view)

    def write_at(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        self._do("write", len(view), lambda done: self.inner.write_at(offset, view[:done]))

    def copy_from(self, source: Storage, source_offset: int, offset: int, length: int) -> None:
        inner = source.inner if isinstance(source, FailingStorage) else source
        self._do("copy", length, lambda done: self.inner.copy_from(inner, source_offset, offset, done))

    def reserve(self, offset: int, length: int) -> None:
        self._do("reserve", length, lambda done: self.inner.reserve(offset, done))

    def truncate(self, size: int) -> None:
        self._folder.fail("truncate", self.path)
        self.inner.truncate(size)

    def sync(self) -> None:
        if self._folder.strikes("sync") and self._folder.fault.error is not None:
            if isinstance(self.inner, CrashStorage):
                self.inner.lose()
            raise self._folder.error(self.path)
        self.inner.sync()

    def begin_sync(self) -> Syncing:
        return FailingSyncing(self, self._folder, self.inner.begin_sync())

    def lock(self, *, exclusive: bool) -> None:
        self._folder.fail("lock", self.path)
        self.inner.lock(exclusive=exclusive)

    def _do(self, kind: str, length: int, change: Callable[[int], None]) -> None:
        """Make a change of so many bytes whole, or as the fault says."""
        if self._folder.strikes(kind) and self._folder.fault.error is not None:
            if self._folder.fault.partly:
                change(length // 2 // SECTOR * SECTOR)
            raise self._folder.error(self.path)
        change(length)


class FailingSyncing:
    """A sync that was begun, and may fail when it is waited for."""

    def __init__(self, storage: FailingStorage, folder: FailingFolder, inner: Syncing) -> None:
        self._storage = storage
        self._folder = folder
        self._inner = inner

    def is_done(self) -> bool:
        return self._inner.is_done()

    def wait(self) -> float:
        if self._folder.strikes("sync") and self._folder.fault.error is not None:
            if isinstance(self._inner, CrashSyncing):
                self._inner.lose()
            raise self._folder.error(self._storage.path)
        return self._inner.wait()


def shorten_system_calls(monkeypatch: pytest.MonkeyPatch, every: int) -> list[int]:
    """Let every n-th read, write and copy of the kernel move a byte less than it could; return a count of them."""
    calls, shortened = [0], [0]

    def is_short(wanted: int) -> bool:
        calls[0] += 1
        short = calls[0] % every == 0 and wanted > 1
        shortened[0] += short
        return short

    read, write, read_bytes = os.preadv, os.pwrite, os.pread

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        (view,) = buffers
        return read(descriptor, [view[: len(view) - is_short(len(view))]], offset)

    def pread(descriptor: int, count: int, offset: int) -> bytes:
        return read_bytes(descriptor, count - is_short(count), offset)

    def pwrite(descriptor: int, data: memoryview, offset: int) -> int:
        return write(descriptor, data[: len(data) - is_short(len(data))], offset)

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(os, "pread", pread)
    monkeypatch.setattr(os, "pwrite", pwrite)
    if hasattr(os, "copy_file_range"):
        copy = os.copy_file_range

        def copy_file_range(source: int, target: int, count: int, at: int, to: int) -> int:
            return copy(source, target, count - is_short(count), at, to)

        monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    if hasattr(os, "splice"):
        splice = os.splice

        def splice_less(source: int, target: int, count: int, *arguments: int, **named: int) -> int:
            return splice(source, target, count - is_short(count), *arguments, **named)

        monkeypatch.setattr(os, "splice", splice_less)
    return shortened
