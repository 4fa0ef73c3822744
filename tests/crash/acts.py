"""What is done to the disks of a program: the merge, dropping its undo image, rolling it back; each can be repeated.

Ids and times are the same in every run, so that two runs write the same bytes.
"""

from __future__ import annotations

import uuid
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING
from unittest import mock

import vhdkit
from tests.crash.disks import Disk
from tests.crash.programs import UNDO
from tests.crashfs import CrashFolder
from vhdkit.chain import resolve_layers
from vhdkit.journal.merge_journal import journal_path
from vhdkit.merging.run import sector_copier
from vhdkit.vhd.footer import Footer
from vhdkit.vhd.header import DynamicHeader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.crash.programs import CrashProgram
    from vhdkit.merging.plan.plan import MergePlan
    from vhdkit.storage.protocols import Folder

_ID = uuid.UUID(int=0x5EED)


@contextmanager
def standing_still() -> Iterator[None]:
    """Let every new id be the same, and no time pass."""
    with mock.patch("uuid.uuid4", return_value=_ID), mock.patch("time.time", return_value=1.7e9):
        yield


@contextmanager
def remembering() -> Iterator[None]:
    """Parse no header twice: a walk meets the same few thousands of times, and construct takes half of its time."""
    with ExitStack() as stack:
        for record in (Footer, DynamicHeader):
            parse = lru_cache(maxsize=1 << 14)(record.from_bytes)
            stack.enter_context(mock.patch.object(record, "from_bytes", parse))
        yield


@contextmanager
def small_steps() -> Iterator[None]:
    """Look at a page of the disk at a time, and make a checkpoint after each: marks are of use then."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(resolve_layers, "_WINDOW_BYTES", 4096))
        for name in ("_FEW_BYTES", "_MANY_BYTES"):
            stack.enter_context(mock.patch.object(sector_copier, name, 1))
        yield


def planned(program: CrashProgram, folder: Folder) -> MergePlan:
    """Plan the program's merge."""
    return vhdkit.plan_merge(
        program.top,
        into=program.destination,
        keep_sources=program.merge.keep,
        undo=UNDO if program.undo else None,
        verify=program.verify,
        relink_siblings=program.relink_siblings,
        folder=folder,
    )


def run(program: CrashProgram, folder: Folder) -> None:
    """Do the program's merge, or what is left of it; where it has been done to its end, nothing."""
    if folder.exists(program.top) or folder.exists(journal_path(program.destination)):
        with standing_still():
            vhdkit.merge(planned(program, folder), folder=folder)


def drop(program: CrashProgram, folder: Folder) -> None:
    """Make the merge final, or what is left of that; the undo image stays for siblings that read through it."""
    if folder.exists(journal_path(program.destination)):
        with standing_still():
            vhdkit.drop_undo(UNDO, keep_file=program.relink_siblings, folder=folder)


def take_back(program: CrashProgram, folder: Folder) -> None:
    """Roll the merge back, or what is left of that."""
    if folder.exists(journal_path(program.destination)):
        with standing_still():
            vhdkit.rollback(UNDO, folder=folder)


def uncut(program: CrashProgram, *, clock: bool = False) -> CrashFolder:
    """Return the folder on which the program has run to its end, with its log."""
    folder = CrashFolder(program.files, clock=clock)
    run(program, folder)
    return folder


def merged(program: CrashProgram) -> CrashFolder:
    """Return the disk of a merge that is complete; all of it is durable."""
    return again(uncut(program))


def again(folder: CrashFolder) -> CrashFolder:
    """Return a disk as it is now, durable, and with an empty log."""
    return Disk.of(folder).folder(clock=False)
