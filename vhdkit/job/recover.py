"""Finding merges that the list does not know, by the journals beside the images."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from vhdkit.errors import ImageInUseError, JournalError
from vhdkit.findings import printable
from vhdkit.job.job import Job, JobState, job_id
from vhdkit.job.job_files import machine_of
from vhdkit.job.reconcile import settled
from vhdkit.job.registry_row import encode_job
from vhdkit.job.registry_tables import leave_out
from vhdkit.journal.merge_journal import SUFFIX, read_journal
from vhdkit.journal.named_files import check_names
from vhdkit.options import MergeRequest
from vhdkit.storage import paths
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.process import birth_of, this_process

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vhdkit.job.registry import Registry
    from vhdkit.journal.merge_journal import Journal
    from vhdkit.storage.protocols import Folder


def add_found(registry: Registry, search: Sequence[str]) -> tuple[Job, ...]:
    """Add to the list the merges whose journals lie in these folders or below and that it lacks; return them.

    A journal that cannot be read, or is not believed (see `journal.merge_journal`), is left out; `vhdkit info` shows
    it. One whose numbers no job can have is left out with a warning, and one that vanishes meanwhile without.

    Raises:
        OSError: one of the folders cannot be listed.
        RegistryError: the list cannot be had.

    """
    folder = LocalFolder()
    added = []
    for directory in search:
        folder.check_directory(directory)
        for journal in _journals(folder, folder.real(directory)):
            job = _added(registry, journal, folder, search)
            if job is not None:
                added.append(job)
    return tuple(added)


def add_beside(registry: Registry, destination: str, search: Sequence[str]) -> Job | None:
    """Add to the list the merge whose journal lies beside an image, if it lacks that; return it, None if it has it.

    `search` are the folders where its layers may lie. What is left out is as in `add_found`.

    Raises:
        RegistryError: the list cannot be had.

    """
    folder = LocalFolder()
    try:
        journal = read_journal(folder, destination)
    except (JournalError, OSError):
        return None
    return None if journal is None else _added(registry, journal, folder, search)


def _added(registry: Registry, journal: Journal, folder: LocalFolder, search: Sequence[str]) -> Job | None:
    """Add the job of a journal that is believed to the list; return it, None if it is there or is none."""
    try:
        check_names(journal, folder, search)
        job = _job_of(journal, folder)
        if job is None or _is_known(registry, job):
            return None
        encode_job(job)
    except JournalError as error:
        leave_out(f"no job can be listed by a journal: {error}")
        return None
    except OSError:
        # The merge has ended while it was looked at.
        return None
    except ValueError as error:
        leave_out(f"{printable(journal.path)}: no job can be listed by this journal: {printable(str(error))}")
        return None
    registry.put(job)
    return job


def _is_known(registry: Registry, job: Job) -> bool:
    """Whether the list has a job, where it is: one whose folder was moved is listed anew."""
    known = registry.find(job.id)
    return bool(known) and (known[0].destination == job.destination or not settled(known[0]).state.is_finished)


def _journals(folder: Folder, directory: str) -> Iterator[Journal]:
    for entry in folder.walk(directory):
        destination = entry.path.removesuffix(SUFFIX)
        if destination == entry.path:
            continue
        try:
            journal = read_journal(folder, destination)
        except FileNotFoundError:
            continue
        except (JournalError, OSError) as error:
            leave_out(f"no job can be listed by a journal: {printable(str(error))}")
            continue
        if journal is not None:
            yield journal


def _job_of(journal: Journal, folder: Folder) -> Job | None:
    """Return the job that a journal tells of."""
    begin = journal.begin
    sources = tuple(journal.resolve(source.path) for source in begin.sources)
    below = tuple(journal.resolve(layer.path) for layer in begin.below)
    undo = journal.resolve(begin.undo) if begin.undo else ""
    written = (*sources, journal.destination, *([undo] if undo else []))
    state, error = _state_of(journal, folder)
    is_ours = state is JobState.RUNNING and begin.host == this_process()[1]
    storage = folder.open(journal.path)
    with closing(storage):
        changed = storage.mtime
    job = Job(
        id=job_id(begin.job),
        state=JobState.NEW,
        request=MergeRequest(
            child=sources[0],
            into=journal.destination,
            keep_sources=begin.keep_sources,
            # One that is gone, or was never made, is made for who names it alone.
            undo=undo if undo and folder.exists(undo) else None,
            relink_siblings=begin.relink_siblings,
            verify=bool(begin.view),
            # Where they lie now, wherever they were looked for when it was begun.
            search=_directories(journal.destination, (*sources, *below)),
        ),
        sources=sources,
        destination=journal.destination,
        files=(*written, *below),
        written=written,
        machine=machine_of((journal.destination, *below)[-1]),
        bytes_done=begin.payload_bytes if journal.merged else journal.bytes_done,
        bytes_total=begin.payload_bytes,
        submitted=begin.started,
        started=begin.started,
        changed=begin.started,
        elapsed=max(0.0, changed - begin.started),
        runs=1,
        pid=begin.pid,
        born=birth_of(begin.pid) if is_ours else "",
        host=begin.host,
        undo=undo,
        identities={journal.resolve(each.path): each.unique_id for each in (*begin.sources, begin.destination)},
    )
    return job.advanced(changed, state, error=error)


def _directories(destination: str, layers: Sequence[str]) -> tuple[str, ...]:
    """Return the folders that layers have to be looked for in, nothing if all are in one."""
    found = tuple(dict.fromkeys(map(paths.dirname, (*layers, destination))))
    return found if len(found) > 1 else ()


def _state_of(journal: Journal, folder: Folder) -> tuple[JobState, str]:
    """Return a merge's state, and what went wrong: who is at it holds the destination."""
    try:
        with closing(folder.open(journal.destination)) as storage:
            storage.lock(exclusive=False)
    except ImageInUseError:
        return JobState.RUNNING, ""
    except OSError as error:
        return JobState.KILLED, str(error)
    if journal.rolling_back:
        return JobState.KILLED, journal.say()
    if journal.merged and journal.begin.undo and not journal.dropping:
        return JobState.COMPLETED, ""
    stopped = {"": (JobState.KILLED, "the process that was at it has ended"), "cancelled": (JobState.TERMINATED, "")}
    return stopped.get(journal.stopped, (JobState.EXCEPTION, journal.stopped))
