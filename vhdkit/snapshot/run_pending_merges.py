"""Deferred work: recover from a power cut, delete layers that are not needed, run pending merges.

**Order** of a pending merge: 1 its files may be written, and it is planned (a cut leaves it pending; the next operation
marks them again) · 2 the manifest records it (the same) · 3 the merge, with a journal of its own (every snapshot
reads as before) · 4 its topmost source is gone, by which who reads the manifest knows that the destination has taken
its place · 5 the manifest says so, and what the files are like now · 6 they are marked read-only again.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec.structs import replace

from vhdkit.errors import ImageInUseError, VhdError
from vhdkit.findings import Advice
from vhdkit.formats import STEP_SUFFIX, finish_or_forget_step
from vhdkit.job.control import jobs
from vhdkit.job.handle import MergeJob
from vhdkit.job.registry import Registry, RegistryError
from vhdkit.job.start import run_merge, start_merge
from vhdkit.journal.merge_journal import SUFFIX as JOURNAL_SUFFIX
from vhdkit.journal.merge_journal import UnbegunJournal, find_journal
from vhdkit.merging.plan.planner import plan_merge, plan_request
from vhdkit.merging.run.engine import merge
from vhdkit.options import Follow, MergeRequest
from vhdkit.snapshot import job_follower, layer_tree, new_files, transitions
from vhdkit.snapshot.cleanup import Cleanup
from vhdkit.snapshot.fingerprint import is_relinked_only, mark_at
from vhdkit.snapshot.pending_merges import Owed, PendingMerge, PendingRemoval, complete_ones
from vhdkit.storage import paths

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from vhdkit.job.job import Job
    from vhdkit.journal.manifest import Folding, LayerRecord, Manifest
    from vhdkit.progress import Cancel, Progress
    from vhdkit.snapshot.manifest_file import ManifestFile


class Settler:
    """The deferred work of one machine's manifest; every method that changes it is called under its lock."""

    # What the process of a merge does when that is complete.
    _follow: Follow | None = Follow.SETTLE

    def __init__(self, file: ManifestFile, *, is_local: bool) -> None:
        self.file = file
        self.folder = file.folder
        self.is_local = is_local

    # What is pending

    def owed(self, manifest: Manifest) -> Owed:
        """Return what is pending, and what each removal waits for."""
        removals, foldings = transitions.owed_by(manifest)
        waiting = (
            self.file.absolute(path)
            for index, disk in enumerate(manifest.disks)
            for path in layer_tree.waiting(disk.parents, manifest.needed(index))
        )
        return Owed(
            removals=tuple(
                PendingRemoval(
                    self.file.absolute(each.layer),
                    Cleanup(self.file, manifest).why_kept(manifest.disks[index].layer(each.layer)),
                )
                for index, each in removals
            ),
            merges=tuple(
                PendingMerge(
                    tuple(map(self.file.absolute, each.fold.sources)), self.file.absolute(each.fold.destination)
                )
                for each in foldings
            ),
            waiting=tuple(waiting),
        )

    def holder(self, manifest: Manifest, *, exclusive: bool = True) -> ImageInUseError | None:
        """Return the error that holding the machine's active layers gives, None if nobody else holds them."""
        try:
            with new_files.held_actives(self.file, manifest, exclusive=exclusive, may_miss=True):
                return None
        except ImageInUseError as error:
            return error

    def is_running(self, manifest: Manifest) -> bool:
        """Whether anything but a pending merge writes to the machine's active layers."""
        # Held as a reader does: who only looks keeps nobody from starting it.
        return self.holder(manifest, exclusive=False) is not None and not self._is_own(manifest.foldings)

    # Settling

    def recover(self, manifest: Manifest) -> Manifest:
        """Settle what a cut, or a merge that is complete, has left; return what is known then."""
        before = manifest
        for folding in complete_ones(self.file, manifest):
            manifest = self._complete(manifest, folding)
        manifest = Cleanup(self.file, manifest).sweep()
        if manifest != before:
            self.file.write(manifest)
        else:
            with suppress(OSError):
                self.file.put_up_signposts(manifest)
        self._finish_steps(manifest)
        self._protect(manifest)
        return manifest

    def _finish_steps(self, manifest: Manifest) -> None:
        """Finish changes of headers that a cut has left out, and forget merges that were cut off before they began."""
        for disk in manifest.disks:
            for layer in disk.layers:
                path = self.file.absolute(layer.path)
                has_step = self.folder.exists(path + STEP_SUFFIX)
                if not (has_step or self.folder.exists(path + JOURNAL_SUFFIX)) or not self._is_it(layer):
                    continue
                with suppress(VhdError):
                    if has_step:
                        self._finish_step(path)
                    journal = find_journal(self.folder, path)
                    if isinstance(journal, UnbegunJournal):
                        self.folder.remove(journal.path)
                        self.folder.sync(paths.dirname(path))

    def _finish_step(self, path: str) -> None:
        is_marked = not self.folder.may_write(path)
        if is_marked:
            self.folder.protect(path, is_protected=False)
        try:
            with self.folder.open(path, writable=True) as storage:
                storage.lock(exclusive=True)
                finish_or_forget_step(self.folder, storage)
        finally:
            if is_marked:
                self.folder.protect(path, is_protected=True)

    def _complete(self, manifest: Manifest, folding: Folding) -> Manifest:
        """Note a merge whose topmost source is gone, and finish it if a cut left it short of its end."""
        # Only names are left to be changed: that takes no time, and nothing can be built on half of it.
        self.merge(manifest, folding)
        after = transitions.folded(manifest, folding)
        disk = after.disks[folding.disk]
        # What another merge is being done into is noted when that is done.
        busy = {after.disks[folding.disk].active, *(each.fold.destination for each in after.foldings)}
        renewed = tuple(
            self._renewed(layer, busy) if folding.fold.destination in {layer.path, layer.parent} else layer
            for layer in disk.layers
        )
        return after.with_disk(folding.disk, replace(disk, layers=renewed))

    def _renewed(self, layer: LayerRecord, busy: Collection[str]) -> LayerRecord:
        """Return a layer as it is after a merge; one that only read through it must have changed in nothing else."""
        if layer.path in busy:
            return replace(layer, mark=None)
        with suppress(FileNotFoundError):
            now, _ = mark_at(self.folder, self.file.absolute(layer.path))
            if layer.mark is None or is_relinked_only(layer.mark, now):
                return replace(layer, mark=now)
        return layer

    def _protect(self, manifest: Manifest) -> None:
        """Mark frozen layers read-only, but for those that a merge writes to."""
        for index, disk in enumerate(manifest.disks):
            busy = transitions.busy(manifest, index)
            for layer in disk.layers:
                path = self.file.absolute(layer.path)
                is_frozen = layer.mark is not None and layer.path not in busy
                if is_frozen and self.folder.exists(path) and self.folder.may_write(path) and self._is_it(layer):
                    self.folder.protect(path, is_protected=True)

    def _is_it(self, layer: LayerRecord) -> bool:
        """Whether the file that has a layer's name is that image: nothing is done to one that was only named."""
        try:
            _, unique_id = mark_at(self.folder, self.file.absolute(layer.path))
        except (VhdError, OSError):
            return False
        return unique_id == layer.unique_id

    def clear(self, manifest: Manifest) -> Manifest:
        """Remove the layers that nobody needs, as far as nothing else reads through them; return what is known then."""
        removals, _ = transitions.owed_by(manifest)
        after = manifest
        for index, each in removals:
            record = manifest.disks[index].layer(each.layer)
            if record.path in after.disks[index].children or Cleanup(self.file, manifest).why_kept(record):
                continue
            after = transitions.removed(after, index, record.path)
            # Each before the one below it: only then has that one no children on the disk.
            self.file.write(after)
            after = Cleanup(self.file, after).sweep()
        after = Cleanup(self.file, after).sweep()
        if after != manifest:
            self.file.write(after)
        return after

    def begin(self, manifest: Manifest) -> tuple[Folding, ...]:
        """Note the pending merges as begun, and let their files be written; return them.

        One that cannot be done keeps none of the others from being begun.

        Raises:
            ImageInUseError: the machine runs.
            SnapshotError: a layer was changed since it was frozen.
            VhdError, OSError: none can be begun.

        """
        manifest = self.clear(manifest)
        _, foldings = transitions.owed_by(manifest)
        if not foldings:
            return ()
        holder = self.holder(manifest)
        if holder is not None and not self._is_own(foldings):
            path = self.file.absolute(manifest.disks[0].base)
            holder.add_hint(Advice.SETTLE.hint("when it is off, {} runs the pending merges", path=path))
            raise holder
        noted = manifest.foldings
        known = set(noted)
        sound = self._sound(manifest, foldings)
        manifest = replace(manifest, foldings=(*noted, *(each for each in sound if each not in known)))
        if manifest.foldings != noted:
            self.file.write(manifest)
        for each in sound:
            self._unprotect(manifest, each)
        return tuple(sound)

    def _sound(self, manifest: Manifest, foldings: Sequence[Folding]) -> list[Folding]:
        """Return the merges that can be done.

        Raises:
            VhdError, OSError: none can.

        """
        touched = [new_files.touched_by_merges(self.file, manifest, index) for index in range(len(manifest.disks))]
        known = set(manifest.foldings)
        sound, troubles = [], []
        for each in foldings:
            try:
                self._check_sound(manifest, each, touched[each.disk])
                sound.append(each if each in known else self._feasible(manifest, each))
            except (VhdError, OSError) as error:
                troubles.append(error)
        if troubles and not sound:
            raise troubles[0]
        return sound

    def _check_sound(self, manifest: Manifest, folding: Folding, touched: frozenset[str]) -> None:
        """Refuse a merge of what was changed since it was frozen.

        Raises:
            SnapshotError: a layer was, or is not there.

        """
        disk = manifest.disks[folding.disk]
        active = self.file.absolute(disk.active)
        if disk.active in folding.fold.layers and not self.folder.exists(active):
            raise new_files.missing_active(self.file, active)
        below = sorted(transitions.reach(disk, folding.fold) - {disk.active})
        new_files.check_frozen(self.file, manifest, disk, below, touched=touched)

    def _feasible(self, manifest: Manifest, folding: Folding) -> Folding:
        """Return a merge as it is to be told of as begun, if it has no obstacles.

        Raises:
            VhdError, OSError: it has; its files are marked as they were.

        """
        top, into = self.file.absolute(folding.fold.top), self.file.absolute(folding.fold.destination)
        self._unprotect(manifest, folding)
        try:
            plan = plan_merge(
                top, into=into, search=self.file.search(manifest), folder=self.folder, acting_for=self.file.path
            )
            if plan.obstacles:
                raise plan.obstacles[0]
        except BaseException:
            self._protect(manifest)
            raise
        return replace(folding, is_empty=not plan.payload_bytes)

    def _unprotect(self, manifest: Manifest, folding: Folding) -> None:
        """Let the files of a merge be written."""
        for path in transitions.reach(manifest.disks[folding.disk], folding.fold):
            where = self.file.absolute(path)
            if self.folder.exists(where) and not self.folder.may_write(where):
                self.folder.protect(where, is_protected=False)

    def _is_own(self, foldings: Iterable[Folding]) -> bool:
        """Whether a job of a pending merge holds the machine's disk."""
        destinations = {self.file.absolute(each.fold.destination) for each in foldings}
        return any(job.destination in destinations for job in self._all_running())

    def merge(
        self,
        manifest: Manifest,
        folding: Folding,
        *,
        rate: int | None = None,
        parallel: int | None = None,
        progress: Callable[[Progress], None] | None = None,
        cancel: Cancel | None = None,
    ) -> None:
        """Carry out one merge here and now, or wait for whoever is at it; it may have been carried out meanwhile."""
        top, into = self.file.absolute(folding.fold.top), self.file.absolute(folding.fold.destination)
        search = self.file.search(manifest)

        def is_left() -> bool:
            return self.folder.exists(top) or find_journal(self.folder, into) is not None

        while is_left():
            running = self._running(into)
            if running is not None:
                job_follower.follow(running, progress=progress, cancel=cancel)
                continue
            try:
                request = MergeRequest(child=top, into=into, search=search, rate=rate, parallel=parallel)
                plan = plan_request(request, self.folder)
                if not self.is_local:
                    merge(plan, progress=progress, cancel=cancel, rate=rate, folder=self.folder)
                    return
                run_merge(plan, request, machine=manifest.machine, progress=progress, cancel=cancel)
            except (ImageInUseError, FileNotFoundError):
                # Another process may have been quicker, and may even be done.
                if self._running(into) is None and is_left():
                    raise

    def start(self, manifest: Manifest, folding: Folding, *, rate: int | None, parallel: int | None) -> MergeJob:
        """Begin one merge as a job in a process of its own; one that is at it already is returned instead.

        When it is complete its process settles what is left: marks, and the merges that waited for this one.
        """
        top, into = self.file.absolute(folding.fold.top), self.file.absolute(folding.fold.destination)
        running = self._running(into)
        if running is not None:
            return MergeJob(running, Registry(), "")
        if rate is None:
            rate = self._earlier_rate(into)
        return start_merge(
            top,
            into=into,
            search=self.file.search(manifest),
            rate=rate,
            parallel=parallel,
            machine=manifest.machine,
            detached=True,
            follow=self._follow,
        )

    def _earlier_rate(self, destination: str) -> int | None:
        """Return the most bytes a second that the merge into an image was told when it was begun."""
        with suppress(RegistryError):
            for job in reversed(jobs(finished=True, disk=destination)):
                if job.destination == destination and job.state.is_resumable:
                    return job.request.rate
        return None

    def _running(self, destination: str) -> Job | None:
        """Return the job that is merging into an image, or waits for its turn; None if none does."""
        return next((job for job in self._all_running() if job.destination == destination), None)

    def _all_running(self) -> tuple[Job, ...]:
        if self.is_local:
            with suppress(RegistryError):
                return tuple(jobs(running=True))
        return ()
