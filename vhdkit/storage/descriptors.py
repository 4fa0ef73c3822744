"""Open files of the system as other programs get them: by their descriptors, and holes punched into them."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from functools import cache
from typing import TYPE_CHECKING

from vhdkit.storage.local_file import FileStorage

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhdkit.storage.protocols import Storage

# fallocate(2): keep the size, and give the space back.
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_CANNOT = {errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV}
_PIECE_BYTES = 1 << 20


def descriptor_of(storage: Storage) -> int | None:
    """Return the descriptor of a file whose bytes are the storage's; None if something lies over it or it is no file.

    It stays the storage's. A program that inherits it has the storage's lock as well.
    """
    if not isinstance(storage, FileStorage):
        return None
    storage.check_open()
    return storage._descriptor  # noqa: SLF001 - one room


def punch_hole(storage: Storage, offset: int, length: int) -> None:
    """Make a range of a file zeros, and give its space back where the file system can; the file keeps its length."""
    descriptor = descriptor_of(storage)
    length = min(length, storage.size() - offset)
    if length <= 0:
        return
    if descriptor is not None and _deallocate(descriptor, offset, length):
        return
    zeros = memoryview(bytes(min(length, _PIECE_BYTES)))
    for at in range(offset, offset + length, _PIECE_BYTES):
        storage.write_at(at, zeros[: offset + length - at])


def _deallocate(descriptor: int, offset: int, length: int) -> bool:
    """Give the space of a range back; return False where that cannot be had."""
    call = _fallocate()
    if call is None:
        return False
    while call(descriptor, _KEEP_SIZE | _PUNCH_HOLE, offset, length):
        error = ctypes.get_errno()
        if error in _CANNOT:
            return False
        if error != errno.EINTR:
            raise OSError(error, os.strerror(error))
    return True


@cache
def _fallocate() -> Callable[[int, int, int, int], int] | None:
    """Return fallocate, which Python has not; None where the system has not."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None, use_errno=True)
    call = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if call is None:
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    call.restype = ctypes.c_int
    found: Callable[[int, int, int, int], int] = call
    return found
