"""A service for machines that others start: merges run while a machine is off, and stop when something opens its disk.

**Order** of a turn, for each machine: 1 if merges of its run, they stop if the active layer was opened · 2
else, if merges are pending and the active layer has been free for some seconds, they are begun, each as a job of its
own.

A merge holds the files that it works on, so that a hypervisor which locks its disk is refused while one runs. That it
tried is seen all the same: the active layer was opened for writing and closed. The merges stop within a second, what
they have done is kept, and the disk is left free long enough to try again. One that locks nothing is seen by the file
that stays open.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum, unique
from typing import TYPE_CHECKING, NamedTuple

from vhdkit.errors import VhdError
from vhdkit.job.job import JobState
from vhdkit.journal.manifest_pointer import MANIFEST_SUFFIX
from vhdkit.progress import Phase
from vhdkit.snapshot.known_machines import known_machines
from vhdkit.snapshot.machine import Machine
from vhdkit.storage import paths
from vhdkit.storage.open_watch import OpenWatch, is_open_elsewhere, open_watch
from vhdkit.storage.process import this_process

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vhdkit.job.handle import MergeJob
    from vhdkit.job.job import Job
    from vhdkit.progress import Cancel

# A disk that is free for so long is not just between two attempts to start a machine.
QUIET_SECONDS = 10.0
_TURN_SECONDS = 0.2
# Who only looks at a disk has closed it by then.
_GLANCE_SECONDS = 0.4
# Manifests change seldom; each look at one opens the active layers.
_LOOK_SECONDS = 1.0
# A merge stops between two writes; one whose disk hangs is not waited for.
_STOP_SECONDS = 10.0


@unique
class WatchEvent(StrEnum):
    """What the watch has to say of a merge or a machine."""

    BEGUN = "begun"
    STOPPED = "stopped"
    ENDED = "ended"
    POSTPONED = "postponed"


class Watched(NamedTuple):
    """A machine, what has become of it, and why."""

    event: WatchEvent
    machine: str
    job: Job | None
    reason: str


@dataclass(slots=True)
class _Watch:
    """One machine as the watch knows it: since when its disk is free, and the merges that run."""

    path: str
    name: str
    free_since: float = 0.0
    next_look: float = 0.0
    running: list[MergeJob] = field(default_factory=list)
    actives: tuple[str, ...] = ()
    was_copying: bool = False
    opened_since: float | None = None
    postponed: str = ""


class MachineWatch:
    """Watches machines until it is stopped.

    `disks` are any files of them; without any it is every machine whose snapshots this user keeps, also those that are
    added. `quiet` is for how many seconds a disk must be free before its merges begin.
    """

    def __init__(
        self,
        disks: Sequence[str] = (),
        *,
        quiet: float = QUIET_SECONDS,
        rate: int | None = None,
        parallel: int | None = None,
        tell: Callable[[Watched], None] = lambda _: None,
        opens: OpenWatch | None = None,
    ) -> None:
        self._quiet = quiet
        self._rate = rate
        self._parallel = parallel
        self._tell = tell
        self._opens = opens or open_watch()
        self._are_all = not disks
        self._next_search = 0.0
        # Free until seen otherwise: the service may have been started after the machine was shut down.
        self._machines = {path: _watch_of(path) for path in (Machine(disk).file.path for disk in disks)}

    def run(self, cancel: Cancel, *, until_done: bool = False) -> None:
        """Watch until `cancel` is set, or with `until_done` until nothing is pending; then stop what was begun."""
        try:
            while not cancel.is_set() and self.take_turn(until_done=until_done):
                self._opens.wait(_TURN_SECONDS)
        finally:
            for watch in self._machines.values():
                with suppress(VhdError, OSError):
                    self._stop(watch, "the watch ends")
            self._opens.close()

    def take_turn(self, *, until_done: bool = False) -> bool:
        """Look at each machine once; return whether anything is left to wait for, which with `until_done` is merges."""
        now = time.monotonic()
        if self._are_all and now >= self._next_search:
            self._next_search = now + _LOOK_SECONDS
            for path in known_machines():
                self._machines.setdefault(path, _watch_of(path))
        is_left = False
        for watch in self._machines.values():
            try:
                is_left |= self._look_at(watch, now)
            except (VhdError, OSError) as error:
                # What keeps it may go away: it is reported once, and tried again.
                self._postpone(watch, str(error))
        return is_left or not until_done

    def _look_at(self, watch: _Watch, now: float) -> bool:
        """Look at one machine; return whether merges of its run or are pending."""
        if watch.running:
            self._note_ended(watch)
            reason = self._opened(watch, now)
            if reason:
                self._stop(watch, reason)
                watch.free_since = now
            if watch.running:
                return True
            self._forget_actives(watch)
            watch.next_look = 0.0
        if now < watch.next_look:
            return True
        watch.next_look = now + _LOOK_SECONDS
        machine = Machine(watch.path)
        watch.name = machine.name
        if machine.owed().is_nothing:
            return False
        if machine.is_running():
            watch.free_since = now
            self._postpone(watch, "the machine runs")
        elif now - watch.free_since >= self._quiet:
            self._begin(watch, machine)
        return True

    def _begin(self, watch: _Watch, machine: Machine) -> None:
        # Somebody may have opened them just before they are watched.
        watch.actives, watch.was_copying, watch.opened_since = machine.active, False, time.monotonic()
        for active in watch.actives:
            with suppress(OSError):
                self._opens.watch(active)
        try:
            begun = machine.start_settling(rate=self._rate, parallel=self._parallel)
        except BaseException:
            watch.free_since = time.monotonic()
            self._forget_actives(watch)
            raise
        watch.postponed, watch.running = "", list(begun)
        for each in begun:
            self._tell(Watched(WatchEvent.BEGUN, watch.name, each.job, ""))

    def _postpone(self, watch: _Watch, reason: str) -> None:
        if watch.postponed != reason:
            watch.postponed = reason
            self._tell(Watched(WatchEvent.POSTPONED, watch.name, None, reason))

    def _note_ended(self, watch: _Watch) -> None:
        for each in [each for each in watch.running if each.job.state.is_finished]:
            watch.running.remove(each)
            ended = each.job
            self._tell(Watched(WatchEvent.ENDED, watch.name, ended, ended.error or ended.state.plain))
            # Another has stopped it, perhaps to start the machine.
            if ended.state.is_resumable:
                watch.free_since = time.monotonic()

    def _opened(self, watch: _Watch, now: float) -> str:
        """Return how another process has opened the active layers while merges copy, "" if none has."""
        working = [each.job for each in watch.running if each.job.state is not JobState.NEW]
        # When a merge begins and ends it opens and closes the layers itself.
        is_copying = bool(working) and all(job.phase == Phase.COPYING for job in working)
        counts, watch.was_copying = is_copying and watch.was_copying, is_copying
        seen = {active: self._opens.take(active) for active in watch.actives}
        if counts and any(each.is_closed_by_writer for each in seen.values()):
            return "another process has opened its disk for writing"
        is_opened = any(each.is_opened for each in seen.values())
        return "another process has opened its disk" if self._stays_open(watch, now, is_opened=is_opened) else ""

    def _stays_open(self, watch: _Watch, now: float, *, is_opened: bool) -> bool:
        """Whether an active layer that was opened a while ago is open still, in another process."""
        if watch.opened_since is None:
            watch.opened_since = now if is_opened else None
        if watch.opened_since is None or now - watch.opened_since < _GLANCE_SECONDS:
            return False
        watch.opened_since = None
        own = {this_process()[0], *(each.job.pid for each in watch.running)}
        return any(is_open_elsewhere(active, own) for active in watch.actives)

    def _stop(self, watch: _Watch, reason: str) -> None:
        """Stop the merges of a machine; one that only changes names ends by itself."""
        for each in watch.running:
            each.cancel()
        for each in list(watch.running):
            try:
                stopped = each.wait(_STOP_SECONDS)
            except TimeoutError:
                # It waits for a disk that hangs, and stops when that goes on.
                continue
            watch.running.remove(each)
            is_complete = stopped.state is JobState.COMPLETED
            event = WatchEvent.ENDED if is_complete else WatchEvent.STOPPED
            self._tell(Watched(event, watch.name, stopped, stopped.state.plain if is_complete else reason))
        watch.opened_since = None

    def _forget_actives(self, watch: _Watch) -> None:
        for active in watch.actives:
            self._opens.forget(active)


def _watch_of(manifest: str) -> _Watch:
    return _Watch(manifest, paths.basename(manifest).removesuffix(MANIFEST_SUFFIX))
