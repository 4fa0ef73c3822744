"""The steps of what changes a machine's snapshots: files are told of before they are made, and go again if it fails."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from vhdkit.disk import timestamp
from vhdkit.errors import SnapshotError
from vhdkit.snapshot import layer_checks, new_files, transitions
from vhdkit.snapshot.cleanup import Cleanup
from vhdkit.snapshot.fingerprint import mark_of
from vhdkit.snapshot.state_files import handed_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vhdkit.journal.manifest import LayerRecord, Made, Manifest, Snapshot
    from vhdkit.snapshot.manifest_file import ManifestFile


class Discarded(NamedTuple):
    """A layer that was active, and the bytes that had been written to it."""

    path: str
    allocated_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What applying a snapshot did: the layers that are active now, disk by disk, and what is no longer.

    `discarded` are the layers that were active; `state` the files that were kept with the snapshot, or their copies
    where the machine finds them (`is_state_in_place`); `set_aside` are the new names of files that lay there.
    """

    snapshot: Snapshot
    active: tuple[str, ...]
    discarded: tuple[Discarded, ...]
    state: tuple[str, ...]
    is_state_in_place: bool = False
    set_aside: tuple[str, ...] = ()


@contextmanager
def beginning(file: ManifestFile, manifest: Manifest, made: tuple[Made, ...]) -> Iterator[None]:
    """Tell of files while they are made; if that fails they go again."""
    begun = replace(manifest, begun=(*manifest.begun, *made))
    file.write(begun)
    try:
        yield
    except BaseException:
        after = Cleanup(file, begun).sweep()
        # Where another process has changed it meanwhile, what it says now is that one's.
        with suppress(SnapshotError):
            file.write(replace(manifest, doomed=after.doomed, begun=after.begun))
        raise


def write_made(file: ManifestFile, manifest: Manifest, made: tuple[Made, ...]) -> None:
    """Write the manifest that has files which were made; where it is refused they go again.

    Raises:
        SnapshotError: another process has changed it. After an OSError it may be either the old or the new one.

    """
    try:
        file.write(manifest)
    except SnapshotError:
        before = file.read()
        known = {layer.path for disk in before.disks for layer in disk.layers}
        lost = tuple(each for each in made if each.path not in known)
        Cleanup(file, replace(before, begun=lost, doomed=())).sweep()
        raise


def take_snapshot(
    file: ManifestFile,
    manifest: Manifest,
    planned: Snapshot,
    fresh: tuple[LayerRecord, ...],
    given: Sequence[str],
    clock: Callable[[], float],
) -> Snapshot:
    """Freeze the active layers as a snapshot, and let the machine go on in new ones; return it as it was taken."""
    with new_files.held_actives(file, manifest, exclusive=False) as images:
        layer_checks.check_views(file.folder, images)
        for image in images:
            image.storage.sync()
        marks = [mark_of(image) for image in images]
        now = clock()
        made = new_files.begun_of(fresh, planned.state)
        with beginning(file, manifest, made):
            kept = new_files.keep_files(file, planned.state, given)
            new_files.make_layers(file, fresh, timestamp.from_unix(now))
        snapshot = replace(planned, taken=now, state=kept)
        after = transitions.taken(manifest, snapshot, fresh, marks)
        write_made(file, after, made)
        for index, (image, layer) in enumerate(zip(images, snapshot.layers, strict=True)):
            # A merge that has stopped may have to relink it.
            if layer not in transitions.busy(after, index):
                file.folder.protect(image.path, is_protected=True)
    return snapshot


def apply_snapshot(
    file: ManifestFile,
    manifest: Manifest,
    fresh: tuple[LayerRecord, ...],
    snapshot: Snapshot,
    state_to: str | None,
    now: float,
) -> tuple[Manifest, Applied]:
    """Let a machine go on from a snapshot in new layers; return the manifest that was written, and what was done."""
    layer_checks.check_new_files(file, manifest, fresh)
    # What is lost already is discarded by going on from a snapshot.
    with new_files.held_actives(file, manifest, exclusive=True, may_miss=True) as images:
        for disk, layer in zip(manifest.disks, snapshot.layers, strict=True):
            new_files.check_frozen(file, manifest, disk, new_files.line_to_base(disk, layer))
        with handed_back(file, manifest, snapshot, state_to) as handed:
            made = new_files.begun_of(fresh)
            with beginning(file, manifest, made):
                new_files.make_layers(file, fresh, timestamp.from_unix(now))
            after = transitions.applied(manifest, snapshot, fresh)
            discarded = tuple(Discarded(image.path, image.storage.allocated_size) for image in images)
            write_made(file, after, made)
    return after, Applied(
        snapshot=snapshot,
        active=tuple(file.absolute(layer.path) for layer in fresh),
        discarded=discarded,
        state=handed.files,
        set_aside=handed.set_aside,
        is_state_in_place=state_to is not None or manifest.state_to is not None,
    )
