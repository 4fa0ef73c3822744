"""A local file by the calls that every system has."""

from __future__ import annotations

import math
import os
from threading import Lock
from typing import TYPE_CHECKING

from vhdkit.storage.file_copy import (
    CALL_BYTES,
    copy_one_by_one,
    copy_through_memory,
)
from vhdkit.storage.file_errors import naming_file
from vhdkit.storage.local_file import PIECE_BYTES, FileStorage
from vhdkit.storage.locks import whole_lock
from vhdkit.storage.read_many import read_one_by_one

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from vhdkit.storage.protocols import Storage


class PortableStorage(FileStorage):
    """The same by seek, read and write under a lock."""

    _new_lock = staticmethod(whole_lock)

    def __init__(self, descriptor: int, path: str, *, writable: bool) -> None:
        self._lock = Lock()
        super().__init__(descriptor, path, writable=writable)

    @naming_file
    def read_into(self, offset: int, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        done = 0
        with self._lock:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            while done < len(view):
                piece = os.read(self._descriptor, min(len(view) - done, PIECE_BYTES))
                if not piece:
                    break
                view[done : done + len(piece)] = piece
                done += len(piece)
        return done

    def read_many_into(self, offsets: Sequence[int], buffers: Sequence[memoryview]) -> list[int]:
        return read_one_by_one(self, offsets, buffers)

    @naming_file
    def write_at(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        done = 0
        with self._lock:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            while done < len(view):
                done += os.write(self._descriptor, view[done : done + CALL_BYTES])

    @naming_file
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
