"""How many merges run at once on one file system: more would only take the disk from each other.

A merge that begins locks one of a few files, its slot, in the queue folder of its file system: a directory of
this user's state that is named for the device. A lock goes with the process that holds it, so that none is
left behind, and the list of jobs is not needed. Where the directory cannot be had there is no limit. A merge that is
paused leaves its slot to others.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from vhdkit.errors import ImageInUseError
from vhdkit.storage import paths
from vhdkit.storage.handle import closing_on_error
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.state_folder import make_private, open_private

if TYPE_CHECKING:
    from vhdkit.options import MergeRequest
    from vhdkit.storage.protocols import Storage

# Two keep a disk busy while one of them plans, verifies or syncs; a third makes both slower on a spinning one.
DEFAULT_PARALLEL = 2
_FOLDER = "queues"


class MergeSlot:
    """The place of one merge among those that may run on the file system that it writes to.

    `state` is the directory of the user's state.
    """

    def __init__(self, request: MergeRequest, state: str) -> None:
        self._request = request
        self._state = state
        self._lock: Storage | None = None
        self._is_held = False

    def take(self) -> bool:
        """Take a slot unless one is held; return whether one is now, False if as many merges as may run do so."""
        if self._is_held:
            return True
        try:
            directory = _queue_folder(self._request, self._state)
            for number in range(self._request.parallel or DEFAULT_PARALLEL):
                with suppress(ImageInUseError):
                    self._lock = _locked(paths.join(directory, str(number)))
                    self._is_held = True
                    break
        except OSError:
            # Where there are no locks there is no limit.
            self._is_held = True
        return self._is_held

    def release(self) -> None:
        """Let another merge run."""
        self._is_held = False
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def device_of(path: str) -> int:
    """Return the number of the file system that a file lies on.

    Raises:
        OSError: there is no such file.

    """
    with LocalFolder().open(path) as storage:
        return storage.identity[0]


def _queue_folder(request: MergeRequest, state: str) -> str:
    # A new file has none yet, and mostly lies where its child does.
    directory = paths.join(state, _FOLDER, str(device_of(request.into or request.child)))
    for each in (state, paths.dirname(directory), directory):
        make_private(each)
    return directory


def _locked(path: str) -> Storage:
    storage = open_private(path)
    with closing_on_error(storage):
        storage.lock(exclusive=True)
    return storage
