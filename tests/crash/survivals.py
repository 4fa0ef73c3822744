"""Every cut of a logged action, and the disks that the next start may find there (tests/crashfs.py says which).

folder = CrashFolder(files)
action(folder)
for cut in cuts(folder):
    for survival in cut.survivals(seed=1):
        again = survival.folder()    # a CrashFolder to go on with; what happens on it can be cut again
"""

from __future__ import annotations

import posixpath
import random
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from tests.crashfs import SECTOR, Content, CrashFolder, FolderSynced, Named, Published, Replaced, SyncBegun, Synced

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.crashfs import Change


class Atom(NamedTuple):
    """Something that survives or not: a `sector`, the `size` or the `times` of a file (by number), or a `name`.

    Of its `versions` (the durable one is 0) exactly one is found.
    """

    kind: str
    owner: int | str
    sector: int
    versions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Survival:
    """One disk that may be found. `lost` has each file's sectors whose last content did not survive.

    `times` are modification times, `ctimes` change times, `now` is when the power went.
    """

    cut: int
    label: str
    files: Mapping[str, bytes]
    numbers: Mapping[str, int]
    times: Mapping[int, float]
    ctimes: Mapping[int, float]
    now: float
    lost: Mapping[str, frozenset[int]]

    def folder(self, *, clock: bool = False) -> CrashFolder:
        """Return the disk after the start: everything on it is durable."""
        return CrashFolder(
            self.files, numbers=self.numbers, times=self.times, ctimes=self.ctimes, now=self.now, clock=clock
        )

    @property
    def key(self) -> frozenset[tuple[str, int, bytes]]:
        """Equal for disks that cannot be told apart (but by their files' times)."""
        return frozenset((path, self.numbers[path], raw) for path, raw in self.files.items())


class Cut:
    """The power gone after the first `index` changes; to be used before the next cut is asked for."""

    def __init__(self, disk: _Disk, index: int, last: Change | None) -> None:
        self._disk_then, self._applied = disk, disk.applied
        self.index = index
        self.last = last

    @property
    def _disk(self) -> _Disk:
        if self._disk_then.applied != self._applied:
            raise RuntimeError("the next cut was asked for already: the disk is another by now")
        return self._disk_then

    @cached_property
    def atoms(self) -> list[Atom]:
        """What is pending, in a stable order."""
        return self._disk.atoms()

    def survival(self, choice: Sequence[int], label: str = "chosen", *, stale: bool = False) -> Survival:
        """Return the disk on which each atom is of the chosen version."""
        return self._disk.found(self.index, label, dict(zip(self.atoms, choice, strict=True)), stale=stale)

    def survivals(
        self, seed: int = 0, *, missing: int = 24, alone: int = 4, drawn: int = 4, stale: bool = False
    ) -> Iterator[Survival]:
        """Yield what may be found: nothing of what is pending, all of it, and much between.

        All but one atom, each in turn (with more than `missing` of them, as many as that, drawn by seed); `alone`
        single ones; all of one file alone, names alone, data alone; and `drawn` subsets, dense and sparse, of any
        versions.
        """
        none = [0] * len(self.atoms)
        everything = [atom.versions - 1 for atom in self.atoms]
        yield self.survival(none, "none")
        if not self.atoms:
            return
        yield self.survival(everything, "all", stale=stale)
        dice = random.Random(seed << 20 | self.index)
        for at in _some(dice, len(self.atoms), missing):
            choice = [*everything]
            choice[at] = 0
            yield self.survival(choice, f"all but {self.atoms[at][:3]}", stale=stale)
        if len(self.atoms) > 2:
            for at in _some(dice, len(self.atoms), alone):
                choice = [*none]
                choice[at] = everything[at]
                yield self.survival(choice, f"only {self.atoms[at][:3]}", stale=stale)
        owners = ["names" if atom.kind == "name" else atom.owner for atom in self.atoms]
        for owner in sorted(set(owners), key=str) if len(set(owners)) > 1 else ():
            choice = [last if owner == own else 0 for own, last in zip(owners, everything, strict=True)]
            yield self.survival(choice, f"only of {owner}", stale=stale)
        for turn in range(drawn if len(self.atoms) > 2 else 0):
            likely = (0.5, 0.85, 0.15, 0.65)[turn % 4]
            choice = [dice.randrange(1, atom.versions) if dice.random() < likely else 0 for atom in self.atoms]
            yield self.survival(choice, f"drawn {turn}", stale=stale)


def cuts(
    folder: CrashFolder, *, without: frozenset[int] = frozenset(), log: Sequence[Change] | None = None
) -> Iterator[Cut]:
    """Yield the cuts before the first change, after it, ... after the last.

    `without` leaves out changes by their place in the log, as if the action had forgotten them; `log` stands in for the
    folder's. A cut is good until the next is asked for.
    """
    disk = _Disk(folder)
    yield Cut(disk, 0, None)
    for index, change in enumerate(folder.log if log is None else log):
        if index not in without:
            disk.apply(change)
            yield Cut(disk, index + 1, change)


def _some(dice: random.Random, count: int, limit: int) -> Sequence[int]:
    return range(count) if count <= limit else sorted(dice.sample(range(count), limit))


class _Version(NamedTuple):
    """A sector's content, and how many lengths the file had had when it was written."""

    data: bytes
    sizes: int


class Times(NamedTuple):
    """When a file's content was last changed, and when anything of it."""

    mtime: float
    ctime: float

    def at_least(self, ctime: float) -> Times:
        """Return the times of a file of which something was changed at `ctime`."""
        return self._replace(ctime=max(self.ctime, ctime))


class _File:
    """A file's durable content and what is pending of it; lengths and versions are in the order of their making.

    `times` are the durable and the last modification and change time.
    """

    def __init__(self, content: bytes, times: Times) -> None:
        self.durable = content
        self.sizes = [len(content)]
        self.versions: dict[int, list[_Version]] = {}
        self.doomed: set[int] = set()
        self.begun: dict[int, tuple[int, dict[int, int], Times]] = {}
        self.times = (times, times)

    def change(self, change: Content) -> None:
        if change.size != self.sizes[-1]:
            self.sizes.append(change.size)
        for at in range(0, len(change.data), SECTOR):
            sector = change.first + at // SECTOR
            piece = change.data[at : at + SECTOR]
            self.versions.setdefault(sector, []).append(_Version(piece, len(self.sizes)))
            self.doomed.discard(sector)
        self.times = (self.times[0], Times(change.mtime, change.ctime))

    def begin_sync(self, begun: int) -> None:
        """Note what is pending: how many lengths, how many versions of each sector, and the time."""
        self.begun[begun] = self._pending()

    def rename(self, ctime: float) -> None:
        """Note that a new name is durable, and with it the change time that it gave the file."""
        self.times = (self.times[0].at_least(ctime), self.times[1].at_least(ctime))

    def _pending(self) -> tuple[int, dict[int, int], Times]:
        return len(self.sizes), {sector: len(held) for sector, held in self.versions.items()}, self.times[1]

    def sync(self, *, lost: bool, begun: int = 0) -> None:
        if begun and begun not in self.begun:
            return  # another sync has made durable what this one was for
        sizes, counts, times = self.begun.pop(begun) if begun else self._pending()
        if lost:
            self.doomed |= {sector for sector, count in counts.items() if len(self.versions[sector]) == count}
            return
        choice = {sector: 0 if sector in self.doomed else count for sector, count in counts.items()}
        self.durable = self.found(sizes - 1, choice)
        self.sizes = self.sizes[sizes - 1 :]
        left = {sector: held[choice.get(sector, 0) :] for sector, held in self.versions.items()}
        self.versions = {
            sector: [_Version(version.data, max(1, version.sizes - sizes + 1)) for version in held]
            for sector, held in left.items()
            if held and sector * SECTOR < max(self.sizes)
        }
        self.doomed &= set(self.versions)
        self.begun.clear()
        self.times = (times, self.times[1])

    def found(self, size_at: int, choice: Mapping[int, int], rubbish: int | None = None) -> bytes:
        """Return the content with the length of that index, and of each sector that version (0 is the durable one)."""
        if not self.versions and not size_at:
            return self.durable
        size = self.sizes[size_at]
        content = bytearray(self.durable[: min(self.sizes[: size_at + 1])])
        content.extend(bytes(size - len(content)))
        for sector, held in self.versions.items():
            at, version = sector * SECTOR, choice.get(sector, 0)
            if version:
                data, written_at = held[version - 1]
                # A truncation since then that survived has taken what lies past its end.
                end = min([at + len(data), size, *self.sizes[written_at : size_at + 1]])
                if end > at:
                    content[at:end] = data[: end - at]
            elif rubbish is not None and self.sizes[0] <= at < size:
                end = min(size, at + SECTOR)
                content[at:end] = random.Random(rubbish << 32 | sector).randbytes(end - at)
        return bytes(content)


class _Disk:
    """What a log has made of a folder so far: durable, and pending."""

    def __init__(self, folder: CrashFolder) -> None:
        self.applied = 0
        self.files: dict[int, _File] = {}
        self.entries: dict[str, list[int | None]] = {}
        self.published: list[_Renaming] = []
        self.now = max((time for times in folder.start_times.values() for time in times), default=0.0)
        for path, (file, content) in folder.started_with.items():
            self.files.setdefault(file.number, _File(content, Times(*folder.start_times[file.number])))
            self.entries[path] = [file.number]

    def apply(self, change: Change) -> None:
        self.applied += 1
        self.now = max(self.now, getattr(change, "ctime", 0.0), getattr(change, "time", 0.0))
        match change:
            case Content():
                self.files[change.number].change(change)
            case SyncBegun():
                self.files[change.number].begin_sync(change.begun)
            case Synced():
                self.files[change.number].sync(lost=change.lost, begun=change.begun)
            case Named():
                if change.number is not None:
                    self.files[change.number] = _File(b"", Times(change.time, change.time))
                self.entries.setdefault(change.path, [None]).append(change.number)
            case Published() | Replaced():
                new = self.entries.setdefault(change.path, [None])
                old = self.entries[change.temporary]
                new.append(change.number)
                old.append(None)
                self.published.append(
                    _Renaming(change.temporary, len(old) - 1, change.path, len(new) - 1, change.number, change.ctime)
                )
            case FolderSynced():
                self._sync_folder(change.directory)

    def _sync_folder(self, directory: str) -> None:
        for path, history in self.entries.items():
            if posixpath.dirname(path) == directory:
                del history[:-1]
        for item in self.published:
            if posixpath.dirname(item.old) == directory:
                self.files[item.number].rename(item.ctime)
        self.published = [item for item in self.published if posixpath.dirname(item.old) != directory]

    def atoms(self) -> list[Atom]:
        reached = {number for history in self.entries.values() for number in history}
        atoms = []
        for number, file in self.files.items():
            if number in reached:
                atoms += [Atom("sector", number, at, len(held) + 1) for at, held in sorted(file.versions.items())]
                if len(file.sizes) > 1:
                    atoms.append(Atom("size", number, 0, len(file.sizes)))
                if file.times[0] != file.times[1]:
                    atoms.append(Atom("times", number, 0, 2))
        return atoms + [
            Atom("name", path, 0, len(history)) for path, history in self.entries.items() if len(history) > 1
        ]

    def found(self, cut: int, label: str, choice: Mapping[Atom, int], *, stale: bool) -> Survival:
        chosen = _Choice.of(choice)
        for item in reversed(self.published):
            if chosen.names.get(item.old, 0) >= item.unlinked and chosen.names.get(item.new, 0) < item.linked:
                chosen.names[item.old] = item.unlinked - 1
        found = {path: history[chosen.names.get(path, 0)] for path, history in self.entries.items()}
        numbers = {path: number for path, number in found.items() if number is not None}
        raws, lost, times = {}, {}, {}
        for number in sorted(set(numbers.values())):
            file, sectors = self.files[number], chosen.sectors.get(number, {})
            raws[number] = file.found(chosen.sizes.get(number, 0), sectors, number if stale else None)
            lost[number] = frozenset(at for at, held in file.versions.items() if sectors.get(at, 0) < len(held))
            times[number] = file.times[chosen.times.get(number, 0)]
        for item in self.published:
            if item.number in times and chosen.names.get(item.new, 0) >= item.linked:
                times[item.number] = times[item.number].at_least(item.ctime)
        return Survival(
            cut=cut,
            label=label,
            files={path: raws[number] for path, number in numbers.items()},
            numbers=numbers,
            times={number: item.mtime for number, item in times.items()},
            ctimes={number: item.ctime for number, item in times.items()},
            now=self.now,
            lost={path: lost[number] for path, number in numbers.items()},
        )


class _Renaming(NamedTuple):
    """A rename that may still be lost: which entry of each name's history it made, and the change time it gave."""

    old: str
    unlinked: int
    new: str
    linked: int
    number: int
    ctime: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """The chosen versions of names, and by file those of lengths, times and sectors."""

    names: dict[str, int]
    sizes: dict[int, int]
    times: dict[int, int]
    sectors: dict[int, dict[int, int]]

    @classmethod
    def of(cls, choice: Mapping[Atom, int]) -> _Choice:
        chosen = cls(names={}, sizes={}, times={}, sectors={})
        for atom, version in choice.items():
            if isinstance(atom.owner, str):
                chosen.names[atom.owner] = version
            elif atom.kind == "sector":
                chosen.sectors.setdefault(atom.owner, {})[atom.sector] = version
            else:
                (chosen.sizes if atom.kind == "size" else chosen.times)[atom.owner] = version
        return chosen
