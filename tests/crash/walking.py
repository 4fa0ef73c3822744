"""A walk over every disk that a cut may leave, holding the laws against each."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from tests.crash.acts import drop, merged, run, take_back, uncut
from tests.crash.laws import Rules, Tally, broken
from tests.crash.survivals import cuts
from tests.crash.undoing import broken_dropping, broken_rolling_back, undone
from tests.crashfs import CrashFolder
from tests.plainvhd import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.crash.programs import CrashProgram
    from tests.crash.survivals import Survival
    from tests.crashfs import Change
    from vhdkit.storage.protocols import Folder

    Act = Callable[[CrashProgram, Folder], None]
    Laws = Callable[[Survival, Tally], Iterator[str]]


ALL = Rules()


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How thoroughly to walk: stop after `enough` findings.

    Of the cuts a `share` is taken, drawn by seed; of the disks a share `twice` has its second run cut as well.
    Where `stale` is not said, length that survives without its data is rubbish at every other cut. Cuts before the
    change `first` are left out, and with `only_last` all but the one after the last.
    """

    seed: int = 0
    share: float = 1.0
    twice: float = 0.0
    stale: bool | None = None
    enough: int = 10
    first: int = 0
    only_last: bool = False


EVERYTHING = How()


def walk(
    program: CrashProgram,
    how: How = EVERYTHING,
    *,
    rules: Rules = ALL,
    without: frozenset[int] = frozenset(),
    action: Act = run,
) -> Tally:
    """Run a program, and hold the laws of a merge against what every cut leaves.

    `without` leaves changes out of the log, by place. `action` runs instead of the merge, and the laws are of the
    merge all the same.
    """
    folder = CrashFolder(program.files)
    action(program, folder)
    return walk_log(program, folder, how, rules=rules, without=without)


def walk_log(
    program: CrashProgram,
    folder: CrashFolder,
    how: How = EVERYTHING,
    *,
    rules: Rules = ALL,
    without: frozenset[int] = frozenset(),
) -> Tally:
    """Hold the laws of a merge against what every cut of a folder's log leaves."""
    done = uncut(program)
    finished = done.contents()
    dropped: Mapping[str, bytes] = {}
    if program.undo:
        drop(program, done)
        dropped = done.contents()

    def laws(survival: Survival, tally: Tally) -> Iterator[str]:
        yield from broken(program, survival, finished, rules=rules, tally=tally)
        if program.undo:
            yield from undone(program, survival, dropped, tally)

    return _walk(program, folder, laws, run, how, without)


def walk_rollback(program: CrashProgram, how: How = EVERYTHING, *, start: CrashFolder | None = None) -> Tally:
    """Roll a merge back, a complete one or one cut off as `start` has it, and hold the laws against every cut."""
    folder = start or merged(program)
    take_back(program, folder)
    laws = partial(broken_rolling_back, program, restored=folder.contents())
    return _walk(program, folder, lambda survival, tally: laws(survival, tally=tally), take_back, how)


def walk_drop(program: CrashProgram, how: How = EVERYTHING) -> Tally:
    """Make a complete merge final, and hold the laws against every cut."""
    folder = merged(program)
    finished = folder.contents()
    drop(program, folder)
    laws = partial(broken_dropping, program, finished=finished, dropped=folder.contents())
    return _walk(program, folder, lambda survival, tally: laws(survival, tally=tally), drop, how)


def _walk(
    program: CrashProgram,
    folder: CrashFolder,
    laws: Laws,
    repeat: Act,
    how: How,
    without: frozenset[int] = frozenset(),
    earlier: Survival | None = None,
) -> Tally:
    """Walk a log; `earlier` is the disk that it began on, if a cut had left that."""
    tally = Tally(programs=1)
    dice = random.Random(f"{how.seed} {program.name} {len(folder.log)}")
    seen = set()
    for cut in cuts(folder, without=without):
        if how.only_last and cut.index < len(folder.log):
            continue
        if cut.index < how.first or (how.share < 1 and dice.random() >= how.share):
            continue
        tally.cuts += 1
        stale = (cut.index + how.seed) % 2 == 1 if how.stale is None else how.stale
        for found_disk in cut.survivals(how.seed, stale=stale):
            survival = found_disk if earlier is None else with_earlier_losses(found_disk, earlier)
            tally.survivals += 1
            if survival.key in seen:
                continue
            seen.add(survival.key)
            tally.disks += 1
            where = f"{program.name}: cut {cut.index} after {described(cut.last)}: {survival.label}"
            found = [f"{where}: {text}" for text in laws(survival, tally)]
            tally.findings += found
            if len(tally.findings) >= how.enough:
                return tally
            if not found and how.twice and dice.random() < how.twice:
                # The second run is cut as well, at a cut in ten.
                folder_again = survival.folder()
                repeat(program, folder_again)
                again = replace(how, seed=how.seed + 1, share=0.1, twice=0.0, first=0)
                more = _walk(program, folder_again, laws, repeat, again, earlier=survival)
                tally.add(replace(more, programs=0))
    return tally


def with_earlier_losses(survival: Survival, earlier: Survival) -> Survival:
    """Return the same disk, with what an earlier cut had lost and nobody has written since counted as lost as well."""
    lost = dict(survival.lost)
    for path, sectors in earlier.lost.items():
        if path in survival.files:
            now, then = survival.files[path], earlier.files[path]
            places = ((sector, slice(sector * SECTOR, (sector + 1) * SECTOR)) for sector in sectors)
            still = frozenset(sector for sector, at in places if now[at] == then[at])
            lost[path] = lost[path] | still
    return replace(survival, lost=lost)


def described(change: Change | None) -> str:
    """Say in short what a change was."""
    if change is None:
        return "nothing"
    text = type(change).__name__.lower()
    call = getattr(change, "call", text)
    owner = getattr(change, "number", None) or getattr(change, "path", None) or getattr(change, "directory", None)
    place = f" sector {change.first}" if hasattr(change, "first") else ""
    return f"{call} of {owner}{place}"
