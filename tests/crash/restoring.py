"""The restore axis: at every moment of a run files are put back, and then every verb is tried.

tests/crash/restores.py says what is put back, follow_ups.py what is tried, and restored_laws.py what must hold.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.crash.acts import drop, take_back
from tests.crash.disks import Disk
from tests.crash.follow_ups import FOLLOW_UPS, NEW, Merged, Read, follow_ups
from tests.crash.restored_laws import Found, is_needless, wrong, wrote
from tests.crash.restores import NOTHING, later_moments, merge_moments, pairs, singles, wholes
from vhdkit.errors import VhdError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.crash.follow_ups import FollowUp
    from tests.crash.programs import CrashProgram
    from tests.crash.restores import Moment, Restore
    from tests.crashfs import CrashFolder

BY_NAME = {each.name: each for each in FOLLOW_UPS}


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How thoroughly to walk: what is limited is drawn by seed.

    At most `moments` of each run, and at each of them at most `restores` of one file or of many, and `pairs` of files.
    Without `writes` moments between two writes to a file are left out. With `about` only restores of that file are
    tried, and only the `verbs`.
    """

    seed: int = 0
    moments: int = 1 << 30
    restores: int = 1 << 30
    pairs: int = 60
    writes: bool = True
    enough: int = 1 << 30
    about: str = ""
    verbs: frozenset[str] = frozenset(BY_NAME)


@dataclass(slots=True, kw_only=True)
class Tally:
    """What was tried. `needless` refusals and `findings`, which are wrong, are kept by kind too."""

    moments: int = 0
    restores: int = 0
    follow_ups: int = 0
    right: int = 0
    refused: int = 0
    needless: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count the other's too."""
        for name in ("moments", "restores", "follow_ups", "right", "refused", "needless", "wrong", "findings"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.examples = {**other.examples, **self.examples}

    def __str__(self) -> str:
        return (
            f"{self.moments:,} cuts, {self.restores:,} restores, {self.follow_ups:,} follow-ups: {self.right:,} right, "
            f"{self.refused:,} refused, of these {self.needless.total():,} needlessly, {len(self.findings):,} wrong"
        )

    def kinds(self) -> str:
        """Return the kinds of what is wrong and of what was refused needlessly, most frequent first."""
        lines = [f"wrong {count:>6} {kind}" for kind, count in self.wrong.most_common()]
        lines += [f"needless {count:>6} {kind} ({self.examples[kind]})" for kind, count in self.needless.most_common()]
        return "\n".join(lines)


def phases(program: CrashProgram, *, writes: bool = True) -> dict[str, list[Moment]]:
    """Return the moments of the merge, and of what undoes it or makes it final."""
    found = {"merge": merge_moments(program, writes=writes)}
    if program.undo:
        found["roll-back"] = later_moments(take_back, program, writes=writes)
        found["drop"] = later_moments(drop, program, writes=writes)
    return found


def walk(program: CrashProgram, how: How) -> Tally:
    """Put files back at the moments of a program's runs, and hold the laws against every verb."""
    total = Tally()
    for phase, found in phases(program, writes=how.writes).items():
        dice = random.Random(f"{how.seed} {program.name} {phase}")
        for at in sorted(dice.sample(range(len(found)), min(len(found), how.moments))):
            total.moments += 1
            for restore in _restores(found[at], found[: at + 1], how, dice):
                total.restores += 1
                disk = restore.apply(found[at].disk)
                for each in (each for each in follow_ups(program) if each.name in how.verbs):
                    _try(program, disk, each, (phase, found[at].label, restore.label), total)
                if len(total.findings) >= how.enough:
                    return total
    return total


def _restores(moment: Moment, earlier: Sequence[Moment], how: How, dice: random.Random) -> Iterator[Restore]:
    if how.about:
        about = [restore for restore in singles(moment) if restore.paths == (how.about,)]
        yield from dice.sample(about, min(len(about), how.restores))
        return
    yield NOTHING
    # All of the moments before are too many.
    then = dice.sample(earlier, min(len(earlier), 4))
    found = [*singles(moment), *wholes(moment, then)]
    yield from dice.sample(found, min(len(found), how.restores))
    yield from pairs(moment, how.pairs, dice)


def _try(program: CrashProgram, disk: Disk, each: FollowUp, where: tuple[str, str, str], total: Tally) -> None:
    total.follow_ups += 1
    texts, refusal = tried(program, disk, each)
    if texts:
        for text in texts:
            total.wrong[f"{each.name}: {text}"] += 1
        said = f" ({refusal})" if refusal else ""
        total.findings.append(f"{program.name}: {', '.join(where)}: {each.name}{said}: {'; '.join(texts)}")
    elif refusal:
        total.refused += 1
        if is_needless(Found.at_first(program, disk.contents()), each.name):
            total.needless[f"{each.name}: {refusal}"] += 1
            total.examples.setdefault(f"{each.name}: {refusal}", f"{program.name}: {', '.join(where)}")
    else:
        total.right += 1


def tried(program: CrashProgram, disk: Disk, each: FollowUp, origin: Found | None = None) -> tuple[list[str], str]:
    """Try a verb; return what is wrong then, and with what it has refused ("" if it has not).

    `origin` is what an earlier verb met, whose result this one takes back or makes final.
    """
    folder = disk.folder()
    before = Found.at_first(program, disk.contents())
    if origin is not None:
        before = Found(program, before.files, origin.bases, origin)
    try:
        if each.prepare is not None:
            try:
                each.prepare(program, folder)
            finally:
                before = _with_new_leaf(before, folder)
            # What the writer wrote is on the disk when the next command begins.
            folder = Disk.of(folder).folder()
        done = each.do(program, folder)
    except (VhdError, OSError) as error:
        return list(wrote(before, Found(program, folder.contents()))), f"{type(error).__name__}: {_short(str(error))}"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what was found
        return [f"{type(error).__name__}: {error}"], ""
    after = Found(program, folder.contents())
    texts = list(wrong(before, after, done))
    if isinstance(done, Read):
        texts += wrote(before, after)
        if None in done.views.values() and not texts:
            return [], "some image is not read"
    if origin is None and not texts and isinstance(done, Merged) and each.name in {"same", "resume"} and program.undo:
        for name in ("roll-back", "drop"):
            more, _ = tried(program, Disk.of(folder), BY_NAME[name], before)
            texts += [f"then {name}: {text}" for text in more]
    return texts, ""


def _with_new_leaf(before: Found, folder: CrashFolder) -> Found:
    """Return what was found, and the new leaf, as far as it was made: nothing else may have been written for it."""
    made = {path: raw for path, raw in folder.contents().items() if path == NEW}
    return Found(before.program, {**before.files, **made}, before.bases)


def _short(text: str) -> str:
    """Return a message without what differs from case to case."""
    words = [word for word in text.split() if "/" not in word and not word.strip(".,;:").isdigit()]
    return " ".join(words)[:90]
