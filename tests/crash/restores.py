"""What people put back between two runs: every file's earlier versions, in every way that a file can be put back.

A `Moment` is a disk as a run has left it, with all that was written before it. A `Restore` changes such a disk: one
file or two of them

 - become what they were at an earlier moment, or before the first run, or yesterday (`CrashProgram.yesterday`: a backup
   from before the last writes to the image itself), in each of four ways: written over the file (`cp`, with `-p` the
   old modification time), or a new file under the name (`mv`, `rsync`; with `-t` the old time);
 - are written anew as they are, which only their numbers and times show;
 - are deleted, or get another name;

or all images, or all files, go back to one earlier moment, or the whole is copied elsewhere, with its times or without.

The registry of jobs lies in the user's state directory, which is no part of the disk: no verb here reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from tests.crash.acts import run, small_steps
from tests.crash.disks import Disk
from tests.crash.readers import images_of
from tests.crash.survivals import cuts
from tests.crash.walking import described
from tests.crashfs import Content, CrashFolder, SyncBegun

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.crash.programs import CrashProgram
    from vhdkit.storage.protocols import Folder

    Change = Callable[[Disk], Disk]

# A fraction of a second, which archives drop: times that are kept are kept to the nanosecond here.
BEGUN = 1.6e9 + 0.5
YESTERDAY = BEGUN - 86400


class Version(NamedTuple):
    """A file as it once was."""

    when: str
    content: bytes
    mtime: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A disk, what was done last, and every file's versions up to now, oldest first, each content once."""

    label: str
    disk: Disk
    versions: Mapping[str, Sequence[Version]]


class Restore(NamedTuple):
    """A change of a disk, in words and as a function. `paths` are the files that it is about."""

    label: str
    paths: tuple[str, ...]
    apply: Change


NOTHING = Restore("nothing", (), lambda disk: disk)


# The moments of a run


def begin(program: CrashProgram) -> Disk:
    """Return the program's files, made one after the other, as they are before the first run."""
    disk = Disk(files={}, now=BEGUN, next_number=1)
    for path, raw in program.files.items():
        disk = disk.put_back(path, raw)
    return disk


def first_versions(program: CrashProgram) -> dict[str, list[Version]]:
    """Return what every file was before the first run."""
    return {
        path: [Version(f"yesterday's, {kind}", raw, YESTERDAY) for kind, raw in found.items()]
        for path, found in program.yesterday.items()
    }


def moments(folder: CrashFolder, known: Mapping[str, Sequence[Version]], *, writes: bool = True) -> Iterator[Moment]:
    """Yield what a kill leaves after each change of a log: all of what was written.

    Without `writes` moments between two writes to a file are left out.
    """
    versions = {path: list(found) for path, found in known.items()}
    for cut in cuts(folder):
        if isinstance(cut.last, SyncBegun) or (isinstance(cut.last, Content) and not writes):
            continue
        disk = Disk.found(cut.survival([atom.versions - 1 for atom in cut.atoms]))
        label = f"{cut.index}, {described(cut.last)}"
        for path, file in disk.files.items():
            found = versions.setdefault(path, [])
            # Between its syncs a file is nothing that a backup would have.
            if not isinstance(cut.last, Content) and file.content not in {version.content for version in found}:
                found.append(Version(f"at {cut.index}", file.content, file.mtime))
        snapshot = {path: tuple(found) for path, found in versions.items()}
        yield Moment(label=label, disk=disk, versions=snapshot)


def logged(act: Callable[[CrashProgram, Folder], None], program: CrashProgram, disk: Disk) -> CrashFolder:
    """Do something in small steps, so that a merge has several checkpoints, and return the folder with its log."""
    folder = disk.folder()
    with small_steps():
        act(program, folder)
    return folder


def merge_moments(program: CrashProgram, *, writes: bool = True) -> list[Moment]:
    """Return the moments of a program's merge."""
    folder = logged(run, program, begin(program))
    return list(moments(folder, first_versions(program), writes=writes))


def later_moments(
    act: Callable[[CrashProgram, Folder], None], program: CrashProgram, *, writes: bool = True
) -> list[Moment]:
    """Return the moments of what is done after the program's complete merge, whose versions are known as well."""
    merged = logged(run, program, begin(program))
    *_, last = moments(merged, first_versions(program))
    return list(moments(logged(act, program, last.disk), last.versions, writes=writes))


# What may be put back at a moment


def singles(moment: Moment) -> Iterator[Restore]:
    """Yield all changes of one file."""
    for path, versions in moment.versions.items():
        for version in versions:
            yield from _ways(moment, path, version)
        if path in moment.disk.files:
            yield Restore(f"{_name(path)} gone", (path,), partial(Disk.removed, path=path))
            yield Restore(f"{_name(path)} renamed", (path,), partial(Disk.renamed, path=path, new_path=_other(path)))


def _ways(moment: Moment, path: str, version: Version) -> Iterator[Restore]:
    there = moment.disk.files.get(path)
    what = "as it is" if there is not None and there.content == version.content else version.when
    for in_place in (True, False) if there is not None else (False,):
        for mtime in (version.mtime, None):
            how = f"{'over it' if in_place else 'a new file'}, {'new' if mtime is None else 'old'} time"
            change = partial(Disk.put_back, path=path, content=version.content, mtime=mtime, in_place=in_place)
            yield Restore(f"{_name(path)} {what} ({how})", (path,), change)


def pairs(moment: Moment, count: int, dice: random.Random) -> Iterator[Restore]:
    """Yield `count` changes of two files, drawn from all; what is rarer (deleted, renamed) is not drawn more often."""
    by_path: dict[str, list[Restore]] = {}
    for restore in singles(moment):
        by_path.setdefault(restore.paths[0], []).append(restore)
    both = list(combinations(by_path.values(), 2))
    for _ in range(count if both else 0):
        one, other = (dice.choice(changes) for changes in dice.choice(both))
        yield _after(one, other)


def _after(one: Restore, other: Restore) -> Restore:
    return Restore(f"{one.label}; {other.label}", (*one.paths, *other.paths), lambda disk: other.apply(one.apply(disk)))


def wholes(moment: Moment, earlier: Sequence[Moment]) -> Iterator[Restore]:
    """Yield changes of many files at once: all images, or all files, as at one earlier moment; and whole copies."""
    yield Restore("all copied, times kept", (), partial(Disk.copied, with_times=True))
    yield Restore("all copied", (), partial(Disk.copied, with_times=False))
    for then in earlier:
        for images_only in (True, False):
            for with_times in (True, False):
                what = f"all {'images' if images_only else 'files'} as at {then.label.split(',')[0]}"
                how = "times kept" if with_times else "new times"
                change = partial(_as_then, then=then.disk, images_only=images_only, with_times=with_times)
                yield Restore(f"{what}, {how}", tuple(moment.versions), change)


def _as_then(disk: Disk, then: Disk, *, images_only: bool, with_times: bool) -> Disk:
    """Put back what a backup of `then` has, as `rsync` does; what it has not stays."""
    names = images_of({path: file.content for path, file in then.files.items()}) if images_only else then.files
    for path in names:
        file = then.files[path]
        if path not in disk.files or disk.files[path].content != file.content:
            disk = disk.put_back(path, file.content, mtime=file.mtime if with_times else None, in_place=False)
    return disk


def _name(path: str) -> str:
    return path.rsplit("/", 1)[1]


def _other(path: str) -> str:
    folder, name = path.rsplit("/", 1)
    return f"{folder}/moved-{name}"
