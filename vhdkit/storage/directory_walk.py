"""Walking through the directories of this machine: without recursion, and with a `Reach` also beyond their tree.

First comes the tree of the directory that was asked for, then what its links and mounts lead to, in the order in which
they were met. A call that hangs cannot be ended from outside of it: so a mount that another machine or program has to
answer for is asked first by a thread of its own, which is left behind if no answer comes. A mount that falls silent
later than that still holds up the walk, and no bound of seconds ends that.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from vhdkit.storage import mounts
from vhdkit.storage.protocols import Entry, Walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vhdkit.storage.protocols import Reach

_Answer = TypeVar("_Answer")

# How long a mount is waited for that may be dead; one that lives answers within milliseconds, a slow link within a few.
_ANSWER_SECONDS = 5.0
# Of places that a spent search leaves out so many are named.
_NAMED = 20


class TreeWalk:
    """One walk; see `Folder.walk`."""

    def __init__(self, *, deep: bool, one_device: bool, reach: Reach | None) -> None:
        self._deep = deep
        self._one_device = one_device
        self._unlisted: dict[str, OSError] = {}
        self._reach = reach
        self._types = mounts.mount_types() if reach is not None else {}
        self._later: deque[str] = deque()

    def walk(self, directory: str) -> Walk:
        """Walk through the files in a directory, below it, and as far beyond it as the reach goes."""
        return Walk(self._entries(directory), self._unlisted)

    def _entries(self, directory: str) -> Iterator[Entry]:
        yield from self._tree(directory)
        reach = self._reach
        if reach is None:
            return
        while self._later:
            place = self._later.popleft()
            if reach.is_spent(time.monotonic()):
                left = [place, *islice(self._later, _NAMED - 1)]
                reach.unseen.update(dict.fromkeys(left, reach.why_spent()))
                return
            yield from self._follow(place, reach)

    def _follow(self, place: str, reach: Reach) -> Iterator[Entry]:
        """Yield what a link or a mount leads to."""
        try:
            real, status = self._answered(place, lambda: (os.path.realpath(place), os.stat(place)))
        except OSError as error:
            reach.unseen[place] = _reason(error)
            return
        if stat.S_ISREG(status.st_mode):
            reach.entries -= 1
            yield _entry(real, status)
        elif stat.S_ISDIR(status.st_mode) and (status.st_dev, status.st_ino) not in reach.directories:
            yield from self._tree(real, beyond=reach)

    def _tree(self, directory: str, *, beyond: Reach | None = None) -> Iterator[Entry]:
        todo = [directory]
        device: int | None = None
        while todo:
            here = todo.pop()
            try:
                status, listing = _listed(here, None if beyond is None else beyond.entries + 1)
            except OSError as error:
                self._note(here, error, beyond)
                continue
            device = status.st_dev if device is None else device
            if self._reach is not None:
                if beyond is not None and (status.st_dev, status.st_ino) in beyond.directories:
                    continue
                self._reach.directories.add((status.st_dev, status.st_ino))
            below: list[str] = []
            for entry in listing:
                if beyond is not None:
                    if beyond.is_spent(time.monotonic()):
                        beyond.unseen[here] = beyond.why_spent()
                        return
                    beyond.entries -= 1
                yield from self._looked_at(entry, device, below, beyond=beyond)
            if self._deep:
                todo += reversed(below)

    def _looked_at(
        self, entry: os.DirEntry[str], device: int, below: list[str], *, beyond: Reach | None
    ) -> Iterator[Entry]:
        """Yield an entry that is a file; put a directory where it will be looked into."""
        kind = self._types.get(entry.path)
        if kind is not None and self._reach is not None:
            # It is not asked what it is before it is known to answer.
            self._meet_mount(entry.path, kind, self._reach, below)
            return
        try:
            # scandir's own answer lacks the file's number on Windows.
            status = os.stat(entry.path, follow_symlinks=False)
        except FileNotFoundError:
            return  # it went since the directory was listed
        except OSError as error:
            # A directory that may be listed and not entered answers for none of its names.
            directory = os.path.dirname(entry.path)
            is_closed = isinstance(error, PermissionError)
            self._note(directory if is_closed else entry.path, error, beyond if is_closed else self._reach)
            return
        if stat.S_ISREG(status.st_mode):
            yield _entry(entry.path, status)
        else:
            self._put_off(entry.path, status, device, below)

    def _put_off(self, path: str, status: os.stat_result, device: int, below: list[str]) -> None:
        """Note a directory or a link to be looked into later."""
        if stat.S_ISLNK(status.st_mode):
            if self._reach is not None:
                self._later.append(path)
        elif stat.S_ISDIR(status.st_mode):
            if status.st_dev == device or not self._one_device:
                below.append(path)
            elif self._reach is not None and self._deep:
                self._later.append(path)

    def _meet_mount(self, place: str, kind: str, reach: Reach, below: list[str]) -> None:
        if not self._deep or mounts.is_made_up(kind):
            return
        if mounts.is_automounter(kind):
            reach.unseen[place] = "looking into it would mount what it stands for"
        elif self._one_device:
            self._later.append(place)
        else:
            try:
                self._answered(place, lambda: os.stat(place))
            except OSError as error:
                reach.unseen[place] = _reason(error)
            else:
                below.append(place)

    def _answered(self, place: str, ask: Callable[[], _Answer]) -> _Answer:
        """Return what a call returns; raise ETIMEDOUT if it may hang and does."""
        kind = self._types.get(place)
        if not (mounts.may_hang(kind) if kind is not None else any(map(mounts.may_hang, self._types.values()))):
            return ask()
        return _within(_ANSWER_SECONDS, place, ask)

    def _note(self, directory: str, error: OSError, beyond: Reach | None) -> None:
        if beyond is not None:
            beyond.unseen[directory] = _reason(error)
        # What a file system keeps for its own repairs holds nobody's images, and is closed to all but one.
        elif os.path.basename(directory) != "lost+found":
            self._unlisted[directory] = error


def _listed(directory: str, most: int | None) -> tuple[os.stat_result, list[os.DirEntry[str]]]:
    """Return a directory's status and its entries in a stable order, no more of them than `most`."""
    status = os.stat(directory)
    with os.scandir(directory) as listing:
        return status, sorted(islice(listing, most), key=lambda entry: entry.name)


def _entry(path: str, status: os.stat_result) -> Entry:
    return Entry(path=path, size=status.st_size, identity=(status.st_dev, status.st_ino))


def _within(seconds: float, place: str, ask: Callable[[], _Answer]) -> _Answer:
    """Return what a call returns, asked by a thread that is left behind if it takes too long."""
    answers: list[_Answer] = []
    errors: list[OSError] = []

    def run() -> None:
        try:
            answers.append(ask())
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="vhdkit-mount", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise OSError(errno.ETIMEDOUT, f"no answer within {seconds:g} seconds", place)
    return answers[0]


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
