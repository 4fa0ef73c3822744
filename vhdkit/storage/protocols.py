"""The interface between the formats and the machine: what a Storage and a Folder must do.

Everything above this room does its I/O through these two, so that files can be local, in memory, or on a disk
that loses power at a chosen instant. Positions are always given; there is no cursor.

Durability: a write is durable once `Storage.sync` has returned after it; a name (created, replaced, removed)
once `Folder.sync` of its directory has returned after it. Nothing may be assumed before that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from typing_extensions import Buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A name in a directory, as `Folder.walk` yields it."""

    path: str
    size: int
    identity: tuple[int, int]


@dataclass(slots=True)
class Walk:
    """The files of a tree of directories, which are looked for while they are iterated over.

    `unlisted` has the directories that could not be listed, as far as the walk has come, and why.
    """

    entries: Iterator[Entry]
    unlisted: dict[str, OSError] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Entry]:
        """Return the iterator over the files."""
        return self.entries


# A folder of snapshots holds hundreds of files, a store of images some thousands; so many more are looked at in about a
# second where a disk is near. A merge searches three times, when it is planned, opened and about to finish: with a link
# to the whole machine beside its images that must not cost more than what it is a part of.
REACH_ENTRIES = 50_000
REACH_SECONDS = 3.0


@dataclass(slots=True, kw_only=True)
class Reach:
    """How far a search goes beyond the tree of a directory: through symbolic links, and into what is mounted below.

    Each directory is listed once, whatever leads to it, so that loops end. Only what lies beyond counts: `entries` are
    those that may still be looked at, `seconds` is how long that may take from the first of them on. It is looked at
    between entries: a call of the system that hangs is not ended by it. `unseen` says what was not looked into, and
    why. Several walks may share one.
    """

    entries: int = REACH_ENTRIES
    seconds: float = REACH_SECONDS
    until: float | None = None
    directories: set[tuple[int, int]] = field(default_factory=set)
    unseen: dict[str, str] = field(default_factory=dict)

    def is_spent(self, now: float) -> bool:
        """Whether nothing more may be looked at; `now` is a time of time.monotonic."""
        if self.until is None:
            self.until = now + self.seconds
        return self.entries <= 0 or now >= self.until

    def why_spent(self) -> str:
        """Return which bound ended the search."""
        if self.entries <= 0:
            return "links and mounts lead to more files than are looked at; search the folders that count by name"
        return f"looking through links and mounts took longer than {self.seconds:g} seconds"


class Syncing(Protocol):
    """A sync that was begun."""

    def is_done(self) -> bool:
        """Whether `wait` would return, or raise, at once."""
        ...

    def wait(self) -> float:
        """Return, once what it is for is on stable storage, the seconds that it took; raise its OSError."""
        ...


class Storage(Protocol):
    """An open file (or what behaves like one).

    `path` is for messages and finding neighbours. `identity` is equal for two storages exactly if both are one file.
    `mtime` is in Unix seconds. `ctime` is the change time of the file's inode, in Unix seconds: writing, renaming and
    setting `mtime` update it, and no caller can choose it; 0.0 where the system has none. `owner` is the number of the
    user who owns the file, 0 where there is no such thing. `allocated_size` is the space that it takes, in bytes.
    `is_protected` says whether the file is marked read-only now, however it was opened.

    It is a context manager. Once it is closed, every method but `close` and `begin_close` raises ValueError, and only
    `path`, `identity` and `writable` are known. One that is dropped without being closed warns (ResourceWarning) and
    closes itself. It is never pickled or copied.
    """

    @property
    def path(self) -> str: ...
    @property
    def identity(self) -> tuple[int, int]: ...
    @property
    def writable(self) -> bool: ...
    @property
    def link_count(self) -> int: ...
    @property
    def mtime(self) -> float: ...
    @property
    def ctime(self) -> float: ...
    @property
    def owner(self) -> int: ...
    @property
    def allocated_size(self) -> int: ...
    @property
    def is_protected(self) -> bool: ...

    def __enter__(self) -> Self:
        """Return the storage; ValueError if it is closed."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        ...

    def size(self) -> int:
        """Return the length in bytes."""
        ...

    def read_into(self, offset: int, buffer: Buffer) -> int:
        """Fill the buffer from `offset`; return the bytes read, fewer only where the file ends."""
        ...

    def read_many_into(self, offsets: Sequence[int], buffers: Sequence[memoryview]) -> list[int]:
        """Do what as many calls of `read_into` do, and return what they return: in one request, where that can be.

        The ranges ascend and do not overlap.
        """
        ...

    def write_at(self, offset: int, buffer: Buffer) -> None:
        """Write all of the buffer at `offset`, extending the file if it ends before."""
        ...

    def copy_from(self, source: Storage, source_offset: int, offset: int, length: int) -> None:
        """Copy bytes from another storage; they may be shared instead of copied where the file system can."""
        ...

    def copy_many_from(
        self,
        source: Storage,
        source_offsets: Sequence[int],
        offsets: Sequence[int],
        lengths: Sequence[int],
        until: float = math.inf,
    ) -> int:
        """Do what as many calls of `copy_from` do, in their order; return how many of them.

        The first is done; the others as long as `until`, a time of time.monotonic, has not passed. Of what was not done
        parts may have been written.
        """
        ...

    def reserve(self, offset: int, length: int) -> None:
        """Make the file at least `offset + length` long, new bytes zero, and their space really taken."""
        ...

    def hole_bytes(self, offset: int, length: int) -> int:
        """Return how many bytes of a range are known to be zeros that take no space."""
        ...

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes or extend it with zeros that take no space."""
        ...

    def sync(self) -> None:
        """Return once everything written before is on stable storage."""
        ...

    def begin_sync(self) -> Syncing:
        """Begin to make durable everything written before; what is written from now on waits for another sync.

        One at a time: it is to be waited for before the next is begun.
        """
        ...

    def lock(self, *, exclusive: bool) -> None:
        """Hold the file until it is closed: shared for reading it, exclusive for changing it.

        Locks bind those who ask for them, in this process and in others; they vanish with their process. Asking again
        replaces the lock. Where a file system has no locks, nothing is held.

        Raises:
            ImageInUseError: another open file holds it so that both cannot be.

        """
        ...

    def forget(self, offset: int, length: int) -> None:
        """Note that a range will hardly be read again: the system may drop it from its page cache.

        It does so in the background. A removed file's memory is let go of when it is closed, which for 6 GiB takes
        0.4 s: what was let go of before need not be waited for then.
        """
        ...

    def begin_close(self) -> None:
        """Begin to give the file back, which is of no use from now on; `close` waits for it.

        The system takes about 70 ms a GiB to free a removed file's space and memory; others can be synced meanwhile.
        """
        ...

    def close(self) -> None:
        """Give the file back, and its lock; closing twice is allowed."""
        ...


class Folder(Protocol):
    """A place where files have names. Paths are strings as the place understands them."""

    def open(self, path: str, *, writable: bool = False) -> Storage:
        """Open a regular file; of a device, a pipe or a directory raise an OSError and open nothing.

        A path whose last component is a symbolic link is refused: hand in what `real` returned.
        """
        ...

    def create(self, path: str, *, private: bool = False) -> Storage:
        """Create an empty file; raise FileExistsError if the name is taken. Nobody else may open a private one."""
        ...

    def publish(self, temporary: str, path: str) -> None:
        """Give a finished file its name; raise FileExistsError, never replace, if the name is taken."""
        ...

    def replace(self, temporary: str, path: str) -> None:
        """Give a finished file the name of another, which loses it in the same instant; both lie in one directory."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file's name."""
        ...

    def real(self, path: str) -> str:
        """Return the absolute path with every symbolic link followed; the file need not exist."""
        ...

    def is_without_links(self, path: str, identity: tuple[int, int]) -> bool:
        """Whether an absolute path leads to a file, and no component of it is a symbolic link, at one moment.

        Between `real` and `open` a directory may be replaced by a link: what is asked of the opened file's identity
        cannot be fooled so.
        """
        ...

    def display(self, path: str) -> str:
        """Return the path as a person would type it: relative if that is shorter."""
        ...

    def exists(self, path: str) -> bool:
        """Whether the path leads to anything."""
        ...

    def make_directory(self, directory: str) -> None:
        """Make a directory, durably, unless it is there; the one above it must be."""
        ...

    def check_directory(self, directory: str) -> None:
        """Raise the OSError that listing the directory would."""
        ...

    def names(self, directory: str) -> tuple[str, ...]:
        """Return the names in a directory, sorted; nothing if it cannot be listed."""
        ...

    def walk(
        self,
        directory: str,
        *,
        deep: bool = True,
        one_device: bool = False,
        reach: Reach | None = None,
    ) -> Walk:
        """Walk through the regular files in a directory and below it, in a stable order; links are not followed.

        With `one_device` what is mounted below is left out.
        With a `reach`, and a directory that `real` returned, what links lead to and what is mounted below comes last,
        under the paths where it really is.
        """
        ...

    def may_write(self, path: str) -> bool:
        """Whether an existing file may be written, or names in an existing directory changed."""
        ...

    def may_remove(self, path: str) -> bool:
        """Whether the name of an existing file may be removed, or given to another file."""
        ...

    def may_protect(self, path: str) -> bool:
        """Whether `protect` may change the mark of an existing file."""
        ...

    def protect(self, path: str, *, is_protected: bool) -> None:
        """Mark a file read-only for everybody, or writable again for whoever makes files here; that is no lock.

        A path whose last component is a symbolic link is refused.
        """
        ...

    def free_space(self, directory: str) -> int:
        """Return the bytes that this user can still write there."""
        ...

    def sync(self, directory: str) -> None:
        """Return once every name changed in the directory before is on stable storage."""
        ...


def read_bytes(storage: Storage, offset: int, length: int) -> bytes:
    """Return file bytes, fewer where the file ends; without numpy, for headers and small files."""
    raw = bytearray(length)
    return bytes(raw[: storage.read_into(offset, raw)])
