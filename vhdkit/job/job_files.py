"""What becomes the fields of a job: the files that its merge touches, the machine they are of, and what went wrong."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vhdkit.errors import JobError, MergeError, VhdError, error_text
from vhdkit.journal.merge_journal import journal_path
from vhdkit.storage import paths
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.process import birth_of, this_process, user_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vhdkit.job.job import Job
    from vhdkit.merging.plan.plan import LayerState, MergePlan


# What Hyper-V puts behind a machine's name in those of its snapshots' files.
_GUID = re.compile(r"_[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$", re.IGNORECASE)


def machine_of(base: str) -> str:
    """Return the name of the machine that a disk is of, as far as its base's name says.

    >>> machine_of("/vms/Virtual Hard Disks/web01.vhd"), machine_of("xp_3A7F2C10-5D0E-4B7B-9C55-0D1E6A3B9F42.avhd")
    ('web01', 'xp')
    """
    return _GUID.sub("", paths.splitext(paths.basename(base))[0])


def of_this_process(job: Job) -> Job:
    """Return a job as this process's own."""
    pid, host = this_process()
    return replace(job, pid=pid, born=birth_of(pid), host=host, user=user_name())


def touched(plan: MergePlan) -> dict[str, Any]:
    """Return the fields of a job that say which files its merge touches."""
    undo = plan.undo_path
    relinked = [relink.child for relink in (*plan.relinks, *plan.sibling_relinks)]
    below = [layer.path for layer in plan.layers]
    sources = () if plan.is_new_file else plan.sources
    written = dict.fromkeys([*sources, plan.destination, *filter(None, [undo]), *relinked])
    return {
        "sources": plan.sources,
        "destination": plan.destination,
        "undo": undo,
        "files": tuple(dict.fromkeys([*written, *plan.sources, *below])),
        "written": tuple(written),
        "identities": identities_of(plan.layers),
    }


def identities_of(layers: Sequence[LayerState]) -> dict[str, str]:
    """Return the unique ids of images by their paths."""
    return {layer.path: layer.unique_id.hex() for layer in layers if layer.unique_id}


def error_fields(error: BaseException) -> dict[str, Any]:
    """Return the fields of a job that say what went wrong."""
    notes = " ".join(getattr(error, "__notes__", []))
    code: int | None = error.windows_code if isinstance(error, VhdError) else None
    return {
        "error": error_text(error) + (f" {notes}" if notes else ""),
        "error_class": type(error).__name__,
        "error_code": code or 0,
    }


def check_same(job: Job, identities: Mapping[str, str]) -> None:
    """Hold the images that have the names now against those that a job was begun with.

    Raises:
        JobError: another image has the name of one.

    """
    for path, unique_id in identities.items():
        if job.identities.get(path, unique_id) != unique_id:
            message = "another image has its name since the job was begun; merge that on its own if it is to be merged"
            raise JobError(message, path=path)


def may_be_outdated(error: MergeError, plan: MergePlan) -> bool:
    """Whether a plan was refused because the files changed since it was made: nothing was written by it."""
    return type(error) is MergeError and not LocalFolder().exists(journal_path(plan.destination))


def gone(job: Job, error: FileNotFoundError) -> Exception:
    """Return what to say of a file that is not there: those that a job was begun with were there then."""
    if error.filename not in job.files:
        return error
    message = "it is no longer there: since this job was begun another merge has removed it, or somebody has moved it"
    return JobError(message, path=str(error.filename))
