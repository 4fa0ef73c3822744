"""Where this user's settings lie on this machine: what the user alone may write, and programs are named in."""

from __future__ import annotations

import errno
import os
import stat

from vhdkit.storage.state_folder import check_plain


def config_directory() -> str:
    """Return the directory of this user's settings; `VHDKIT_CONFIG` overrides it. It need not exist."""
    named = os.environ.get("VHDKIT_CONFIG")
    if named:
        return os.path.abspath(named)
    import platformdirs  # noqa: PLC0415 - a fifth of what `vhdkit --help` takes, and not needed by it

    return platformdirs.user_config_dir("vhdkit", appauthor=False)


def check_own(path: str) -> None:
    """Refuse a file that another user owns or may write to: it names programs that run as this user.

    Raises:
        OSError: it is one of these, or no plain file. It was not opened.

    """
    check_plain(path)
    for each in (path, os.path.dirname(path)):
        try:
            mode = os.stat(each).st_mode
        except FileNotFoundError:
            continue
        # Windows has no such bits: there the user's own folder is the protection.
        if hasattr(os, "geteuid") and mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise OSError(errno.EPERM, "other users may write to it, and it names programs that run as this one", each)
