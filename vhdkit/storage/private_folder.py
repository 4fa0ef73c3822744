"""A folder that only this user may look into, for what lives as long as a process: sockets, and what is half made."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def private_folder() -> Iterator[str]:
    """Make a folder, lend its path, and remove it with all that is in it."""
    path = tempfile.mkdtemp(prefix="vhdkit-")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def remove_socket(path: str) -> None:
    """Remove the name of a socket, if it is still there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
