"""Mount a chain as a folder of raw disks, by FUSE (mfusepy): see `mounted_files` for what is in it."""

from __future__ import annotations

import ctypes
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vhdkit.arguments import checked
from vhdkit.errors import ServeError
from vhdkit.extras import load_extra
from vhdkit.serve.mounted_files import MountedChain
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.process import prefer_library
from vhdkit.units import as_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from vhdkit.chain.chain import Chain
    from vhdkit.units import StrPath

EXTRA = "mount"
_LOOP_ENDED = 8
# O_WRONLY and O_RDWR, and O_TRUNC, as FUSE has them.
_WRITE_FLAGS = 0o3
_TRUNCATE_FLAG = 0o1000


@checked
def mount_chain(chain: Chain, directory: StrPath, *, mounted: Callable[[], None] | None = None) -> None:
    """Mount a chain on a directory, and return when it is unmounted: by `umount`, or by a signal that ends programs.

    `mounted` is called when the files are there. They are read-only, but for disk.raw of a chain that can be written.
    To be called by the main thread, whose signals it takes. The chain is synced before it returns.

    Raises:
        MissingExtraError: mfusepy is not installed.
        ServeError: the system has no FUSE library, or does not let this user mount here.

    """
    # The second version of FUSE, which mfusepy takes if both are there, has no question for holes.
    prefer_library("FUSE_LIBRARY_NAME", "fuse3")
    try:
        fuse = load_extra("mfusepy", EXTRA, "mounting a chain")
    except OSError as error:
        message = f"the library of FUSE cannot be had ({error}); Debian and Ubuntu have it in fuse3 and libfuse3-3"
        raise ServeError(message) from error
    path = as_text(directory)
    LocalFolder().check_directory(path)
    files = MountedChain(chain)
    # A comma would begin another option. Where this process is killed, the program that mounts for it unmounts.
    options: dict[str, Any] = {"foreground": True, "fsname": "vhdkit", "subtype": "vhdkit", "auto_unmount": True}
    if not files.is_writable:
        options["ro"] = True
    operations = _operations(files, mounted)
    with _signals_of_libfuse():
        try:
            _bridge(fuse)(operations, path, raw_fi=True, **options)
        except RuntimeError as error:
            # libfuse 3 has a status for the end by a signal as well; where nothing was mounted it says why on stderr.
            if not operations.is_mounted or error.args != (_LOOP_ENDED,):
                message = f"it cannot be mounted on {path}: FUSE has ended with status {error}"
                raise ServeError(message, path=chain.path) from error
    if files.is_writable:
        chain.sync()


def _bridge(fuse: ModuleType) -> Any:  # noqa: ANN401 - mfusepy's classes are known at run time only
    class Fuse(fuse.FUSE):  # type: ignore[name-defined,misc]
        """What mfusepy lacks: reads into the caller's memory, and holes."""

        def read(self, path: bytes, buffer: Any, size: int, offset: int, _handle: Any) -> int:  # noqa: ANN401
            memory = (ctypes.c_char * size).from_address(ctypes.addressof(buffer.contents))
            count: int = self.operations.files.read_into(_text(path), offset, memoryview(memory).cast("B"))
            return count

        def lseek(self, path: bytes, offset: int, whence: int, _handle: Any) -> int:  # noqa: ANN401
            found: int = self.operations.files.seek(_text(path), offset, whence)
            return found

    return Fuse


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


class _Operations:
    """The files as mfusepy calls for them; a function that is not here is one that FUSE says is not supported."""

    use_ns = True

    def __init__(self, files: MountedChain, mounted: Callable[[], None] | None) -> None:
        self.files = files
        self.is_mounted = False
        self._mounted = mounted

    def init(self, _path: str) -> None:
        self.is_mounted = True
        if self._mounted is not None:
            self._mounted()

    def getattr(self, path: str, _handle: object = None) -> dict[str, int]:
        return self.files.attributes(path)

    def readdir(self, path: str, _handle: object) -> list[str]:
        return self.files.names(path)

    def open(self, path: str, handle: Any) -> int:  # noqa: ANN401
        self.files.check_open(path, writing=bool(handle.flags & _WRITE_FLAGS))
        if handle.flags & _TRUNCATE_FLAG:
            self.files.truncate(path, 0)
        # What the leaf shows is under two names: the system would keep what the other one had.
        handle.direct_io = self.files.changes(path)
        handle.keep_cache = not self.files.changes(path)
        return 0

    def read(self, *_arguments: object) -> bytes:
        raise NotImplementedError  # mfusepy looks whether it is there; see `_bridge`

    def lseek(self, *_arguments: object) -> int:
        raise NotImplementedError

    def statfs(self, _path: str) -> dict[str, int]:
        return self.files.space()


class _WritableOperations(_Operations):
    """The same for a chain that can be written."""

    def write(self, path: str, data: bytes, offset: int, _handle: object) -> int:
        return self.files.write(path, offset, data)

    def truncate(self, path: str, length: int, _handle: object = None) -> int:
        self.files.truncate(path, length)
        return 0

    def fsync(self, path: str, _only_data: int, _handle: object) -> int:
        self.files.sync(path)
        return 0

    def chmod(self, *_arguments: object) -> int:
        return 0

    def utimens(self, *_arguments: object) -> int:
        return 0


def _operations(files: MountedChain, mounted: Callable[[], None] | None) -> _Operations:
    return _WritableOperations(files, mounted) if files.is_writable else _Operations(files, mounted)


@contextmanager
def _signals_of_libfuse() -> Iterator[None]:
    """Let libfuse unmount at the signals that end programs: it takes only those without a handler."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
