"""The merges that a machine's deleted snapshots leave, as jobs that have not begun.

Each has an id of its own all the same, by which it can be shown and begun; it is made of the machine's manifest and the
merge's files, so that it is the same each time.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

from vhdkit.findings import Advice
from vhdkit.job.job import Job, JobState, Wait, WaitReason
from vhdkit.job.waiting import reason_of
from vhdkit.journal.manifest import Manifest
from vhdkit.options import Follow, MergeRequest
from vhdkit.snapshot.layer_tree import line_of
from vhdkit.snapshot.transitions import owed_by
from vhdkit.storage import paths
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.protocols import read_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vhdkit.errors import ImageInUseError
    from vhdkit.snapshot.manifest_file import ManifestFile
    from vhdkit.snapshot.pending_merges import PendingMerge


def merges_left(path: str, known: Mapping[str, Job], going: Sequence[Job]) -> list[Job]:
    """Return the pending merges of a machine as jobs, by the path of its manifest.

    Those that go on are left out; those in `known`, by their destinations, were begun once and cut off.

    Raises:
        VhdError, OSError: the manifest or an image cannot be read.

    """
    folder = LocalFolder()
    with folder.open(path) as storage:
        manifest, noted = Manifest.from_json(read_bytes(storage, 0, storage.size())), storage.mtime
    if not owed_by(manifest)[1]:
        return []
    # numpy is loaded by those that have something to look at.
    from vhdkit.snapshot.manifest_file import ManifestFile  # noqa: PLC0415
    from vhdkit.snapshot.pending_merges import effective  # noqa: PLC0415
    from vhdkit.snapshot.run_pending_merges import Settler  # noqa: PLC0415

    file = ManifestFile(folder, path, [paths.dirname(path)])
    manifest = effective(file, file.read())
    settler = Settler(file, is_local=True)
    busy = {job.destination for job in going}
    merges = [merge for merge in settler.owed(manifest).merges if merge.destination not in busy]
    if not merges:
        return []
    state, wait = _wait_of(file.absolute(manifest.disks[0].base), settler.holder(manifest))
    found = []
    for merge in merges:
        begun = known.get(merge.destination) or _listed_anew(file, manifest, merge.destination)
        if begun is not None and begun.state.is_resumable:
            reason = reason_of(begun) if wait.reason is WaitReason.NOT_BEGUN else wait.reason
            found.append(replace(begun, wait=replace(wait, reason=reason)))
        else:
            found.append(_job_of(file, manifest, merge, state, wait, noted))
    return found


def pending_id(manifest: str, sources: Sequence[str], destination: str) -> str:
    """Return the id of a merge that has not begun, by the path of its machine's manifest and the merge's files."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, "\n".join([manifest, *sources, destination])))


def _listed_anew(file: ManifestFile, manifest: Manifest, destination: str) -> Job | None:
    """Return the job of a merge that was cut off and that the list has lost, by its journal; None if there is none."""
    from vhdkit.job.recover import add_beside  # noqa: PLC0415 - where something is pending
    from vhdkit.job.registry import Registry  # noqa: PLC0415 - the same

    return add_beside(Registry(), destination, (file.directory, *file.search(manifest)))


def _wait_of(base: str, holder: ImageInUseError | None) -> tuple[JobState, Wait]:
    """Return what a machine's merges wait for: its end, or to be begun."""
    if holder is None:
        hint = Advice.SETTLE.hint("{} merges it", path=base)
        return JobState.SERVICE, Wait(reason=WaitReason.NOT_BEGUN, hint=hint)
    hint = Advice.SETTLE.hint("when it is off, {} merges it", path=base)
    return JobState.NEW, Wait(reason=WaitReason.MACHINE_RUNS, holders=holder.holders, hint=hint)


def _job_of(
    file: ManifestFile, manifest: Manifest, merge: PendingMerge, state: JobState, wait: Wait, noted: float
) -> Job:
    written = (*merge.sources, merge.destination)
    return Job(
        id=pending_id(file.path, merge.sources, merge.destination),
        state=state,
        request=MergeRequest(
            child=merge.sources[0], into=merge.destination, search=file.search(manifest), follow=Follow.SETTLE
        ),
        sources=merge.sources,
        destination=merge.destination,
        files=(*written, *_below(file, manifest, merge.destination)),
        written=written,
        machine=manifest.machine,
        submitted=noted,
        changed=noted,
        wait=wait,
    )


def _below(file: ManifestFile, manifest: Manifest, destination: str) -> tuple[str, ...]:
    """Return the layers that a layer reads through."""
    for disk in manifest.disks:
        at = next((path for path in disk.parents if file.absolute(path) == destination), None)
        if at is not None:
            return tuple(map(file.absolute, line_of(disk.parents, at)[1:]))
    return ()
