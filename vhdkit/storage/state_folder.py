"""Where this user's state lies on this machine: small files that concern no image, and may be lost."""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.new_file import make_missing

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Storage


def state_directory() -> str:
    """Return the directory of this user's state; `VHDKIT_STATE` overrides it. It need not exist."""
    named = os.environ.get("VHDKIT_STATE")
    if named:
        return os.path.abspath(named)
    import platformdirs  # noqa: PLC0415 - a fifth of what `vhdkit --help` takes, and not needed by it

    return platformdirs.user_state_dir("vhdkit", appauthor=False)


def make_private(directory: str) -> None:
    """Make a directory that only this user may look into, if there is none."""
    os.makedirs(directory, mode=0o700, exist_ok=True)


def check_plain(path: str) -> None:
    """Refuse a file of this user's state that is a link, a pipe, a folder or a device, or belongs to another user.

    A missing one is allowed.

    Raises:
        OSError: it is one of these. It was not opened.

    """
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no plain file; remove it, or set VHDKIT_STATE to another folder", path)
    if hasattr(os, "geteuid") and found.st_uid not in {0, os.geteuid()}:
        raise OSError(errno.EPERM, "it belongs to another user; set VHDKIT_STATE to a folder of your own", path)


def open_private(path: str) -> Storage:
    """Open a file of this user's state to be written; if it is not there, it is made empty.

    Raises:
        OSError: it is no plain file of this user's, or cannot be opened.

    """
    folder = LocalFolder()
    check_plain(path)
    make_missing(folder, path, private=True)
    return folder.open(path, writable=True)


def set_aside(path: str) -> str:
    """Rename a file that cannot be read, and what SQLite keeps beside it; return its new name."""
    aside = f"{path}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    for suffix in ("-wal", "-shm", "-journal"):
        with suppress(FileNotFoundError):
            os.rename(path + suffix, aside + suffix)
    os.rename(path, aside)
    return aside
