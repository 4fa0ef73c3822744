"""What must hold of every verb on a disk on which files were put back.

The law: a verb either **refuses**, with every byte of every file as it was, or **ends in right bytes**. It never says
that it is done while other bytes are there, and removes nothing that is still needed. (One file may go with a refusal:
a step file of which nothing was written to its image. Nothing needs what it says.)

What is right follows from the disk as it is found, *after* files were put back, read by the tests' own reader. A user
who puts back an older source wants that source: the merge's right result is what the chain on the disk reads as now,
whatever an earlier run had copied from the newer one. That is fair, since a merge's sources hide whatever state its
destination is in: as long as all of them are there, what the topmost reads as is well defined, and P1 promises that.

 1 *Merging* `top` into `destination`: the destination then reads as `top` did on the disk that was found, and so does
   `top` if it is still there. If `top` was gone already, "done" says that the destination has its disk: what `top` read
   as before the first run. If restoring has lost that (the destination is older than what the sources no longer hold),
   no "done" is right, and what the sources that are left hold is still needed. Once the top is gone and the journal
   says "merged", naming any of the sources finishes that merge.
 2 *Making final* (`undo drop`) says the same of the program's merge.
 3 *Rolling back*: every layer reads as its own sectors, as found, over those of the layers below it, and the
   destination as before the first run. If the destination was put back as it was yesterday, before the chain's own
   last writes, or if there was no journal, so that the merge which is rolled back began on what was found, all layers
   over that one are right as well; a mixture of the two never is. Where a layer below the
   destination was put back so, sectors that the undo image has kept are of the one below as it was. A child or a
   sibling that was put back may read as it was found to.
 4 *Everything else*, children and siblings: each reads as it was found to read, or as its own sectors over what the
   layer below it should read as: a child that restoring has harmed may be mended, and not be harmed otherwise. Layers
   below the destination keep their bytes. An undo image keeps its view or shows the destination before the first run.
 5 *The journal says "merged", and the top is gone*: the destination is the disk, and every verb keeps its view. Without
   the journal nothing on the disk says so, and a merge of what is left is what it seems to be.
 6 *Reading* writes nothing, and shows what the tests' own reader shows (which knows of no step files) or what 4
   allows, or refuses.
 7 The independent judge finds no fault in an image that it did not find before (but data under clear bits, 35).
 8 What is done with an undo image can then be rolled back or made final, by these same laws.

Needless refusals are counted by kind: the same command, though the chain on the disk could be read (and the undo image,
if there is to be one, was whole); a roll-back, though undo image, sources and journal were there, and the undo image
over the destination showed it as before; making final, though the destination read as the top. Not counted is what is
refused by design: a merge while a roll-back is under way, a roll-back while the undo image is being dropped, any other
command while one is unfinished; making an undo image that only the journal asks for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from tests.crash.follow_ups import NEW, Merged, Read, RolledBack
from tests.crash.programs import UNDO
from tests.crash.readers import images_of, judged, parsed, plain_view
from tests.crashfs import SECTOR, CrashFolder
from tests.plainvhd import FormatError, PlainImage, flat
from vhdkit.errors import VhdError
from vhdkit.journal.merge_journal import read_journal
from vhdkit.vhd.header_update import SUFFIX as STEP

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.crash.follow_ups import Done
    from tests.crash.programs import CrashProgram
    from vhdkit.journal.merge_journal import Journal

_DIGITS = re.compile(r"(0x)?[0-9a-f]*[0-9][0-9a-f]*(?!\d*\))")


@dataclass(frozen=True)
class Found:
    """A disk's files, and what they read as by the tests' own reader; None stands for what cannot be read.

    `bases` are the destination's files that "before the merge" may mean, and `origin` is what an earlier verb met,
    whose result was found.
    """

    program: CrashProgram
    files: Mapping[str, bytes]
    bases: tuple[bytes, ...] = ()
    origin: Found | None = None

    @classmethod
    def at_first(cls, program: CrashProgram, files: Mapping[str, bytes]) -> Found:
        """Return what was found after files were put back."""
        found, first = cls(program, files), program.files[program.destination]
        now, journal = found.layer(program.destination), found.journal
        is_new = journal is None
        is_whole = now is not None and (is_new or now in program.yesterday[program.destination].values())
        return cls(program, files, (first, now) if is_whole and now is not None else (first,))

    def view(self, path: str) -> bytes | None:
        """Return what an image reads as, its parents found by unique id."""
        return _view(path, frozenset(self.images.items())) if path in self.files else None

    @cached_property
    def images(self) -> dict[str, bytes]:
        """Every image's bytes."""
        return images_of(self.files)

    @cached_property
    def _by_id(self) -> dict[bytes, str]:
        return {_id(raw): path for path, raw in self.images.items()}

    def place(self, path: str) -> str:
        """Return where the program's image of that path is now, for it may have been renamed; "" if it is gone."""
        return path if path in self.files else self._by_id.get(_id(self.program.files[path]), "")

    def layer(self, path: str) -> bytes | None:
        """Return the bytes of the program's image of that path, under whatever name."""
        return self.files.get(self.place(path))

    def role(self, path: str) -> str:
        """Return the path that an image had before the first run; its own if it was not there."""
        names = {_id(raw): name for name, raw in self.program.files.items()}
        return names.get(_id(self.files[path]), path)

    def over(self, path: str, destination: bytes | None) -> bytes | None:
        """Return an image's own sectors over those of the layers that it had below it before the first run.

        `path` is the one that it had then, and `destination` stands in for the destination's file.
        """
        program = self.program
        line = _line(program, path)
        layers = [destination if each == program.destination else self.layer(each) for each in line]
        whole = tuple(layer for layer in layers if layer is not None)
        return _flat(whole) if len(whole) == len(layers) else None

    @cached_property
    def journal(self) -> Journal | None:
        """What the journal says, if there is one."""
        try:
            return read_journal(CrashFolder(self.files), self.program.destination)
        except (VhdError, OSError):
            return None


@lru_cache(maxsize=1 << 14)
def _id(raw: bytes) -> bytes:
    image = parsed(raw)
    return image.unique_id if isinstance(image, PlainImage) else b""


@lru_cache(maxsize=1 << 14)
def _view(path: str, images: frozenset[tuple[str, bytes]]) -> bytes | None:
    try:
        return plain_view(dict(images), path)
    except (FormatError, KeyError):
        return None


@lru_cache(maxsize=1 << 14)
def _flat(layers: tuple[bytes, ...]) -> bytes | None:
    images = [parsed(raw) for raw in layers]
    whole = [image for image in images if isinstance(image, PlainImage)]
    try:
        return flat(whole).tobytes() if len(whole) == len(images) else None
    except FormatError:
        return None


def _line(program: CrashProgram, path: str) -> Sequence[str]:
    """Return an image and those below it before the first run."""
    if path in program.paths:
        return program.paths[program.paths.index(path) :]
    number = list(program.files).index(path) - len(program.paths)
    return [path, *program.paths[program.branches[number].depth :]]


# Verdicts


def wrong(before: Found, after: Found, done: Done) -> Iterator[str]:
    """Yield what is wrong with what a verb says that it has done."""
    match done:
        case Read():
            yield from _read(before, done)
            return
        case Merged():
            yield from _merged(before, after, done)
        case RolledBack():
            yield from _rolled_back(before, after)
    yield from _judged(before, after)


def wrote(before: Found, after: Found) -> Iterator[str]:
    """Yield which files a refusal has changed."""
    for path in sorted({*before.files, *after.files}):
        old, new = before.files.get(path), after.files.get(path)
        if path.endswith(STEP) and new is None and _is_kept(before, after, path.removesuffix(STEP)):
            continue
        if old != new:
            what = "made" if old is None else "removed" if new is None else "changed"
            yield f"refused, and {path} was {what}"


def _is_kept(before: Found, after: Found, path: str) -> bool:
    """Whether an image is what it was, so that a step file of which nothing was written may go."""
    return after.files.get(path) == before.files.get(path) and after.view(path) == before.view(path)


def _read(before: Found, done: Read) -> Iterator[str]:
    for path, view in done.views.items():
        if view is not None and view not in _allowed(before, path):
            yield f"{_said(before, path)} reads as something else"


def _allowed(before: Found, path: str) -> set[bytes | None]:
    """Return what an image that is not merged may read as afterwards; see 4 in the module."""
    program, role = before.program, before.role(path)
    allowed = {before.view(path)}
    if role == UNDO:
        allowed |= {before.over(program.destination, base) for base in before.bases}
    elif role in program.files and role not in {program.destination, *program.sources[1:], *program.below}:
        bases = (*before.bases, before.layer(program.destination))
        allowed |= {before.over(role, base) for base in bases}
    return allowed


def _merged(before: Found, after: Found, done: Merged) -> Iterator[str]:
    program = before.program
    place = done.top if done.top in before.files else before.place(done.top)
    expected = before.view(place) if place else _ended_view(before)
    is_finished = _is_disk(before) and done.top in program.sources
    if is_finished:
        # Whichever of the sources was named, what is left of the merge was finished.
        expected = _ended_view(before)
    if after.view(done.destination) != expected:
        yield f"{_said(before, done.destination)} does not read as {_said(before, done.top)} did"
    if place in after.files and not is_finished and after.view(place) != expected:
        yield f"{_said(before, done.top)} does not read as it did"
    if _is_disk(before) and done.top != NEW and after.view(program.destination) != before.view(program.destination):
        yield "the destination was the disk, and reads otherwise"
    yield from _others(before, after, done)


def _is_disk(found: Found) -> bool:
    """Whether the topmost source has gone, and the journal says that the destination has its disk; see 5."""
    journal = found.journal
    is_merged = journal is not None and journal.merged and not journal.rolling_back
    return is_merged and not found.place(found.program.top)


def _ended_view(found: Found) -> bytes | None:
    """Return what the topmost source, which is gone, would read as over the layers that are below the destination."""
    program = found.program
    own = [program.files[path] for path in (*program.sources, program.destination)]
    below = [found.layer(path) for path in program.below]
    whole = tuple(layer for layer in (*own, *below) if layer is not None)
    return _flat(whole) if len(whole) == len(own) + len(below) else None


def _others(before: Found, after: Found, done: Merged) -> Iterator[str]:
    program, between, into = before.program, _between(before, done), before.role(done.destination)
    for path in before.images:
        role = before.role(path)
        if path not in after.files:
            if role not in {*between, UNDO}:
                yield f"{_said(before, path)} was removed"
        elif role in program.below and role != into and role not in between:
            if after.files[path] != before.files[path]:
                yield f"{_said(before, path)} was written"
        elif role not in {into, *between} and not _keeps(before, after, path):
            yield f"{_said(before, path)} reads otherwise"


def _keeps(before: Found, after: Found, path: str) -> bool:
    return before.view(path) is None or after.view(path) in _allowed(before, path)


def _between(before: Found, done: Merged) -> list[str]:
    """Return the sources of a merge."""
    paths = before.program.paths
    line = [NEW, *paths] if done.top == NEW else paths[paths.index(done.top) :]
    return list(line[: line.index(before.role(done.destination))])


def _said(found: Found, path: str) -> str:
    """Return what a file is to its program's merge."""
    program = found.program
    role = found.role(path) if path in found.images else path
    roles = {
        program.destination: "the destination",
        program.top: "the top",
        UNDO: "the undo image",
        NEW: "the new leaf",
    }
    roles |= dict.fromkeys(program.sources[1:], "a source") | dict.fromkeys(program.below, "a layer below")
    roles |= dict.fromkeys(program.paths[: program.merge.depth_from], "a child")
    for number, branch in enumerate(program.branches):
        is_child = branch.depth == program.merge.depth_from
        roles[list(program.files)[len(program.paths) + number]] = "a child" if is_child else "a sibling"
    return roles.get(role, path) + (", renamed," if role != path else "")


def _rolled_back(before: Found, after: Found) -> Iterator[str]:
    program = before.program
    yield from min((list(_not_over(before, after, base)) for base in before.bases), key=len)
    for path in before.images:
        role = before.role(path)
        if path not in after.files:
            if role != UNDO:
                yield f"{_said(before, path)} was removed"
        elif role in program.below and after.files[path] != before.files[path]:
            yield f"{_said(before, path)} was written"


def _not_over(before: Found, after: Found, base: bytes) -> Iterator[str]:
    """Yield which layers and branches do not read as they should over a destination."""
    program = before.program
    for path in program.files:
        place = after.place(path)
        if not place:
            if path in program.sources:
                yield f"{_said(before, path)} is not there, and was restored"
        elif path not in program.paths[program.merge.depth_from :] and after.view(place) == _first_view(before, place):
            continue
        elif not _is_of_either(after.view(place), before.over(path, base), _over_first(before, path, base)):
            yield f"{_said(before, path)} does not read as before the merge"


def _first_view(found: Found, path: str) -> bytes | None:
    return (found.origin or found).view(path)


def _over_first(found: Found, path: str, base: bytes) -> bytes | None:
    """Return what `Found.over` does, over the layers below the destination as they were before the first run.

    An undo image keeps what the destination showed, theirs too.
    """
    return replace(
        found, files={**found.files, **{each: found.program.files[each] for each in found.program.below}}
    ).over(path, base)


def _is_of_either(view: bytes | None, one: bytes | None, other: bytes | None) -> bool:
    """Whether each sector is that of one view or the other."""
    if view is None or one is None or other is None or not len(view) == len(one) == len(other):
        return view == one
    return all(
        view[at : at + SECTOR] in {one[at : at + SECTOR], other[at : at + SECTOR]} for at in range(0, len(view), SECTOR)
    )


def _judged(before: Found, after: Found) -> Iterator[str]:
    for path, raw in after.images.items():
        known = {*judged(before.files[path])} if path in before.files else set()
        role = after.role(path)
        known |= {*judged(before.program.files[role])} if role in before.program.files else set()
        found = [text for text in judged(raw) if text not in known and not text.endswith("(35)")]
        yield from (f"{_said(after, path)}: the judge: {_DIGITS.sub('N', text)}" for text in found)


# Refusals that were needless


def is_needless(found: Found, verb: str) -> bool:
    """Whether a verb has refused what could have been done safely; see the module."""
    program, journal = found.program, found.journal
    is_back = journal is not None and (journal.rolling_back or journal.restored)
    is_final = journal is not None and journal.dropping
    match verb:
        case "same":
            return not is_back and _may_merge(found)
        case "resume":
            is_begun = journal is not None
            # An undo image that is not there is made only where it is asked for by name.
            is_whole = UNDO in found.files or not program.undo
            return not is_back and is_begun and is_whole and _may_merge(found)
        case "roll-back":
            is_begun = journal is not None and UNDO in found.files
            is_there = all(found.layer(path) is not None for path in program.files)
            return is_begun and not is_final and is_there and _undo_is_whole(found)
        case "drop":
            view = found.view(program.top)
            is_complete = journal is not None and journal.merged and not is_back
            return is_complete and view is not None and found.view(program.destination) == view
    return False


def _may_merge(found: Found) -> bool:
    program, journal = found.program, found.journal
    if program.top in found.files:
        return found.view(program.top) is not None and _undo_is_whole(found)
    is_done = journal is not None and journal.merged and not found.place(program.top)
    return is_done and found.view(program.destination) == program.before[program.top]


def _undo_is_whole(found: Found) -> bool:
    program = found.program
    if not program.undo:
        return True
    is_begun = found.journal is not None
    if UNDO in found.files:
        # Without a journal nothing says whose it is.
        return is_begun and found.view(UNDO) == program.old_destination
    return found.view(program.destination) == program.old_destination
