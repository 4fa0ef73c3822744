"""What must hold of an undo image: at every cut of its merge, of the roll-back, and of its being dropped.

1 of a merge that was cut the roll-back restores every layer's view, and leaves nothing of its own;
2 of a merge that was cut, run again, dropping the image ends as dropping it after a merge that was not cut;
3 a roll-back that was cut keeps laws 1 and 2 of `laws`; a merge is refused then; the roll-back, called again, ends
  as if it had not been cut;
4 dropping that was cut keeps them too; called again it ends as if it had not been cut, and so does the merge.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import vhdkit
from tests.crash.acts import drop, run, take_back
from tests.crash.laws import Rules, at_first, is_done, mixes, opens, reads
from tests.crash.programs import UNDO
from tests.crash.readers import differs, images_of, judged, plain_view, vhdkit_view
from vhdkit.journal.merge_journal import journal_path, read_journal
from vhdkit.vhd.header_update import SUFFIX as STEP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.crash.laws import Tally
    from tests.crash.programs import CrashProgram
    from tests.crash.survivals import Survival
    from tests.crashfs import CrashFolder
    from vhdkit.storage.protocols import Folder


def undone(program: CrashProgram, survival: Survival, dropped: Mapping[str, bytes], tally: Tally) -> Iterator[str]:
    """Yield which of 1 and 2 do not hold of a merge that was cut; `dropped` is what is left of one that was not."""
    if UNDO in survival.files:
        folder = survival.folder()
        tally.rolled_back += 1
        failed = list(_does(take_back, program, folder))
        yield from failed or (f"rolled back: {text}" for text in is_restored(program, folder))
    folder = survival.folder()
    tally.dropped += 1
    for act in (run, drop):
        failed = list(_does(act, program, folder))
        if failed:
            yield from failed
            return
    yield from (f"dropped: {text}" for text in _is(folder, dropped))


def _does(act: Callable[[CrashProgram, Folder], None], program: CrashProgram, folder: CrashFolder) -> Iterator[str]:
    try:
        act(program, folder)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what was found
        yield f"{act.__name__}: {type(error).__name__}: {error}"


def is_restored(program: CrashProgram, folder: CrashFolder) -> Iterator[str]:
    """Every layer and every branch reads as before the merge, and nothing else is there."""
    files = folder.contents()
    for path, view in program.before.items():
        if path not in files:
            yield f"{path}: it is gone"
            continue
        yield from differs(path, "the independent reader", view, partial(plain_view, files, path))
        yield from differs(path, "vhdkit", view, partial(vhdkit_view, folder, path))
    yield from (f"{path}: it was left" for path in files if path not in program.files)
    for path, raw in images_of(files).items():
        problems = [text for text in judged(raw) if text not in at_first(program, path)]
        # What was written where bits were still clear stays; nobody reads it.
        yield from (f"{path}: the judge: {text}" for text in problems if not text.endswith("(35)"))


def _is(folder: CrashFolder, expected: Mapping[str, bytes]) -> Iterator[str]:
    files = folder.contents()
    yield from (f"{path}: it is gone" for path in expected if path not in files)
    yield from (f"{path}: it was left" for path in files if path not in expected)
    same = ((path, raw) for path, raw in expected.items() if path != UNDO)
    yield from (f"{path}: other bytes" for path, raw in same if files.get(path, raw) != raw)
    if UNDO in expected and UNDO in files:
        yield from differs(UNDO, "the independent reader", plain_view(expected, UNDO), partial(plain_view, files, UNDO))


def broken_rolling_back(
    program: CrashProgram, survival: Survival, restored: Mapping[str, bytes], tally: Tally
) -> Iterator[str]:
    """Yield what does not hold of a disk on which a roll-back was cut; `restored` is what one leaves that was not."""
    folder = survival.folder()
    yield from opens(program, folder, survival, Rules(), tally)
    yield from reads(program, folder)
    yield from mixes(program, folder.contents())
    for disk in (survival.folder(), folder) if folder.log else (survival.folder(),):
        beside = journal_path(program.destination)
        journal = read_journal(disk, program.destination) if disk.exists(beside) else None
        if journal is not None and journal.rolling_back:
            yield from _is_refused(program, disk)
        tally.rolled_back += 1
        failed = list(_does(take_back, program, disk))
        yield from failed or (f"rolled back: {text}" for text in (*is_restored(program, disk), *_is(disk, restored)))


def _is_refused(program: CrashProgram, folder: CrashFolder) -> Iterator[str]:
    before = folder.contents()
    try:
        run(program, folder)
    except vhdkit.JournalError:
        after = folder.contents()
        still = {path: raw for path, raw in images_of(before).items() if path + STEP not in before}
        if any(after.get(path) != raw for path, raw in still.items()):
            yield "a merge was refused, and wrote"
    except Exception as error:  # noqa: BLE001
        yield f"a merge is to be refused with JournalError: {type(error).__name__}: {error}"
    else:
        yield "a merge was done while the roll-back was under way"


def broken_dropping(
    program: CrashProgram,
    survival: Survival,
    finished: Mapping[str, bytes],
    dropped: Mapping[str, bytes],
    tally: Tally,
) -> Iterator[str]:
    """Yield what does not hold of a disk on which dropping was cut."""
    folder = survival.folder()
    yield from opens(program, folder, survival, Rules(), tally)
    yield from reads(program, folder)
    for act in (drop, run):
        disk = survival.folder()
        beside = journal_path(program.destination)
        journal = read_journal(disk, program.destination) if disk.exists(beside) else None
        begun = journal is not None and journal.dropping
        tally.dropped += 1
        failed = list(_does(act, program, disk))
        if act is run and not begun and disk.exists(beside):
            yield from failed or (f"merged again: {text}" for text in is_done(program, disk, finished, Rules()))
        else:
            yield from failed or (f"dropped by {act.__name__}: {text}" for text in _is(disk, dropped))
