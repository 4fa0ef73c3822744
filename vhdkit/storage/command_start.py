"""Starting a user's program without waiting for it."""

from __future__ import annotations

import subprocess
import tempfile
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def start_command(words: Sequence[str], given: bytes) -> None:
    """Start a program, without a shell, and give it bytes on its stdin; it outlives this process.

    Raises:
        OSError: there is no such program, or it may not be started.

    """
    # A file and no pipe: a program that reads nothing blocks no writer.
    with tempfile.TemporaryFile() as stdin:
        stdin.write(given)
        stdin.flush()
        stdin.seek(0)
        process = subprocess.Popen(  # noqa: S603 - what the user has written down, and no shell
            list(words), stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
    # When it ends it must be waited for, or it stays in the system's list of processes.
    threading.Thread(target=process.wait, name="vhdkit-command", daemon=True).start()
