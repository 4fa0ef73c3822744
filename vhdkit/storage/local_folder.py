"""The file system of this machine."""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from typing import TYPE_CHECKING

from vhdkit.storage import remote_folder
from vhdkit.storage.directory_walk import TreeWalk
from vhdkit.storage.local_file import LocalStorage, sync_descriptor
from vhdkit.storage.portable_file import PortableStorage
from vhdkit.storage.process import this_user
from vhdkit.storage.remote_paths import is_remote, remote_place

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Reach, Storage, Walk


def _allow_more_files() -> bool:
    """Raise this process's soft limit of open files to its hard one: a chain of 1,024 layers opens as many."""
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return False
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return False
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return True


def _descriptor(path: str, flags: int, dir_fd: int | None = None) -> int:
    """Open a path; if this process has too many files open, allow it more of them and try again."""
    try:
        return os.open(path, flags, dir_fd=dir_fd)
    except OSError as error:
        if error.errno != errno.EMFILE or not _allow_more_files():
            raise
        return os.open(path, flags, dir_fd=dir_fd)


class LocalFolder:
    """The file system of this machine; relative paths start at the current directory.

    A URL names a file of another machine, which is only read (see `remote_folder`).
    """

    def __init__(self, *, portable: bool = not hasattr(os, "preadv")) -> None:
        self._storage = PortableStorage if portable else LocalStorage

    def open(self, path: str, *, writable: bool = False) -> Storage:
        if is_remote(path):
            return remote_folder.open_remote(path, writable=writable)
        # Opening some devices does something; so the file is looked at first, and again once it is open.
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        flags = (os.O_RDWR if writable else os.O_RDONLY) | _OPEN_FLAGS
        descriptor = _descriptor(path, flags)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", path)
            return self._storage(descriptor, path, writable=writable)
        except BaseException:
            os.close(descriptor)
            raise

    def create(self, path: str, *, private: bool = False) -> Storage:
        if is_remote(path):
            raise OSError(errno.EROFS, "files of other machines are only read", path)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _COMMON_FLAGS
        descriptor = os.open(path, flags, 0o600 if private else 0o666)
        try:
            return self._storage(descriptor, path, writable=True)
        except BaseException:
            os.close(descriptor)
            raise

    def publish(self, temporary: str, path: str) -> None:
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:
            # No hard links here (FAT, some network shares). The name is checked and then taken: two processes
            # that publish one name in the same instant could both succeed, and the later one would stay.
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
            os.rename(temporary, path)
        else:
            os.unlink(temporary)

    def replace(self, temporary: str, path: str) -> None:
        os.replace(temporary, path)

    def remove(self, path: str) -> None:
        os.unlink(path)

    def real(self, path: str) -> str:
        if is_remote(path):
            return remote_folder.real(path)
        return os.path.realpath(path)

    def is_without_links(self, path: str, identity: tuple[int, int]) -> bool:
        if is_remote(path):
            return remote_folder.real(path) == path
        try:
            if not _CAN_STEP:
                status = os.stat(path, follow_symlinks=False)
                return os.path.realpath(path) == path and (status.st_dev, status.st_ino) == identity
            return _identity_without_links(path) == identity
        except OSError as error:
            if error.errno in _OF_THE_PROCESS:
                raise
            return False

    def display(self, path: str) -> str:
        if is_remote(path):
            return remote_place(path).url
        try:
            relative = os.path.relpath(path)
        except ValueError:  # another drive of a Windows machine
            return path
        # Seen from the root every path would merely lose its slash.
        at_root = os.path.dirname(os.getcwd()) == os.getcwd()
        return relative if len(relative) < len(path) and not at_root else path

    def exists(self, path: str) -> bool:
        if is_remote(path):
            return remote_folder.exists(path)
        return os.path.lexists(path)

    def make_directory(self, directory: str) -> None:
        if not os.path.isdir(directory):
            os.mkdir(directory)
            self.sync(os.path.dirname(os.path.abspath(directory)))

    def check_directory(self, directory: str) -> None:
        if is_remote(directory):
            remote_folder.check_listing(directory)
            return
        os.scandir(directory).close()

    def names(self, directory: str) -> tuple[str, ...]:
        if is_remote(directory):
            # Journals and manifests have no say in what is only read, and asking would be round trips for each layer.
            return ()
        try:
            return tuple(sorted(os.listdir(directory)))
        except OSError:
            return ()

    def walk(
        self,
        directory: str,
        *,
        deep: bool = True,
        one_device: bool = False,
        reach: Reach | None = None,
    ) -> Walk:
        if is_remote(directory):
            return remote_folder.walk(directory, deep=deep)
        return TreeWalk(deep=deep, one_device=one_device, reach=reach).walk(directory)

    def may_write(self, path: str) -> bool:
        if is_remote(path):
            return False
        # The superuser may write files that are marked read-only; the mark is a wish that is honoured all the same.
        return os.access(path, os.W_OK) and bool(os.stat(path).st_mode & 0o222)

    def may_remove(self, path: str) -> bool:
        if is_remote(path):
            return False
        directory = os.path.dirname(path) or "."
        above, status = os.stat(directory), os.lstat(path)
        if not os.access(directory, os.W_OK) or _flags(directory) & _APPEND_ONLY:
            return False
        is_sticky = above.st_mode & stat.S_ISVTX and this_user() not in {0, above.st_uid, status.st_uid}
        return not is_sticky and not _flags(path) & (_APPEND_ONLY | _IMMUTABLE)

    def may_protect(self, path: str) -> bool:
        is_owner = this_user() in {0, os.lstat(path).st_uid}
        return is_owner and not _flags(path) & (_APPEND_ONLY | _IMMUTABLE)

    def protect(self, path: str, *, is_protected: bool) -> None:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        mode = stat.S_IMODE(status.st_mode)
        # Whoever may read may write again, as far as new files of this process would let them.
        wanted = mode & ~0o222 if is_protected else mode | (mode >> 1 & 0o222 & ~_umask()) | stat.S_IWUSR
        if wanted == mode:
            return
        try:
            descriptor = os.open(path, os.O_RDONLY | _OPEN_FLAGS)
        except PermissionError:
            # Its owner may change the mode of a file that he may not read.
            os.chmod(path, wanted)
            return
        try:
            # Through what was opened: the name may lead elsewhere by now.
            if hasattr(os, "fchmod"):
                os.fchmod(descriptor, wanted)
            else:
                os.chmod(path, wanted)
        finally:
            os.close(descriptor)

    def free_space(self, directory: str) -> int:
        if hasattr(os, "statvfs"):
            status = os.statvfs(directory)
            return status.f_bavail * status.f_frsize
        from shutil import disk_usage  # noqa: PLC0415 - only where statvfs is missing

        return disk_usage(directory).free

    def sync(self, directory: str) -> None:
        # Windows cannot open a directory; NTFS journals names by itself.
        if os.name == "nt":
            return
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            sync_descriptor(descriptor)
        finally:
            os.close(descriptor)


def _identity_without_links(path: str) -> tuple[int, int]:
    """Return which file a path leads to from directory to directory, each held; raise OSError where one is a link."""
    *above, name = path.split("/")[1:]
    held = _descriptor("/", _STEP_FLAGS)
    try:
        for part in above:
            below = _descriptor(part, _STEP_FLAGS, dir_fd=held)
            os.close(held)
            held = below
        status = os.stat(name, dir_fd=held, follow_symlinks=False)
        return status.st_dev, status.st_ino
    finally:
        os.close(held)


def _umask() -> int:
    """Return which permissions new files of this process lack; it can only be read by being set."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _flags(path: str) -> int:
    """Return the attributes of a file that forbid changes even to its owner; 0 where there are none, or none known."""
    if fcntl is None or sys.platform != "linux":
        return 0
    try:
        descriptor = os.open(path, os.O_RDONLY | _OPEN_FLAGS)
    except OSError:
        return 0
    try:
        return int.from_bytes(fcntl.ioctl(descriptor, _GET_FLAGS, bytes(_LONG)), sys.byteorder) & 0xFFFF_FFFF
    except OSError:
        return 0
    finally:
        os.close(descriptor)


# FS_IOC_GETFLAGS, whose number has the size of a C long in it, and two of the flags.
_LONG = struct.calcsize("l")
_GET_FLAGS = 2 << 30 | _LONG << 16 | ord("f") << 8 | 1
_IMMUTABLE, _APPEND_ONLY = 0x10, 0x20

# What says nothing of the file that was asked about.
_OF_THE_PROCESS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_COMMON_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
# Without O_NONBLOCK opening a named pipe would wait for a writer for ever.
_OPEN_FLAGS = _COMMON_FLAGS | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
# Linux opens a directory as a mere place; it need not be readable for that.
_CAN_STEP = hasattr(os, "O_PATH") and os.open in os.supports_dir_fd and os.stat in os.supports_dir_fd
_STEP_FLAGS = _COMMON_FLAGS | getattr(os, "O_PATH", 0) | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
