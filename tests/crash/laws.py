"""What must hold of every disk that a cut merge leaves.

`broken` yields what does not, in words; nothing means that all laws hold:

 1 every image opens in vhdkit, which finishes a header that is torn or, where nothing may be written, reads through it;
   and passes the independent judge and vhdkit's own deep check, which finds no error;
 2 the topmost source and all images that are not merged read as before, in vhdkit and in the independent reader; where
   the topmost source is gone, the destination reads as it did; what lies below the destination is as it was; and every
   sector of the destination reads as before the merge or as after it, nothing else (its own view is hidden while the
   sources are linked, so no reader would notice, but whoever opens it alone must not find rubbish); an undo image
   shows the destination as it was before, and where there is none yet, the destination still does;
 3 the merge runs again to its end, and 1 and 2 hold then, the sources gone unless they are kept; with `same_bytes` all
   files are byte for byte what an uncut merge makes (but journals and marks of ended views, which keep times, and the
   undo image, which may be longer: its view counts), and with `nothing_left` no other file is there.

What is excused, exactly and counted:

 - a dynamic header of which one sector is new and one old (with `heals_headers` only until vhdkit has opened it);
 - a file whose length has survived without the footer at its end, as long as its footer copy serves;
 - what the judge found wrong with the file before the merge;
 - in the undo image: data in sectors whose bits are still clear, of a block that it has already;
 - in the destination, while the topmost source hides it: data in sectors whose bits are still clear; and if it grows,
   blocks past its old end, and a footer and copy, both valid, of which one has the new size already.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import vhdkit
from tests.crash.acts import run
from tests.crash.programs import UNDO
from tests.crash.readers import differs, images_of, judged, parsed, plain_view, vhdkit_view
from tests.crashfs import SECTOR, CrashFolder
from tests.plainvhd import FormatError, PlainImage
from vhdkit.journal.ended_view import SUFFIX as ENDED
from vhdkit.journal.merge_journal import SUFFIX as JOURNAL
from vhdkit.vhd.header_update import SUFFIX as STEP
from vhdkit.vhd.open_image import open_image

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from tests.crash.programs import CrashProgram
    from tests.crash.survivals import Survival

NOW = 1.7e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Which laws are asked for that only an engine with a journal can keep."""

    same_bytes: bool = True
    nothing_left: bool = True
    heals_headers: bool = True


@dataclass(slots=True, kw_only=True)
class Tally:
    """What was looked at, and what was excused. `disks` are the survivals that differ from each other.

    `warnings` are what vhdkit's check says of the images of those disks, and did not say before the merge.
    """

    programs: int = 0
    cuts: int = 0
    survivals: int = 0
    disks: int = 0
    resumed: int = 0
    dropped: int = 0
    rolled_back: int = 0
    faults: int = 0
    torn_headers: int = 0
    lost_footers: int = 0
    clear_bits: int = 0
    early_blocks: int = 0
    footers_apart: int = 0
    warnings: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count the other's too."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    def __str__(self) -> str:
        counts = [f"{getattr(self, item.name):,} {item.name.replace('_', ' ')}" for item in fields(self)[:-2]]
        return ", ".join([*counts, f"{len(self.findings)} findings", f"warnings {dict(self.warnings)}"])


def broken(
    program: CrashProgram,
    survival: Survival,
    finished: Mapping[str, bytes],
    *,
    rules: Rules = Rules(),
    tally: Tally | None = None,
) -> Iterator[str]:
    """Yield which laws a disk breaks; `finished` has the files after a merge that was not cut."""
    tally = tally or Tally()
    folder = survival.folder()
    torn = yield from opens(program, folder, survival, rules, tally)
    if torn and not rules.heals_headers:
        return
    yield from reads(program, folder)
    yield from mixes(program, folder.contents())
    # On the disk as it was found, and on the one that the readers have mended.
    for disk in (survival.folder(), folder) if folder.log else (survival.folder(),):
        tally.resumed += 1
        yield from resumes(program, disk, finished, rules)


def resumes(program: CrashProgram, folder: CrashFolder, finished: Mapping[str, bytes], rules: Rules) -> Iterator[str]:
    """Law 3."""
    try:
        run(program, folder)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what was found
        yield f"again: {type(error).__name__}: {error}"
        return
    yield from (f"again: {text}" for text in is_done(program, folder, finished, rules))


# Law 1


def opens(
    program: CrashProgram, folder: CrashFolder, survival: Survival, rules: Rules, tally: Tally
) -> Generator[str, None, bool]:
    """Law 1; return whether a header was found torn, which with `heals_headers` is judged after a writer's opening."""
    torn = False
    if any(path.endswith(STEP) for path in survival.files):
        yield from _reads_where_nothing_may_be_written(program, survival)
    for path, raw in images_of(survival.files).items():
        problems: Sequence[str] = judged(raw)
        # A call that failed by half leaves one as a cut does: no sector of it is lost, and a step file explains it.
        has_step = path + STEP in survival.files
        is_torn = bool(problems) and _has_torn_header(raw, survival.lost[path], has_step=has_step)
        if is_torn:
            torn = True
            tally.torn_headers += 1
            if not rules.heals_headers:
                continue
            problems = ()
        elif problems and _has_lost_footer(raw, survival.lost[path]):
            tally.lost_footers += 1
            problems = _judged_by_copy(raw)
        under_way = path == program.destination and program.top in survival.files
        problems = [text for text in problems if text not in at_first(program, path)]
        if path == UNDO:
            # What is saved into a block that the undo image has lies there before its bits do, as in the destination.
            tally.clear_bits += sum(text.endswith("(35)") for text in problems)
            problems = [text for text in problems if not text.endswith("(35)")]
        yield from (f"{path}: the judge: {text}" for text in _inexcusable(problems, program, under_way, tally))
        yield from _is_checked(program, folder, path, tally)
        try:
            vhdkit.open_chain(path, folder=folder).close()
            if is_torn:
                open_image(path, writable=True, folder=folder).close()
        except Exception as error:  # noqa: BLE001
            yield f"{path}: does not open: {type(error).__name__}: {error}"
        if is_torn:
            now = judged(bytes(folder[path].content)) if folder.exists(path) else ("it is gone",)
            yield from (f"{path}: the judge: {text}" for text in _inexcusable(now, program, under_way, tally))
    return torn


def at_first(program: CrashProgram, path: str) -> tuple[str, ...]:
    """Return what the judge finds wrong with a file before the merge."""
    return judged(program.files[path]) if path in program.files else ()


def _inexcusable(problems: Sequence[str], program: CrashProgram, under_way: bool, tally: Tally) -> Iterator[str]:
    for text in problems:
        if under_way and text.endswith("(35)"):
            tally.clear_bits += 1
        elif under_way and program.grows and text.endswith("(33)"):
            tally.early_blocks += 1
        elif under_way and program.grows and text.endswith("differ (4)"):
            tally.footers_apart += 1
        else:
            yield text


def _is_checked(program: CrashProgram, folder: CrashFolder, path: str, tally: Tally) -> Iterator[str]:
    """No error in vhdkit's own check; warnings are counted."""
    raw = bytes(folder[path].content)
    # What a cut leaves of an undo image is explained by the journal beside the destination.
    has_more = folder.exists(path + STEP) or folder.exists(path + JOURNAL) or path == UNDO
    found = _check(folder, path) if has_more else _checked(path, raw)
    before = _checked(path, program.files[path]) if path in program.files else frozenset()
    for rule, level in found - before:
        if level is vhdkit.Level.ERROR:
            yield f"{path}: check: {rule}"
        elif level is vhdkit.Level.WARNING and rule != vhdkit.Corruption.BLOCK_SIZE_UNUSUAL:
            tally.warnings[rule] += 1


@lru_cache(maxsize=4096)
def _checked(path: str, raw: bytes) -> frozenset[tuple[str, vhdkit.Level]]:
    return _check(CrashFolder({path: raw}), path)


def _check(folder: CrashFolder, path: str) -> frozenset[tuple[str, vhdkit.Level]]:
    report = vhdkit.check(path, deep=True, folder=folder, now=NOW)
    return frozenset((str(rule), level) for rule, level in report.counts)


def _reads_where_nothing_may_be_written(program: CrashProgram, survival: Survival) -> Iterator[str]:
    folder = survival.folder()
    folder.frozen = True
    views = {path: view for path, view in program.views.items() if path in survival.files}
    for path, view in views.items():
        yield from differs(path, "vhdkit, where nothing may be written,", view, partial(vhdkit_view, folder, path))
    if folder.log:
        yield "it was written where nothing may be"


def _has_torn_header(raw: bytes, lost: frozenset[int], *, has_step: bool) -> bool:
    image = parsed(raw)
    if not isinstance(image, PlainImage) or image.header is None or image.header.checksum_ok:
        return False
    first = image.footer.data_offset // SECTOR
    return has_step or bool(lost & {first, first + 1})


def _has_lost_footer(raw: bytes, lost: frozenset[int]) -> bool:
    image = parsed(raw)
    is_by_copy = isinstance(image, PlainImage) and image.footer_place == "copy"
    return is_by_copy and (len(raw) - 1) // SECTOR in lost


def _judged_by_copy(raw: bytes) -> tuple[str, ...]:
    """Judge a file as if its copy of the footer stood at its end as well."""
    end = -(-len(raw) // SECTOR) * SECTOR
    return judged(raw.ljust(end, b"\0") + raw[:SECTOR])


# Laws 2 and 3


def reads(program: CrashProgram, folder: CrashFolder) -> Iterator[str]:
    """Law 2, of what is not merged into."""
    files = folder.contents()
    views = dict(program.views)
    if program.top not in files:
        if program.merge.keep:
            yield f"{program.top}: it is gone, and was to be kept"
        views[program.destination] = views.pop(program.top)
    for path, expected in views.items():
        if path not in files:
            yield f"{path}: it is gone"
            continue
        yield from differs(path, "the independent reader", expected, partial(plain_view, files, path))
        yield from differs(path, "vhdkit", expected, partial(vhdkit_view, folder, path))
    yield from (f"{path}: it was written" for path in program.below if files.get(path) != program.files[path])


def mixes(program: CrashProgram, files: Mapping[str, bytes]) -> Iterator[str]:
    """Law 2, of the destination: its sectors are old or new; and of the undo image, which keeps the old ones."""
    after = program.views[program.top]
    before = program.old_destination.ljust(len(after), b"\0")
    try:
        found = plain_view(files, program.destination)
    except (FormatError, KeyError) as error:
        yield f"{program.destination}: {type(error).__name__}: {error}"
        return
    if len(found) not in {len(after), len(program.old_destination)}:
        yield f"{program.destination}: it is {len(found)} bytes large"
    for at in range(0, len(found), SECTOR):
        if found[at : at + SECTOR] not in {before[at : at + SECTOR], after[at : at + SECTOR]}:
            yield f"{program.destination}: sector {at // SECTOR} is neither old nor new"
            return
    if program.undo and program.top in files:
        keeper, before = UNDO if UNDO in files else program.destination, program.old_destination
        yield from differs(keeper, "the independent reader", before, partial(plain_view, files, keeper))


def is_done(program: CrashProgram, folder: CrashFolder, finished: Mapping[str, bytes], rules: Rules) -> Iterator[str]:
    """Law 3, after the second run."""
    files = folder.contents()
    for path, raw in images_of(files).items():
        yield from (f"{path}: the judge: {text}" for text in judged(raw) if text not in at_first(program, path))
    yield from reads(program, folder)
    yield from mixes(program, files)
    yield from differs(
        program.destination,
        "the independent reader",
        program.views[program.top],
        lambda: plain_view(files, program.destination),
    )
    yield from (f"{path}: it is gone" for path in finished if path not in files)
    if rules.nothing_left:
        yield from (f"{path}: it was left" for path in files if path not in finished)
    for path, raw in finished.items() if rules.same_bytes else ():
        if not path.endswith((JOURNAL, ENDED)) and path != UNDO and files.get(path, raw) != raw:
            yield f"{path}: other bytes than those of a merge that was not cut"
