"""What each job has said, kept in a file of its own beside the list: for `job log`.

One JSON object a line, as `events.JsonLines` writes it. Like the list it may be lost, and no merge waits for it.
"""

from __future__ import annotations

import re
from contextlib import suppress

from vhdkit.storage import paths
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.protocols import read_bytes
from vhdkit.storage.state_folder import check_plain, make_private, open_private, state_directory

_FOLDER = "logs"
_ID = re.compile(r"[0-9a-f-]{1,36}")
# A job says a dozen things, and again in each of its runs; what errors say may be long.
_MOST_BYTES = 4 << 20


def append_line(job_id: str, line: str) -> None:
    """Append a line to the log of a job; one that cannot be kept is lost."""
    path = _path_of(job_id)
    if path is None:
        return
    with suppress(OSError, ValueError):
        make_private(state_directory())
        make_private(paths.dirname(path))
        with open_private(path) as storage:
            if storage.size() < _MOST_BYTES:
                storage.write_at(storage.size(), f"{line}\n".encode())


def read_job_log(job_id: str) -> tuple[str, ...]:
    """Return the lines of a job's log, oldest first; none if there is no log.

    Raises:
        OSError: it cannot be read, or is no plain file of this user.

    """
    folder, path = LocalFolder(), _path_of(job_id)
    if path is None or not folder.exists(path):
        return ()
    check_plain(path)
    with folder.open(path) as storage:
        raw = read_bytes(storage, 0, min(storage.size(), 2 * _MOST_BYTES))
    return tuple(raw.decode("utf-8", "backslashreplace").splitlines())


def remove_log(job_id: str) -> None:
    """Remove what a job has said."""
    path = _path_of(job_id)
    with suppress(OSError):
        if path is not None:
            LocalFolder().remove(path)


def _path_of(job_id: str) -> str | None:
    return paths.join(state_directory(), _FOLDER, f"{job_id}.jsonl") if _ID.fullmatch(job_id) else None
