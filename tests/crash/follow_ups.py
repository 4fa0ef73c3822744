"""What people try after files were put back: every verb that may go on with a merge, or begin another one.

Each returns what it has done, which is what the laws need to know (tests/crash/restored_laws.py).
"""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from unittest import mock

import vhdkit
from tests.crash.programs import FOLDER, UNDO
from tests.crash.readers import images_of, vhdkit_view
from tests.crashfs import SECTOR
from vhdkit.storage.protocols import Folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.crash.programs import CrashProgram


class Files(Folder, Protocol):
    """A folder whose files can all be had at once."""

    def contents(self) -> dict[str, bytes]:
        """Return every file's bytes by its path."""
        ...


NEW, OTHER_UNDO = f"{FOLDER}/new.avhd", f"{FOLDER}/other-undo.avhd"
_WRITTEN = b"new leaf".ljust(SECTOR, b"!")


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """It said that an image is merged into another."""

    top: str
    destination: str


@dataclass(frozen=True, slots=True)
class RolledBack:
    """It said that every layer reads as before the merge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """It has read images; those that it refused to read have None."""

    views: dict[str, bytes | None] = field(default_factory=dict)


Done = Merged | RolledBack | Read


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowUp:
    """A verb with its options. `prepare` changes the disk before it, as the user does who then calls it."""

    name: str
    do: Callable[[CrashProgram, Files], Done]
    prepare: Callable[[CrashProgram, Files], None] | None = None
    for_undo: bool = False
    for_levels: int = 1


@contextmanager
def _new_ids() -> Iterator[None]:
    """Let new ids be others than those of the first run."""
    numbers = iter(range(1, 1 << 20))
    ids = mock.patch("uuid.uuid4", side_effect=lambda: uuid.UUID(int=next(numbers) << 96))
    with ids, mock.patch("time.time", return_value=1.7e9):
        yield


def _merge(folder: Files, top: str, into: str | None, **options: Any) -> Merged:
    with _new_ids():
        plan = vhdkit.plan_merge(top, into=into, folder=folder, **options)
        vhdkit.merge(plan, folder=folder)
    return Merged(top=top, destination=plan.destination)


def _same(program: CrashProgram, folder: Files) -> Done:
    return _merge(
        folder,
        program.top,
        program.destination,
        keep_sources=program.merge.keep,
        undo=UNDO if program.undo else None,
        verify=program.verify,
        relink_siblings=program.relink_siblings,
    )


def _resume(program: CrashProgram, folder: Files) -> Done:
    return _merge(folder, program.top, None, resume=True)


def _keep_and_verify(program: CrashProgram, folder: Files) -> Done:
    return _merge(folder, program.top, program.destination, keep_sources=True, verify=True)


def _with_another_undo(program: CrashProgram, folder: Files) -> Done:
    return _merge(folder, program.top, program.destination, undo=OTHER_UNDO)


def _lowest(program: CrashProgram, folder: Files) -> Done:
    return _merge(folder, program.sources[-1], program.destination)


def _further_down(program: CrashProgram, folder: Files) -> Done:
    return _merge(folder, program.top, program.paths[-1])


def _roll_back(_program: CrashProgram, folder: Files) -> Done:
    with _new_ids():
        vhdkit.rollback(UNDO, folder=folder)
    return RolledBack()


def _drop(program: CrashProgram, folder: Files) -> Done:
    with _new_ids():
        vhdkit.drop_undo(UNDO, keep_file=program.relink_siblings, folder=folder)
    return Merged(top=program.top, destination=program.destination)


def _make_leaf(program: CrashProgram, folder: Files) -> None:
    parent = program.paths[0] if folder.exists(program.paths[0]) else program.destination
    vhdkit.create_image(NEW, parent=parent, stamp=9, unique_id=b"vhdkit-new-leaf.", folder=folder)
    with vhdkit.open_chain(NEW, writable=True, folder=folder) as chain:
        chain.write(0, _WRITTEN)


def _new_leaf(program: CrashProgram, folder: Files) -> Done:
    return _merge(folder, NEW, program.destination)


def _read(_program: CrashProgram, folder: Files) -> Done:
    views: dict[str, bytes | None] = {}
    for path in images_of(folder.contents()):
        try:
            views[path] = vhdkit_view(folder, path)
        except (vhdkit.VhdError, OSError):
            views[path] = None
    return Read(views=views)


FOLLOW_UPS = (
    FollowUp(name="read", do=_read),
    FollowUp(name="same", do=_same),
    FollowUp(name="resume", do=_resume),
    FollowUp(name="kept and verified", do=_keep_and_verify),
    FollowUp(name="another undo image", do=_with_another_undo),
    FollowUp(name="the lowest source", do=_lowest, for_levels=2),
    FollowUp(name="into the base", do=_further_down),
    FollowUp(name="roll-back", do=_roll_back, for_undo=True),
    FollowUp(name="drop", do=_drop, for_undo=True),
    FollowUp(name="new leaf", do=_new_leaf, prepare=_make_leaf),
)


def follow_ups(program: CrashProgram) -> list[FollowUp]:
    """Return those that make sense for a program."""
    return [
        each
        for each in FOLLOW_UPS
        if (program.undo or not each.for_undo)
        and len(program.sources) >= each.for_levels
        and (program.below or each.name != "into the base")
    ]
