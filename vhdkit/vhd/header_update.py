"""Rewriting a dynamic header and what belongs to it, a pair of footers, or a file's end, so that no cut leaves half.

A header spans two sectors, and nothing makes a disk write both or none. So what is about to change lies in a step file
beside the image first, its bytes before and after. Whoever reads the image once some of the header is written reads it
as if the step were done, and changes nothing; whoever opens it to write finishes the step first, under the exclusive
lock.

**Order**: 1 step file, sync, folder sync (a cut leaves the old bytes, which are read) · 2 what headers refer to, sync
(old, or a mix that is read as the old) · 3 header, sync (old, new or a mix, which is read as the new) · 4 step file
removed, folder sync (new).

As long as nothing of the header is written, what it leads to is there, whatever has become of what the new one was to
lead to: a parent may have been put back from a backup. So the step is then taken back instead.

A step file is untrusted. It is believed only if it changes a header and its locators' data, and nothing else (see
`header_update_check`; of footers, `footer_update`), every sector in question is what it was before or what it is to
be, and the rest of the file is the one that the step was made for: a file that was put back from a backup is read by
its header as it is. Step files of earlier versions say nothing about the rest.

**Source**: docs/reference/vhd.md 3.4; docs/guarantees.md.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from vhdkit.corruption import Corruption
from vhdkit.errors import ImageInUseError, VhdError
from vhdkit.findings import Finding, Level
from vhdkit.journal.field_types import DigestText
from vhdkit.journal.patch import MAX_PATCHES, Patch
from vhdkit.journal.records import Record, decode_object, encode, is_believable, read_lines
from vhdkit.storage import paths
from vhdkit.storage.protocols import read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vhdkit.storage.protocols import Folder, Storage

SUFFIX = ".vhdkit-header"
# What a folder answers where nothing may be written: the step is then left to others.
_MAY_NOT = {errno.EACCES, errno.EPERM, errno.EROFS}


class StepRecord(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a step file holds: the name that its image had, and what changes in it, the header last.

    `rest` is the digest of what does not change, "" in step files of earlier versions.
    """

    image: Annotated[str, Meta(max_length=8192)] = ""
    patches: Annotated[tuple[Patch, ...], Meta(min_length=1, max_length=MAX_PATCHES)]
    rest: DigestText = ""


_DECODER = msgspec.json.Decoder(StepRecord)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a step file says about an image as it is now.

    Without `patches` there is nothing to be finished: `refusal` says why it is not believed, "" that nothing of it was
    written. If `is_taken_back`, they lead back to what was there before. `what` is what changes.
    """

    patches: tuple[Patch, ...] = ()
    refusal: str = ""
    what: str = "header"
    is_taken_back: bool = False

    def finding(self, path: str) -> Finding:
        """Return what a reader of the image says."""
        if self.refusal:
            message = (
                f"{path}{SUFFIX} is passed over, and its header is read as it is: {self.refusal}; remove that file"
            )
            message += " once the image is known to be what it should be"
            return Finding(corruption=Corruption.HEADER_UNFINISHED, path=path, message=message)
        message = f"a change of its {self.what} was cut off"
        if not self.patches:
            message += " before anything was written; it is read as it was"
        elif self.is_taken_back:
            message += " before the header was written; it is read as it was, and the next writer takes the change back"
        else:
            message += "; it is read as if it were finished, which the next writer does"
        return Finding(corruption=Corruption.HEADER_UNFINISHED, path=path, message=message, level=Level.INFO)


def apply(folder: Folder, storage: Storage, patches: Sequence[Patch]) -> None:
    """Write patches to an open image, the last of which is its header or footer copy; see the module for the order."""
    begin_step(folder, storage, patches)
    _write(storage, patches)
    forget(folder, storage.path)


def begin_step(folder: Folder, storage: Storage, patches: Sequence[Patch]) -> None:
    """Write durably what is about to change in an open image, whose earlier step is finished before."""
    # It loads numpy, which reading a header does not.
    from vhdkit.vhd.footer_update import is_of_footers, is_of_length  # noqa: PLC0415
    from vhdkit.vhd.header_update_check import rest_digest  # noqa: PLC0415

    # The file of an earlier step that was cut off may be all that the header can be read by.
    finish(folder, storage)
    forget(folder, storage.path)
    path = storage.path + SUFFIX
    record = {
        "image": paths.basename(storage.path),
        "patches": [patch.to_record() for patch in patches],
        "rest": "" if is_of_footers(patches) or is_of_length(patches) else rest_digest(storage, patches),
    }
    with folder.create(path, private=True) as step:
        step.write_at(0, encode([record]))
        step.sync()
    folder.sync(paths.dirname(path))


def read_step(folder: Folder, storage: Storage) -> Step | None:
    """Return what the step file beside an open image says, None if there is none that was begun.

    Raises:
        OSError: it cannot be read.

    """
    if not folder.exists(storage.path + SUFFIX):
        return None
    try:
        record = _record(folder, storage.path)
    except (VhdError, ValueError) as error:
        return Step(refusal=f"it is no change of a header as they are written here ({error})")
    if record is None:
        return None
    return _step_of(storage, record)


def _step_of(storage: Storage, record: StepRecord) -> Step:
    from vhdkit.vhd.footer_update import is_of_footers, is_of_length  # noqa: PLC0415 - as in begin_step

    patches = record.patches
    if is_of_footers(patches):
        return _footer_step(storage, patches)
    if is_of_length(patches):
        return _length_step(storage, patches[0])
    if not all(patch.fits(storage) for patch in patches):
        return Step(refusal="what it would change is neither as it was nor as it is to be")
    # Once it is done, durable or not, writing the same bytes again changes nothing, whatever the rest has become.
    refusal = "" if _is_done(storage, patches) else _why_not_of(storage, record)
    back = tuple(patch.reversed for patch in patches)
    if refusal or _is_done(storage, back):
        return Step(refusal=refusal)
    is_header_old = _is_done(storage, back[-1:])
    return Step(patches=back if is_header_old else patches, is_taken_back=is_header_old)


def _why_not_of(storage: Storage, record: StepRecord) -> str:
    """Return why a step cannot have been made for a file, "" if it can."""
    from vhdkit.vhd.header_update_check import is_header_change, rest_digest  # noqa: PLC0415 - as in begin_step

    if not is_header_change(storage, record.patches):
        return "it would change more than a header, or to one that is not right for this file"
    if record.rest and rest_digest(storage, record.patches) != record.rest:
        return "it was made for the file as it was at another time, or for another file"
    return ""


def _footer_step(storage: Storage, patches: Sequence[Patch]) -> Step:
    """Return what a step of a pair of footers says."""
    from vhdkit.vhd.footer_update import is_begun, is_footer_change  # noqa: PLC0415 - as in begin_step

    if not is_begun(storage, patches):
        return Step(what="footers")
    fits = all(patch.fits(storage) for patch in patches)
    if _is_done(storage, patches) or (fits and is_footer_change(storage, patches)):
        return Step(patches=tuple(patches), what="footers")
    return Step(refusal="it would change more than the copy of the footer at the file's end")


def _length_step(storage: Storage, footer: Patch) -> Step:
    """Return what a step says of a file that was to become longer."""
    from vhdkit.vhd.footer_update import is_lost_footer  # noqa: PLC0415 - as in begin_step

    if storage.size() != footer.offset + len(footer.after):
        return Step(what="length")
    if _is_done(storage, [footer]) or is_lost_footer(storage, footer):
        return Step(patches=(footer,), what="length")
    return Step(refusal="it would write more than a lost footer, as its copy has it", what="length")


def _is_done(storage: Storage, patches: Sequence[Patch]) -> bool:
    return all(read_bytes(storage, patch.offset, len(patch.after)) == patch.after for patch in patches)


def pending(folder: Folder, storage: Storage) -> tuple[Patch, ...]:
    """Return the patches of a step that was begun on an image and not finished, by which it is to be read."""
    with suppress(OSError):
        step = read_step(folder, storage)
        return step.patches if step is not None else ()
    return ()


def step_findings(folder: Folder, storage: Storage) -> tuple[Finding, ...]:
    """Return what there is to say about the step file beside an open image; nothing is changed."""
    try:
        step = read_step(folder, storage)
    except OSError as error:
        step = Step(refusal=error.strerror or str(error))
    return () if step is None else (step.finding(storage.path),)


def _is_ours(folder: Folder, path: str) -> bool:
    """Whether the step file beside an image may speak of it; another user's is neither believed nor removed."""
    with folder.open(path + SUFFIX) as step, folder.open(path) as image:
        return is_believable(step, image)


def _record(folder: Folder, path: str) -> StepRecord | None:
    """Return what a step file says, None if it was cut off before it was whole, or is another user's."""
    with folder.open(path + SUFFIX) as step, folder.open(path) as image:
        if not is_believable(step, image):
            return None
        line = next(read_lines(step), None)
        return None if line is None else decode_object(line.text, _DECODER)


def finish(folder: Folder, storage: Storage) -> bool:
    """Finish the step of an image that is open for writing and held exclusively; return whether there was one.

    One that is not believed stays, as evidence; one of which nothing was written is taken away.

    Raises:
        OSError: the step file cannot be read, or the image not be written.

    """
    step = read_step(folder, storage)
    if step is None or step.refusal:
        return False
    if step.patches:
        _write(storage, step.patches)
    forget(folder, storage.path)
    return bool(step.patches)


def finish_all(folder: Folder, directories: Iterable[str]) -> None:
    """Finish the steps of all images in directories and below them, where nobody is at it.

    An image that is relinked by half is read as if it were relinked: a run that is repeated would not look at it again.
    A step file that was cut off when nothing else was written yet is removed.
    """
    for directory in dict.fromkeys(directories):
        for entry in tuple(folder.walk(directory, one_device=True)):
            path = entry.path.removesuffix(SUFFIX)
            if path != entry.path and folder.exists(path):
                with suppress(ImageInUseError):
                    _finish_at(folder, path)


def _finish_at(folder: Folder, path: str) -> None:
    # The superuser could open what is marked read-only: a layer that others read through, say.
    if not folder.may_write(path):
        return
    try:
        storage = folder.open(path, writable=True)
    except OSError as error:
        if error.errno in _MAY_NOT:
            return
        raise
    with storage:
        storage.lock(exclusive=True)
        if storage.is_protected:
            return  # since the look above
        finish(folder, storage)
        if folder.exists(path + SUFFIX) and _is_ours(folder, path) and read_step(folder, storage) is None:
            forget(folder, path)


def _write(storage: Storage, patches: Sequence[Patch]) -> None:
    *data, header = patches
    for patch in data:
        storage.write_at(patch.offset, patch.after)
    if data:
        storage.sync()
    storage.write_at(header.offset, header.after)
    storage.sync()


def forget(folder: Folder, path: str) -> None:
    """Remove the step file of an image whose step is done, if there is one."""
    if folder.exists(path + SUFFIX):
        folder.remove(path + SUFFIX)
        folder.sync(paths.dirname(path))
