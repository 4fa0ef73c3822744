"""A machine's disks and the tree of its snapshots: take, apply, delete, and let the merges follow.

    machine = Machine("xp.vhd")
    machine.take("SP1")
    machine.apply("RTM")
    machine.delete("SP1")
    machine.settle()            # runs the merges that deletions leave

Each operation that changes something holds the manifest's lock, settles first what a cut has left, and has one instant
at which it has happened: when the new manifest gets its name. Before it, the new files are known as begun; after it,
those that are no longer needed are known as doomed.

**Order** of taking and applying: 1 the manifest tells of the files to be made (a cut leaves the machine as it was, and
the next operation removes them) · 2 the files, each whole and durable under its name (the same) · 3 the manifest with
the snapshot, or with the new active layers (as it is to be) · 4 the frozen layers are marked read-only.
"""

from __future__ import annotations

import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from vhdkit.arguments import checked
from vhdkit.chain.chain import open_chain
from vhdkit.errors import ReadOnlyImageError, SnapshotError, VhdError
from vhdkit.findings import Advice
from vhdkit.journal.manifest import Snapshot
from vhdkit.snapshot import check, export, layer_checks, new_files, start_gate, transitions
from vhdkit.snapshot.adopt import adopt
from vhdkit.snapshot.find_manifest import find_manifest
from vhdkit.snapshot.operation import Applied, apply_snapshot, take_snapshot
from vhdkit.snapshot.pending_merges import effective
from vhdkit.snapshot.run_pending_merges import Settler
from vhdkit.snapshot.stable_read import rested, seen_twice
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.units import as_text, as_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vhdkit.chain.chain import Chain
    from vhdkit.job.handle import MergeJob
    from vhdkit.job.job import Job
    from vhdkit.journal.manifest import Manifest
    from vhdkit.progress import Cancel, Progress
    from vhdkit.snapshot.pending_merges import Owed
    from vhdkit.snapshot.remark import Remark
    from vhdkit.storage.protocols import Folder
    from vhdkit.units import StrPath

T = TypeVar("T")


class Machine:
    """The machine that a disk is of: named by any of its files.

    Raises:
        SnapshotError: no manifest tells of the file.

    """

    @checked
    def __init__(
        self,
        path: StrPath,
        *,
        folder: Folder | None = None,
        clock: Callable[[], float] = time.time,
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        self.folder = folder or LocalFolder()
        self._is_local = folder is None
        self._clock = clock
        self._new_id = new_id
        self.file = find_manifest(self.folder, as_text(path))

    def __repr__(self) -> str:
        """Return where its manifest is."""
        return f"<Machine {self.file.path}>"

    @classmethod
    @checked
    def adopt(
        cls,
        disks: Sequence[StrPath],
        *,
        machine: str = "",
        directory: StrPath | None = None,
        search: Sequence[StrPath] = (),
        folder: Folder | None = None,
    ) -> Machine:
        """Begin to keep snapshots of a machine with these disks, or bring what is known of it up to date.

        Each disk is named by any of its images; see `adopt.adopt`.
        """
        path = adopt(
            as_texts(disks), machine=machine, directory=as_text(directory), search=as_texts(search), folder=folder
        )
        return cls(path, folder=folder)

    # Asking

    @property
    def manifest(self) -> Manifest:
        """What is known of it now; a merge that is complete is taken into account."""
        return effective(self.file, self.file.read())

    def steadily(self, ask: Callable[[Manifest], T]) -> T:
        """Return what `ask` makes of the manifest and its files, asked again if they became others meanwhile.

        Raises:
            ImageInUseError: they never rest.
            VhdError, OSError: what `ask` raises while they rest.

        """
        return rested(ask, lambda: self.manifest)

    @property
    def name(self) -> str:
        """The machine's name."""
        return self.manifest.machine

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """Its snapshots, oldest first."""
        return self.manifest.snapshots

    @property
    def active(self) -> tuple[str, ...]:
        """The layers that it writes to, disk by disk."""
        return tuple(self.file.absolute(disk.active) for disk in self.manifest.disks)

    @checked
    def layers_of(self, name: str) -> tuple[str, ...]:
        """Return the images that show a snapshot, disk by disk."""
        return tuple(map(self.file.absolute, self.manifest.find(name).layers))

    def owed(self) -> Owed:
        """Return what deletions leave to do: pending merges and removals."""
        return self._settler().owed(self.manifest)

    def is_running(self) -> bool:
        """Whether somebody else than a merge of its own holds a layer that the machine writes to."""
        return self._settler().is_running(self.manifest)

    @checked
    def check(self, *, search: Sequence[StrPath] = (), accept: bool = False) -> tuple[Remark, ...]:
        """Return what is wrong, odd or left over; with `accept` frozen layers are taken as they are now, first.

        Images that no tree claims are looked for beside the layers, and in the folders of `search`.
        """
        if accept:
            with self._changing() as (_, manifest):
                self.file.write(check.accepted(self.file, manifest))
        folders = as_texts(search)
        # In memory nobody is at work beside.
        return seen_twice(lambda: self._look(folders), self.file.read) if self._is_local else self._look(folders)

    def _look(self, search: Sequence[str]) -> tuple[Remark, ...]:
        noted = self.file.read()
        manifest = effective(self.file, noted)
        return check.inspect(self.file, manifest, noted, self._settler().owed(manifest), search)

    @checked
    def export(
        self,
        name: str,
        directory: StrPath,
        *,
        chain: bool = False,
        progress: Callable[[Progress], None] | None = None,
        cancel: Cancel | None = None,
    ) -> tuple[str, ...]:
        """Write a snapshot's disks and kept files into a directory, which is made if need be; return the files.

        Each disk becomes one that needs no other, or with `chain` the layers are copied as they are.

        Raises:
            SnapshotError: there is no such snapshot, or one of its layers was changed since it was frozen.
            FileExistsError: a file of that name is there already.
            Cancelled: it was stopped. What was written is gone again.

        """
        manifest, where = self.manifest, as_text(directory)
        snapshot = manifest.find(name)
        return export.export(self.file, manifest, snapshot, where, chain=chain, progress=progress, cancel=cancel)

    @checked
    def make_way(self, *, yield_merges: bool = False) -> tuple[Job, ...]:
        """Make sure that the machine can start now; with `yield_merges` merges at its disks stop, and are returned.

        What they have done so far is kept: `settle` goes on with them.

        Raises:
            ImageInUseError: the machine runs already, or a merge is at its disk.
            SnapshotError: a layer that it reads through was changed since it was frozen.

        """
        manifest = self.manifest
        layer_checks.check_below(self.file, manifest)
        return start_gate.make_way(self.active, self.file.search(manifest), yield_merges=yield_merges)

    @contextmanager
    @checked
    def running(self, *, yield_merges: bool = False) -> Iterator[tuple[Job, ...]]:
        """Let the machine be known as running, when `make_way` has made sure that it can; lend the merges stopped.

        Meanwhile its snapshots can be neither taken nor applied, and merges wait, even if what runs it locks nothing.

        Raises:
            ImageInUseError, SnapshotError: as `make_way`.

        """
        with self.file.running():
            yield self.make_way(yield_merges=yield_merges)

    @checked
    def open_chain(self, name: str | None = None, *, disk: int = 0, writable: bool = False) -> Chain:
        """Open a disk as a snapshot shows it, or as the machine has it now, which alone can be written.

        Raises:
            ReadOnlyImageError: a snapshot is to be written.
            VhdError, OSError: as `vhdkit.open_chain`.

        """
        path = self.active[disk] if name is None else self.layers_of(name)[disk]
        if name is not None and writable:
            raise ReadOnlyImageError(f"it is frozen, as snapshot {name}; apply that to go on from it", path=path)
        return open_chain(path, writable=writable, search=self.file.search(self.manifest), folder=self.folder)

    # Changing

    @checked
    def take(
        self, name: str, *, note: str = "", state: Sequence[StrPath] = (), directory: StrPath | None = None
    ) -> Snapshot:
        """Freeze the disks as they are under a name; the machine goes on in new layers.

        `state` are files that are kept with it, as they are now. New layers are made in `directory`, or where the
        machine's are made. The machine must not run.

        Raises:
            SnapshotError: the name is taken, or is none; or a layer was changed since it was frozen.
            ImageInUseError: the machine runs.

        """
        directory, given = as_text(directory), as_texts(state)
        self._name(directory)
        with self._changing() as (_, manifest):
            transitions.check_name(manifest, name)
            layer_checks.check_below(self.file, manifest)
            layer_checks.check_no_undo(self.file, manifest)
            layer_checks.check_may_freeze(self.file, manifest)
            snapshot_id = str(self._new_id()).upper()
            actives = tuple(disk.active for disk in manifest.disks)
            kept = new_files.named_state(self.file, manifest, snapshot_id, given)
            fresh = new_files.named_layers(self.file, manifest, actives, self._new_id, directory)
            layer_checks.check_new_files(self.file, manifest, fresh, kept, given)
            planned = Snapshot(
                id=snapshot_id, name=name, note=note, taken=0.0, parent=manifest.now, layers=actives, state=kept
            )
            return take_snapshot(self.file, manifest, planned, fresh, given, self._clock)

    @checked
    def apply(self, name: str, *, state_to: StrPath | None = None, directory: StrPath | None = None) -> Applied:
        """Let the machine go on from a snapshot; what was written since the last one is discarded, unless it was taken.

        With `state_to`, copies of the files that are kept with the snapshot are put into that folder; `directory` is as
        in `take`.

        Raises:
            SnapshotError: there is no such snapshot, or one of its layers was changed since it was frozen.
            ImageInUseError: the machine runs.

        """
        directory = as_text(directory)
        self._name(directory)
        with self._changing() as (settler, manifest):
            snapshot = manifest.find(name)
            return self._apply(settler, manifest, snapshot, as_text(state_to), directory)

    @checked
    def revert(self, *, state_to: StrPath | None = None, directory: StrPath | None = None) -> Applied:
        """Let the machine go on from the snapshot that its present state began with.

        Raises:
            SnapshotError: it began with none.

        """
        directory = as_text(directory)
        self._name(directory)
        with self._changing() as (settler, manifest):
            snapshot = manifest.by_id(manifest.now)
            if snapshot is None:
                hint = Advice.APPLY_ANY.hint("{} names one", path=self.file.path)
                raise SnapshotError("there is no snapshot above now", hint=hint)
            return self._apply(settler, manifest, snapshot, as_text(state_to), directory)

    def _apply(
        self, settler: Settler, manifest: Manifest, snapshot: Snapshot, state_to: str | None, directory: str | None
    ) -> Applied:
        layer_checks.check_no_undo(self.file, manifest)
        layer_checks.check_may_discard(self.file, manifest)
        fresh = new_files.named_layers(self.file, manifest, snapshot.layers, self._new_id, directory)
        after, applied = apply_snapshot(self.file, manifest, fresh, snapshot, state_to, self._clock())
        settler.clear(after)
        return applied

    @checked
    def delete(self, name: str, *, subtree: bool = False) -> tuple[Snapshot, ...]:
        """Take a snapshot away, or with `subtree` all that came after it as well; return those that are gone.

        Layers that are no longer needed are removed; the merges that are pending then are for `settle`.
        """
        with self._changing() as (settler, manifest):
            snapshot = manifest.find(name)
            gone = transitions.subtree(manifest, snapshot) if subtree else (snapshot,)
            after = transitions.deleted(manifest, {each.id for each in gone})
            self.file.write(after)
            settler.clear(after)
        return gone

    @checked
    def rename(self, name: str, new_name: str, *, note: str | None = None) -> Snapshot:
        """Give a snapshot another name, and another note unless that is None."""
        with self._changing() as (_, manifest):
            snapshot = manifest.find(name)
            if new_name != snapshot.name:
                transitions.check_name(manifest, new_name)
            after = transitions.renamed(manifest, snapshot, new_name, note)
            self.file.write(after)
        found = after.by_id(snapshot.id)
        return found if found is not None else snapshot

    @checked
    def settle(
        self,
        *,
        rate: int | None = None,
        parallel: int | None = None,
        progress: Callable[[Progress], None] | None = None,
        cancel: Cancel | None = None,
    ) -> Owed:
        """Carry out what is pending, here and now; return what still is, such as what waits for a sibling.

        A merge that another process is at is waited for.

        Raises:
            ImageInUseError: the machine runs: what is pending waits until it is off. Or a merge is paused.
            SnapshotError: a layer was changed since it was frozen.
            MergeError, OSError: a merge failed; everything reads as before, and the next settling goes on with it.

        """
        while True:
            with self._changing() as (settler, manifest):
                foldings = settler.begin(manifest)
            if not foldings:
                return self.owed()
            for folding in foldings:
                settler.merge(self.manifest, folding, rate=rate, parallel=parallel, progress=progress, cancel=cancel)

    @checked
    def start_settling(self, *, rate: int | None = None, parallel: int | None = None) -> tuple[MergeJob, ...]:
        """Start the pending merges as jobs in processes of their own, and return them; see `settle`.

        What is left when they are complete (marks, and merges that waited for these) their processes do then; where
        that cannot be, as when the machine runs meanwhile, the next operation does it.
        """
        with self._changing() as (settler, manifest):
            started: list[MergeJob] = []
            troubles: list[VhdError | OSError] = []
            for folding in settler.begin(manifest):
                try:
                    started.append(settler.start(manifest, folding, rate=rate, parallel=parallel))
                except (VhdError, OSError) as error:
                    troubles.append(error)
            if troubles and not started:
                raise troubles[0]
            return tuple(started)

    # Beneath

    @contextmanager
    def _changing(self) -> Iterator[tuple[Settler, Manifest]]:
        """Lock the manifest, settle what a cut or a merge has left, and lend the settler and the manifest."""
        settler = self._settler()
        with self.file.locked():
            yield settler, settler.recover(self.file.read())

    def _name(self, directory: str | None) -> None:
        """Let files of the machine lie in a folder that the user has named."""
        if directory is not None:
            self.file.named.add(self.folder.real(directory))

    def _settler(self) -> Settler:
        return Settler(self.file, is_local=self._is_local)
