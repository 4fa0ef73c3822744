"""Where this user's state lies on this machine: small files that concern no image, and may be lost."""

from __future__ import annotations

import os
import time
from contextlib import suppress


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


def set_aside(path: str) -> str:
    """Rename a file that cannot be read, and what SQLite keeps beside it; return its new name."""
    aside = f"{path}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    for suffix in ("-wal", "-shm", "-journal"):
        with suppress(FileNotFoundError):
            os.rename(path + suffix, aside + suffix)
    os.rename(path, aside)
    return aside
