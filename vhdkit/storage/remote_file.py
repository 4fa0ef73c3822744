"""A file of another machine that is only read: in blocks, which are kept as long as there is room."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, NoReturn

from vhdkit.storage.handle import Handle
from vhdkit.storage.remote_paths import refusal_to_write
from vhdkit.storage.transports import transport_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from vhdkit.errors import ReadOnlyImageError
    from vhdkit.storage.protocols import Storage, Syncing
    from vhdkit.storage.remote_paths import RemotePlace

BLOCK_BYTES = 16 << 10
# Of all remote files together.
MOST_CACHED_BYTES = 64 << 20
# Gaps of up to `_GAP_BLOCKS` are requested with what is around them; no request has more than `_MOST_BLOCKS`.
_GAP_BLOCKS = 4
_MOST_BLOCKS = 256
# What a file begins and ends with, read when it is opened: headers, the table of a disk of 24 GiB, and footers.
_HEAD_BLOCKS, _TAIL_BLOCKS = 4, 1
# How far a read that goes on where the last one has ended reads ahead.
_AHEAD_BLOCKS = 64


class BlockCache:
    """Blocks of files by (file, number); the least recently used go where there is no more room."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._blocks: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()

    def get(self, file: int, number: int) -> bytes | None:
        """Return a block, or None if it is not kept."""
        with self._lock:
            found = self._blocks.get((file, number))
            if found is not None:
                self._blocks.move_to_end((file, number))
            return found

    def put(self, file: int, number: int, block: bytes) -> None:
        """Keep a block."""
        with self._lock:
            earlier = self._blocks.pop((file, number), b"")
            self._blocks[file, number] = block
            self._total += len(block) - len(earlier)
            while self._total > self._most:
                _, dropped = self._blocks.popitem(last=False)
                self._total -= len(dropped)

    def drop(self, file: int) -> None:
        """Keep nothing of a file."""
        with self._lock:
            for key in [key for key in self._blocks if key[0] == file]:
                self._total -= len(self._blocks.pop(key))


_cache = BlockCache(MOST_CACHED_BYTES)
# What the blocks of an open file are kept under; no other file ever gets it, as it may get an object's place in memory.
_numbers = itertools.count()


def remote_identity(place: RemotePlace) -> tuple[int, int]:
    """Return the machine and the file, by their names."""
    names = (f"{place.scheme}://{place.authority}", place.path)
    digests = (hashlib.sha256(os.fsencode(name)).digest()[:8] for name in names)
    machine, file = (int.from_bytes(digest, "big") for digest in digests)
    return machine, file


class RemoteStorage(Handle):
    """An open remote file; see `Storage`. What it was when it was opened it is until it is closed, or an error."""

    def __init__(self, place: RemotePlace) -> None:
        self._place = place
        self._transport = transport_for(place.scheme)
        self._version = self._transport.version(place)
        self._last = 0
        self._number = next(_numbers)
        self._identity = remote_identity(place)
        count = self._block_count
        self._fetch([*range(min(count, _HEAD_BLOCKS)), *range(max(_HEAD_BLOCKS, count - _TAIL_BLOCKS), count)])

    @property
    def path(self) -> str:
        """The rooted path (see `remote_paths`)."""
        return self._place.rooted

    @property
    def identity(self) -> tuple[int, int]:
        """The machine and the file, by their names."""
        return self._identity

    @property
    def writable(self) -> bool:
        """Never."""
        return False

    @property
    def link_count(self) -> int:
        """One."""
        return 1

    @property
    def mtime(self) -> float:
        """The date that the server has for it; 0.0 if none."""
        return self._version.mtime

    @property
    def ctime(self) -> float:
        """Unknown."""
        return 0.0

    @property
    def owner(self) -> int:
        """Unknown."""
        return 0

    @property
    def allocated_size(self) -> int:
        """Its length."""
        return self._version.size

    @property
    def is_protected(self) -> bool:
        """Always: it is only read."""
        return True

    def size(self) -> int:
        """Return the length."""
        self.check_open()
        return self._version.size

    @property
    def _block_count(self) -> int:
        return -(-self._version.size // BLOCK_BYTES)

    def read_into(self, offset: int, buffer: Buffer) -> int:
        """Fill the buffer; return the bytes read."""
        return self.read_many_into([offset], [memoryview(buffer).cast("B")])[0]

    def read_many_into(self, offsets: Sequence[int], buffers: Sequence[memoryview]) -> list[int]:
        """Fill buffers with ranges, whose missing blocks are asked for together."""
        self.check_open()
        counts = [
            max(0, min(len(buffer), self._version.size - offset))
            for offset, buffer in zip(offsets, buffers, strict=True)
        ]
        wanted: dict[int, None] = {}
        for offset, count in zip(offsets, counts, strict=True):
            if count:
                wanted.update(dict.fromkeys(range(offset // BLOCK_BYTES, (offset + count - 1) // BLOCK_BYTES + 1)))
        blocks = self._blocks(list(wanted), goes_on=len(offsets) == 1 and offsets[0] == self._last)
        for offset, buffer, count in zip(offsets, buffers, counts, strict=True):
            _fill(blocks, offset, buffer, count)
        if offsets:
            self._last = offsets[-1] + counts[-1]
        return counts

    def prefetch(self, offsets: Sequence[int], length: int) -> None:
        """Ask together for the blocks of ranges that will be read, as far as they fit beside what is kept."""
        self.check_open()
        wanted = {
            number
            for offset in offsets
            for number in range(offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES + 1)
            if number < self._block_count and _cache.get(self._number, number) is None
        }
        self._fetch(sorted(wanted)[: MOST_CACHED_BYTES // BLOCK_BYTES // 2])

    def _blocks(self, numbers: list[int], *, goes_on: bool) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        missing = []
        for number in numbers:
            block = _cache.get(self._number, number)
            if block is None:
                missing.append(number)
            else:
                found[number] = block
        if missing:
            if goes_on:
                missing += range(missing[-1] + 1, min(self._block_count, missing[-1] + 1 + _AHEAD_BLOCKS))
            found |= self._fetch(missing)
        return found

    def _fetch(self, numbers: list[int]) -> dict[int, bytes]:
        """Ask for blocks, ascending, in few requests at one time."""
        groups: list[list[int]] = []
        for number in numbers:
            if groups and number - groups[-1][1] <= _GAP_BLOCKS and number - groups[-1][0] < _MOST_BLOCKS:
                groups[-1][1] = number
            else:
                groups.append([number, number])
        ranges = [(first * BLOCK_BYTES, min(self._version.size, (last + 1) * BLOCK_BYTES)) for first, last in groups]
        found: dict[int, bytes] = {}
        if ranges:
            for (start, _), body in zip(
                ranges, self._transport.ranges(self._place, self._version, ranges), strict=True
            ):
                for at in range(0, len(body), BLOCK_BYTES):
                    number = (start + at) // BLOCK_BYTES
                    found[number] = body[at : at + BLOCK_BYTES]
                    _cache.put(self._number, number, found[number])
        return found

    def hole_bytes(self, _offset: int, _length: int) -> int:
        """Return 0: holes are not known from here."""
        return 0

    def lock(self, *, exclusive: bool) -> None:
        """Hold nothing: there are no locks from here; that the file stays what it is each request checks."""
        if exclusive:
            raise self._refusal()

    def forget(self, _offset: int, _length: int) -> None:
        """Do nothing: there is little."""

    def write_at(self, _offset: int, _buffer: Buffer) -> NoReturn:
        """Refuse to write."""
        raise self._refusal()

    def copy_from(self, _source: Storage, _source_offset: int, _offset: int, _length: int) -> NoReturn:
        """Refuse to write."""
        raise self._refusal()

    def copy_many_from(self, *_arguments: object, **_named: object) -> NoReturn:
        """Refuse to write."""
        raise self._refusal()

    def reserve(self, _offset: int, _length: int) -> NoReturn:
        """Refuse to write."""
        raise self._refusal()

    def truncate(self, _size: int) -> NoReturn:
        """Refuse to write."""
        raise self._refusal()

    def sync(self) -> None:
        """Do nothing: nothing was written."""

    def begin_sync(self) -> Syncing:
        """Refuse: nothing is written here."""
        raise self._refusal()

    def begin_close(self) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Keep nothing of it any more."""
        if not self._closed:
            self._closed = True
            _cache.drop(self._number)
            self._transport.release(self._place, self._version)

    def _refusal(self) -> ReadOnlyImageError:
        return refusal_to_write(self._place)


def _fill(blocks: dict[int, bytes], offset: int, buffer: memoryview, count: int) -> None:
    done = 0
    while done < count:
        number, inner = divmod(offset + done, BLOCK_BYTES)
        part = blocks[number][inner : inner + count - done]
        if not part:
            raise OSError(errno.EIO, "a block is shorter than it was")
        buffer[done : done + len(part)] = part
        done += len(part)
