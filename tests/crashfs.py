"""The machine that cuts the power: a Folder and its Storages that remember what was not yet durable.

An action runs on a `CrashFolder` as on any other; the folder logs every change. tests/crash/survivals.py takes the
log apart: before, between and after all changes the power may go, and this is what the next start may find.

**The fault model.** Nothing survives for certain but what a sync made durable.

 - A file's data is written in sectors of 512 bytes, each whole or not at all. Every sector written since the file's
   last sync survives or does not, alone and in any order. Of a sector written several times the old content or any
   one of the versions survives. A write of less than a sector writes the sector as the machine saw it then.
 - A file's length is one more such thing: the durable one or any that it has had since. Data past the surviving end
   are gone. Length that survives without its data reads as zeros, or (`stale`) as rubbish where data had been
   written, never where it had only been grown. A truncation that survives takes older data past its end with it.
 - A directory entry (a name, and the file that it leads to) is durable when its directory was synced. Until then each
   name that was created, or removed, is there or is not, alone and in any order; a removed name leads to the file with
   its content. A file's sync makes data and length durable, and never a name. A name may survive without its data.
 - `publish` links and then unlinks, in this order: the old name, both, or the new one survive; never neither. Only
   within one directory.
 - `replace` renames: the name leads to the old file or to the new one, the new one's old name is there or is not;
   never is the new file without both. The mark that protects a file is no content: it is set at once and lost.
 - A sync that was begun makes durable what was written before it began, when it is waited for: until then all of it is
   pending, and what was written meanwhile stays so.
 - A sync that fails (`CrashStorage.lose`) has lost what it was for: the machine reads it, but no later sync writes it,
   only writing it again does.
 - Nothing that was durable is harmed: no torn sector, no bit rot, no lying drive.

File numbers outlive the power, so that a resumed run meets the same files; locks do not. Times stand still unless
`clock` is set, so that two runs write the same bytes. With it each change takes a second: a write, a truncation and a
reservation move the file's modification time and its change time, a new name and the protecting mark only the latter.
Both are durable with the file's sync; until then they survive or do not, whatever becomes of the data. The change time
of a new name survives with that name.

tests/crash/disks.py has what people do to files between two runs: other numbers, other times, older content.
"""

from __future__ import annotations

import errno
import math
import os
import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhdkit.errors import ImageInUseError
from vhdkit.storage.file_copy import copy_one_by_one
from vhdkit.storage.handle import Handle
from vhdkit.storage.protocols import Entry, Walk
from vhdkit.storage.read_many import read_one_by_one

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from typing_extensions import Buffer

    from vhdkit.storage.protocols import Reach, Storage, Syncing

SECTOR = 512
_COPY_BYTES = 1 << 20


# The log


@dataclass(frozen=True, slots=True)
class Content:
    """Whole sectors from `first` on became `data`, and the file `size` bytes long.

    `mtime` and `ctime` are the file's from then on.
    """

    call: str
    number: int
    first: int
    data: bytes
    size: int
    mtime: float
    ctime: float


@dataclass(frozen=True, slots=True)
class Synced:
    """A file was synced; with `lost` in vain. `begun` is the sync's number if it was begun earlier."""

    number: int
    lost: bool = False
    begun: int = 0


@dataclass(frozen=True, slots=True)
class SyncBegun:
    """A sync of a file was begun: what is pending now is what it is for."""

    number: int
    begun: int


@dataclass(frozen=True, slots=True)
class Named:
    """A name came to lead to a new file, made at `time`, or (None) to nothing."""

    path: str
    number: int | None
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Published:
    """A file got a second name and lost the first; `ctime` is its change time from then on."""

    temporary: str
    path: str
    number: int
    ctime: float


@dataclass(frozen=True, slots=True)
class Replaced:
    """A file got the name of another, and lost its own; `ctime` is its change time from then on."""

    temporary: str
    path: str
    number: int
    ctime: float


@dataclass(frozen=True, slots=True)
class FolderSynced:
    """A directory was synced."""

    directory: str


Change = Content | Synced | SyncBegun | Named | Published | Replaced | FolderSynced


# The seam


class CrashFile:
    """What names lead to: the bytes as the machine sees them. `holes` are sectors that take no space."""

    def __init__(self, number: int, content: bytes, mtime: float, ctime: float | None = None) -> None:
        self.number = number
        self.content = bytearray(content)
        self.mtime = mtime
        self.ctime = mtime if ctime is None else ctime
        self.read_only = False
        self.holes: set[int] = set()
        self.holders: dict[int, bool] = {}


class CrashStorage(Handle):
    """An open file of a `CrashFolder`."""

    def __init__(self, folder: CrashFolder, path: str, file: CrashFile, *, writable: bool) -> None:
        self._folder = folder
        self._path = path
        self._file = file
        self._writable = writable

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
        return list(self._folder.names_of.values()).count(self._file)

    @property
    def mtime(self) -> float:
        return self._file.mtime

    @property
    def ctime(self) -> float:
        return self._file.ctime

    @property
    def owner(self) -> int:
        return 0

    @property
    def allocated_size(self) -> int:
        return -(-len(self._file.content) // SECTOR) * SECTOR - len(self._file.holes) * SECTOR

    @property
    def is_protected(self) -> bool:
        return self._file.read_only

    def size(self) -> int:
        return len(self._open_content())

    def read_into(self, offset: int, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        piece = bytes(self._open_content()[offset : offset + len(view)])
        view[: len(piece)] = piece
        return len(piece)

    def read_many_into(self, offsets: Sequence[int], buffers: Sequence[memoryview]) -> list[int]:
        return read_one_by_one(self, offsets, buffers)

    def write_at(self, offset: int, buffer: Buffer) -> None:
        content = self._changing()
        data = memoryview(buffer).cast("B")
        if not len(data):
            return
        self._lengthen(offset + len(data), taken=False)
        content[offset : offset + len(data)] = data
        first, stop = offset // SECTOR, -(-(offset + len(data)) // SECTOR)
        self._file.holes.difference_update(range(first, stop))
        self._log("write", first, bytes(content[first * SECTOR : stop * SECTOR]))

    def copy_from(self, source: Storage, source_offset: int, offset: int, length: int) -> None:
        for done in range(0, length, _COPY_BYTES):
            piece = bytearray(min(_COPY_BYTES, length - done))
            if source.read_into(source_offset + done, piece) < len(piece):
                raise OSError(errno.EIO, "the file ended while it was being copied", source.path)
            self.write_at(offset + done, piece)

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
        before = len(self._changing())
        self._lengthen(offset + length, taken=True)
        self._file.holes.difference_update(range(offset // SECTOR, -(-(offset + length) // SECTOR)))
        # A file system moves the times even where all of it was taken already.
        if len(self._file.content) != before or self._folder.clock:
            self._log("reserve", 0, b"")

    def hole_bytes(self, offset: int, length: int) -> int:
        end = min(offset + length, self.size())
        return sum(
            min(end, (sector + 1) * SECTOR) - max(offset, sector * SECTOR)
            for sector in self._file.holes
            if sector * SECTOR < end and offset < (sector + 1) * SECTOR
        )

    def truncate(self, size: int) -> None:
        content = self._changing()
        if size == len(content):
            return
        self._lengthen(size, taken=False)
        del content[size:]
        self._file.holes = {sector for sector in self._file.holes if sector * SECTOR < size}
        self._log("truncate", 0, b"")

    def sync(self) -> None:
        self._open_content()
        self._folder.log.append(Synced(self._file.number))

    def begin_sync(self) -> Syncing:
        self._open_content()
        return CrashSyncing(self._folder, self._file.number)

    def lose(self) -> None:
        """Log a sync that failed; see the module. FailingFolder calls it."""
        self._folder.log.append(Synced(self._file.number, lost=True))

    def forget(self, offset: int, length: int) -> None:
        """Nothing is kept in memory that could be let go of."""

    def lock(self, *, exclusive: bool) -> None:
        others = [held for holder, held in self._file.holders.items() if holder != id(self)]
        if others and (exclusive or any(others)):
            raise ImageInUseError("it is in use", path=self._path)
        self._file.holders[id(self)] = exclusive

    def begin_close(self) -> None:
        self.close()

    def close(self) -> None:
        self._closed = True
        self._file.holders.pop(id(self), None)

    def _open_content(self) -> bytearray:
        self.check_open()
        return self._file.content

    def _changing(self) -> bytearray:
        if not self._writable:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self._path)
        return self._open_content()

    def _lengthen(self, size: int, *, taken: bool) -> None:
        before = len(self._file.content)
        if size > before:
            self._file.content.extend(bytes(size - before))
            if not taken:
                self._file.holes.update(range(-(-before // SECTOR), -(-size // SECTOR)))

    def _log(self, call: str, first: int, data: bytes) -> None:
        file = self._file
        if self._folder.clock:
            file.mtime = file.ctime = self._folder.tick()
        change = Content(call, file.number, first, data, len(file.content), file.mtime, file.ctime)
        self._folder.log.append(change)


class CrashSyncing:
    """A sync of a `CrashStorage` that was begun."""

    def __init__(self, folder: CrashFolder, number: int) -> None:
        self._log = folder.log
        self._number = number
        self._begun = len(folder.log) + 1
        self._log.append(SyncBegun(number, self._begun))

    def is_done(self) -> bool:
        return False

    def wait(self) -> float:
        self._log.append(Synced(self._number, begun=self._begun))
        return 0.0

    def lose(self) -> None:
        """Log that it failed."""
        self._log.append(Synced(self._number, lost=True, begun=self._begun))


class CrashFolder:
    """A file tree in memory that logs its changes; paths are absolute, directories exist by being named.

    `files` are durable when it begins. `numbers` gives names their files: two names with one number are one file.
    `times` are their modification times by number, `ctimes` their change times, which are the former unless given.
    `now` is the time, at least the latest of these. While it is `frozen` nothing may be written, as on a disk mounted
    so.
    """

    def __init__(
        self,
        files: Mapping[str, bytes],
        *,
        numbers: Mapping[str, int] | None = None,
        times: Mapping[int, float] | None = None,
        ctimes: Mapping[int, float] | None = None,
        now: float = 0.0,
        clock: bool = False,
        free: int = 1 << 50,
    ) -> None:
        given = dict(numbers or {})
        unnumbered = [path for path in files if path not in given]
        given |= {path: number for number, path in enumerate(unnumbered, max(given.values(), default=0) + 1)}
        self.next_number = max(given.values(), default=0) + 1
        by_number: dict[int, CrashFile] = {}
        for path, content in files.items():
            number = given[path]
            mtime = (times or {}).get(number, 0.0)
            by_number.setdefault(number, CrashFile(number, content, mtime, (ctimes or {}).get(number)))
        self.names_of = {self.real(path): by_number[given[path]] for path in files}
        self.started_with = {path: (file, bytes(file.content)) for path, file in self.names_of.items()}
        self.start_times = {file.number: (file.mtime, file.ctime) for file in by_number.values()}
        self.clock = clock
        self.now = max([now, *(time for times in self.start_times.values() for time in times)])
        self.free = free
        self.frozen = False
        self.log: list[Change] = []

    def contents(self) -> dict[str, bytes]:
        """Return every file as the machine sees it now."""
        return {path: bytes(file.content) for path, file in self.names_of.items()}

    def tick(self) -> float:
        """Let a second pass, unless times stand still; return the time."""
        if self.clock:
            self.now += 1.0
        return self.now

    def __getitem__(self, path: str) -> CrashFile:
        try:
            return self.names_of[self.real(path)]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None

    def open(self, path: str, *, writable: bool = False) -> Storage:
        file = self[path]
        if writable:
            self._refuse_frozen(path)
        if writable and file.read_only:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return CrashStorage(self, path, file, writable=writable)

    def create(self, path: str, *, private: bool = False) -> Storage:
        del private
        self._refuse_frozen(path)
        self._refuse_taken(path)
        file = CrashFile(self.next_number, b"", self.tick() if self.clock else 0.0)
        self.next_number += 1
        self.names_of[self.real(path)] = file
        self.log.append(Named(self.real(path), file.number, file.mtime))
        return CrashStorage(self, path, file, writable=True)

    def publish(self, temporary: str, path: str) -> None:
        file = self[temporary]
        self._refuse_frozen(path)
        self._refuse_taken(path)
        old, new = self.real(temporary), self.real(path)
        if posixpath.dirname(old) != posixpath.dirname(new):
            raise OSError(errno.EXDEV, "the model publishes within one directory", path)
        self.names_of[new] = file
        del self.names_of[old]
        self._change_inode(file)
        self.log.append(Published(old, new, file.number, file.ctime))

    def replace(self, temporary: str, path: str) -> None:
        file = self[temporary]
        self._refuse_frozen(path)
        old, new = self.real(temporary), self.real(path)
        if posixpath.dirname(old) != posixpath.dirname(new):
            raise OSError(errno.EXDEV, "the model replaces within one directory", path)
        self.names_of[new] = file
        del self.names_of[old]
        self._change_inode(file)
        self.log.append(Replaced(old, new, file.number, file.ctime))

    def may_remove(self, path: str) -> bool:
        self[path]
        return not self.frozen

    def may_protect(self, path: str) -> bool:
        self[path]
        return not self.frozen

    def protect(self, path: str, *, is_protected: bool) -> None:
        self[path].read_only = is_protected
        self._change_inode(self[path])

    def remove(self, path: str) -> None:
        self[path]
        self._refuse_frozen(path)
        del self.names_of[self.real(path)]
        self.log.append(Named(self.real(path), None))

    def real(self, path: str) -> str:
        return posixpath.normpath(posixpath.join("/", path))

    def is_without_links(self, path: str, identity: tuple[int, int]) -> bool:
        return self.real(path) in self.names_of and self[path].number == identity[1]

    def display(self, path: str) -> str:
        return path

    def exists(self, path: str) -> bool:
        real = self.real(path)
        return real in self.names_of or any(name.startswith(real.rstrip("/") + "/") for name in self.names_of)

    def make_directory(self, directory: str) -> None:
        """Directories exist by being named."""

    def check_directory(self, directory: str) -> None:
        """Directories exist by being named."""

    def names(self, directory: str) -> tuple[str, ...]:
        top = self.real(directory).rstrip("/") + "/"
        return tuple(sorted({path[len(top) :].split("/")[0] for path in self.names_of if path.startswith(top)}))

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
        for path, file in sorted(self.names_of.items()):
            if path.startswith(top) and (deep or "/" not in path[len(top) :]):
                yield Entry(path=path, size=len(file.content), identity=(0, file.number))

    def may_write(self, path: str) -> bool:
        file = self.names_of.get(self.real(path))
        return not self.frozen and (file is None or not file.read_only)

    def free_space(self, directory: str) -> int:
        del directory
        return self.free

    def sync(self, directory: str) -> None:
        self.log.append(FolderSynced(self.real(directory)))

    def _change_inode(self, file: CrashFile) -> None:
        if self.clock:
            file.ctime = self.tick()

    def _refuse_taken(self, path: str) -> None:
        if self.exists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)

    def _refuse_frozen(self, path: str) -> None:
        if self.frozen:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
