"""A chain as a folder of files: what FUSE asks of it, and what it is answered.

    disk.raw              the disk
    layers/N-NAME.raw     the disk as it was at each layer; 0 is the leaf, and shows what disk.raw does
    info.json             the layers

The functions are named and called as FUSE has them; they raise OSError. Nothing here knows FUSE, or needs it.
"""

from __future__ import annotations

import errno
import json
import stat
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhdkit.chain.disk_view import DiskView
from vhdkit.chain.open_view import view_length
from vhdkit.disk.extents import Kind
from vhdkit.disk.unique_id import guid
from vhdkit.errors import VhdError
from vhdkit.storage import paths
from vhdkit.storage.process import this_user

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from vhdkit.chain.chain import Chain

DISK, LAYERS, INFO = "/disk.raw", "/layers", "/info.json"
# lseek(2) for holes, which Python has under these names on some systems only.
SEEK_DATA, SEEK_HOLE = 3, 4
_BLOCK = 4096
_SECTOR = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A file of the folder: the disk at a depth, or bytes."""

    depth: int = -1
    content: bytes = b""


class MountedChain:
    """The files of one chain, which it borrows; threads may call at once."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self.is_writable = chain.leaf.storage.writable
        self._views = [chain, *(DiskView(chain.layers[depth:]) for depth in range(1, len(chain.layers)))]
        self._sizes = [view_length(view.leaf) for view in self._views]
        names = [f"{depth}-{paths.basename(layer.path)}.raw" for depth, layer in enumerate(chain.layers)]
        self._files = {f"{LAYERS}/{name}": _File(depth=depth) for depth, name in enumerate(names)}
        self._files[DISK] = _File(depth=0)
        self._files[INFO] = _File(content=_info(chain))
        self._blocks: dict[int, int] = {}
        self._began = time.time()
        self._counting = threading.Lock()
        self._turn: AbstractContextManager[object] = threading.Lock() if self.is_writable else nullcontext()

    def changes(self, path: str) -> bool:
        """Whether a file may change while it is mounted: what does not may stay in the system's memory."""
        return self.is_writable and self._file(path).depth == 0

    def names(self, path: str) -> list[str]:
        """Return the names in a directory."""
        if path == "/":
            return [".", "..", DISK[1:], LAYERS[1:], INFO[1:]]
        if path == LAYERS:
            return [".", "..", *(paths.basename(each) for each in self._files if each.startswith(f"{LAYERS}/"))]
        raise OSError(errno.ENOTDIR, "it is no directory")

    def attributes(self, path: str) -> dict[str, int]:
        """Return the fields of stat(2); times are in nanoseconds."""
        now = int(self._began * 1e9)
        common = {"st_uid": this_user(), "st_mtime": now, "st_ctime": now, "st_atime": now}
        if path in {"/", LAYERS}:
            return common | {"st_mode": stat.S_IFDIR | 0o555, "st_nlink": 2}
        file = self._file(path)
        mode = 0o644 if self.is_writable and path == DISK else 0o444
        size = self._size(file)
        blocks = -(-size // _SECTOR) if file.depth < 0 else self._block_count(file.depth)
        mtime = now if file.depth < 0 else int(self._chain.layers[file.depth].storage.mtime * 1e9)
        own = {"st_mode": stat.S_IFREG | mode, "st_nlink": 1, "st_size": size, "st_blocks": blocks}
        return common | own | {"st_mtime": mtime, "st_blksize": _BLOCK}

    def check_open(self, path: str, *, writing: bool) -> None:
        """Refuse to open a file for writing that is only read."""
        if writing and not (self.is_writable and self._file(path).depth == 0 and path == DISK):
            raise OSError(errno.EROFS, "it is only read")
        self._file(path)

    def read_into(self, path: str, offset: int, view: memoryview) -> int:
        """Fill a view of bytes, and return how many were read: fewer at the end."""
        file = self._file(path)
        if file.depth < 0:
            part = file.content[offset : offset + len(view)]
            view[: len(part)] = part
            return len(part)
        view = view[: max(0, self._sizes[file.depth] - offset)]
        with _as_os_errors(), self._turn:
            return self._views[file.depth].read_into(offset, view) if len(view) else 0

    def write(self, path: str, offset: int, data: bytes) -> int:
        """Write into the leaf; the disk does not grow."""
        self.check_open(path, writing=True)
        room = max(0, self._sizes[0] - offset)
        if not room and data:
            raise OSError(errno.ENOSPC, "the disk ends there")
        with _as_os_errors(), self._turn:
            self._chain.write(offset, data[:room])
        self._blocks.clear()
        return min(len(data), room)

    def truncate(self, path: str, size: int) -> None:
        """Refuse another size than the disk has."""
        self.check_open(path, writing=True)
        if size != self._sizes[0]:
            raise OSError(errno.EPERM, "the disk keeps its size")

    def sync(self, path: str) -> None:
        """Make durable what was written."""
        if self.changes(path):
            with _as_os_errors(), self._turn:
                self._chain.sync()

    def seek(self, path: str, offset: int, whence: int) -> int:
        """Return where the next data or the next hole begins."""
        file = self._file(path)
        size = self._size(file)
        if whence not in {SEEK_DATA, SEEK_HOLE}:
            raise OSError(errno.EINVAL, "only data and holes are looked for")
        if not 0 <= offset < size:
            raise OSError(errno.ENXIO, "it is behind the end")
        if file.depth < 0:
            return offset if whence == SEEK_DATA else size
        with _as_os_errors(), self._turn:
            for found in self._views[file.depth].extents(offset, size - offset):
                is_wanted = (found.kind == Kind.DATA) == (whence == SEEK_DATA)
                if is_wanted.any():
                    return min(size, max(offset, int(found.start[int(is_wanted.argmax())])))
        if whence == SEEK_DATA:
            raise OSError(errno.ENXIO, "there are no more data")
        return size

    def space(self) -> dict[str, int]:
        """Return the fields of statvfs(3): a full file system of the disk's size."""
        return {"f_bsize": _BLOCK, "f_frsize": _BLOCK, "f_blocks": -(-self._sizes[0] // _BLOCK), "f_namemax": 255}

    def _file(self, path: str) -> _File:
        found = self._files.get(path)
        if found is None:
            raise OSError(errno.EISDIR if path in {"/", LAYERS} else errno.ENOENT, "there is no such file")
        return found

    def _size(self, file: _File) -> int:
        return len(file.content) if file.depth < 0 else self._sizes[file.depth]

    def _block_count(self, depth: int) -> int:
        """Return the space that the data of a view take, in sectors: worked out when it is first asked for."""
        with self._counting:
            if depth not in self._blocks:
                with _as_os_errors(), self._turn:
                    held = sum(found.of(Kind.DATA).total for found in self._views[depth].extents())
                # A file of no space at all is taken for one hole by some programs, whatever is in it.
                self._blocks[depth] = max(1, -(-held // _SECTOR))
            return self._blocks[depth]


def _info(chain: Chain) -> bytes:
    layers = [
        {
            "depth": depth,
            "filename": paths.as_given(layer.path),
            "disk-type": layer.kind.value,
            "virtual-size": layer.size,
            "unique-id": guid(layer.unique_id),
        }
        for depth, layer in enumerate(chain.layers)
    ]
    text = json.dumps({"filename": paths.as_given(chain.path), "virtual-size": chain.size, "layers": layers}, indent=2)
    return text.encode("utf-8", "backslashreplace") + b"\n"


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Let a program that reads a file see a damaged image as a medium that cannot be read."""
    try:
        yield
    except VhdError as error:
        raise OSError(errno.EIO, str(error)) from error
