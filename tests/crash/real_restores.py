"""Real files put back between real kills: the restore axis on this machine's own file system.

A round begins with a program's files. Some times in turn a verb is run in a process that kills itself (SIGKILL) before
one of its changes, some files are put back as they were after an earlier kill, in the ways that tests/crash/restores.py
lists, and a verb is run to its end, which tests/crash/restored_laws.py judges.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.crash.acts import small_steps
from tests.crash.failing import CHANGING, FailingFolder, Fault
from tests.crash.follow_ups import FOLLOW_UPS, NEW, Merged, Read, follow_ups
from tests.crash.programs import FOLDER, PROGRAMS
from tests.crash.restored_laws import Found, wrong, wrote
from tests.through import ThroughFolder
from vhdkit.errors import VhdError
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from tests.crash.follow_ups import Done, FollowUp
    from tests.crash.programs import CrashProgram
    from vhdkit.storage.protocols import Folder, Storage

BY_NAME: Final = {program.name: program for program in PROGRAMS}
VERBS: Final = {each.name: each for each in FOLLOW_UPS}
_REFUSED: Final = 3


class Below(ThroughFolder):
    """A folder in which the programs' paths lead into a directory."""

    def __init__(self, inner: Folder, directory: Path) -> None:
        super().__init__(inner)
        self._directory = str(directory)

    def _at(self, path: str) -> str:
        return self._directory + path.removeprefix(FOLDER) if path.startswith(FOLDER) else path

    def open(self, path: str, *, writable: bool = False) -> Storage:
        return self.inner.open(self._at(path), writable=writable)

    def create(self, path: str, *, private: bool = False) -> Storage:
        return self.inner.create(self._at(path), private=private)

    def publish(self, temporary: str, path: str) -> None:
        self.inner.publish(self._at(temporary), self._at(path))

    def remove(self, path: str) -> None:
        self.inner.remove(self._at(path))

    def real(self, path: str) -> str:
        return self.inner.real(self._at(path))

    def exists(self, path: str) -> bool:
        return self.inner.exists(self._at(path))

    def may_write(self, path: str) -> bool:
        return self.inner.may_write(self._at(path))

    def free_space(self, directory: str) -> int:
        return self.inner.free_space(self._at(directory))

    def sync(self, directory: str) -> None:
        self.inner.sync(self._at(directory))

    def contents(self) -> dict[str, bytes]:
        """Return every file, by the programs' paths."""
        found = sorted(path for path in Path(self._directory).iterdir() if path.is_file())
        return {f"{FOLDER}/{path.name}": path.read_bytes() for path in found}


class DeadlyFolder(FailingFolder):
    """A folder that kills its process before a change."""

    def strikes(self, kind: str) -> bool:
        if super().strikes(kind):
            os.kill(os.getpid(), signal.SIGKILL)
        return False


def _kill_oneself(directory: str, program: str, verb: str, at: str) -> int:
    folder = Below(DeadlyFolder(LocalFolder(), Fault(at=int(at), kinds=CHANGING)), Path(directory))
    with small_steps():
        try:
            VERBS[verb].do(BY_NAME[program], folder)
        except (VhdError, OSError):
            return _REFUSED
    return 0


@dataclass(slots=True)
class Tally:
    """What a soak has done."""

    rounds: int = 0
    kills: int = 0
    put_back: Counter[str] = field(default_factory=Counter)
    right: int = 0
    refused: int = 0
    findings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.rounds} rounds, {self.kills} kills, {self.put_back.total()} files put back {dict(self.put_back)}: "
            f"{self.right} verbs right, {self.refused} refused, {len(self.findings)} wrong"
        )


@dataclass(slots=True)
class Round:
    """One program's files in a directory, and what they were after each kill: content and modification time in ns."""

    program: CrashProgram
    place: Path
    dice: random.Random
    tally: Tally
    backups: dict[str, list[tuple[bytes, int]]] = field(default_factory=dict)
    story: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Lay the files, and go on until a verb is done, or four times."""
        self.tally.rounds += 1
        for path, raw in self.program.files.items():
            (self.place / path.rsplit("/", 1)[1]).write_bytes(raw)
        self._back_up()
        for _ in range(4):
            self._kill()
            for _ in range(self.dice.choice([0, 1, 1, 2, 2, 3])):
                self._put_back()
            if self._judge(self.dice.choice(follow_ups(self.program))):
                return

    def _kill(self) -> None:
        """Run a verb that is killed somewhere, or comes to its end before; the top reads as it did."""
        verbs = ["same", "same", "same", "resume", *(["roll-back", "drop"] if self.program.undo else [])]
        verb, at = self.dice.choice(verbs), int(self.dice.triangular(0, 70, 25))
        before = Found.at_first(self.program, self._folder().contents())
        arguments = [str(self.place), self.program.name, verb, str(at)]
        code = subprocess.run([sys.executable, "-m", __name__, *arguments], check=False).returncode
        self.story.append(f"{verb}, killed at {at}" if code < 0 else f"{verb}: {code}")
        after = Found(self.program, self._folder().contents(), before.bases)
        if code == -signal.SIGKILL:
            self.tally.kills += 1
            top = self.program.top
            if before.view(top) is not None and top in after.files and before.view(top) != after.view(top):
                self._find("the top reads otherwise after a kill")
        elif code == _REFUSED:
            self._find_all(wrote(before, after))
        elif code:
            self._find(f"it ended with {code}")
        self._back_up()

    def _back_up(self) -> None:
        for path in self.place.iterdir():
            raw, found = path.read_bytes(), self.backups.setdefault(path.name, [])
            if raw not in [content for content, _ in found]:
                found.append((raw, path.stat().st_mtime_ns))

    def _put_back(self) -> None:
        name = self.dice.choice(sorted(self.backups))
        path, temporary = self.place / name, self.place / "temporary"
        raw, mtime = self.dice.choice(self.backups[name])
        way = self.dice.choice(["cp", "cp", "cp -p", "cp -p", "rsync", "rsync", "rsync -t", "rsync -t", "rm", "mv"])
        if way in {"rm", "mv"} and not path.exists():
            return
        match way.split():
            case ["rm"]:
                path.unlink()
            case ["mv"]:
                path.rename(self.place / f"moved-{name}")
            case [program, *keeps_time]:
                target = path if program == "cp" else temporary
                target.write_bytes(raw)
                if keeps_time:
                    os.utime(target, ns=(mtime, mtime))
                target.replace(path)
        self.tally.put_back[way] += 1
        self.story.append(f"{way} {name}")

    def _judge(self, each: FollowUp) -> bool:
        """Run a verb to its end; return whether it is done, and the round with it."""
        folder = self._folder()
        before = Found.at_first(self.program, folder.contents())
        self.story.append(each.name)
        try:
            if each.prepare is not None:
                try:
                    each.prepare(self.program, folder)
                finally:
                    made = {path: raw for path, raw in folder.contents().items() if path == NEW}
                    before = replace(before, files={**before.files, **made})
            with small_steps() if self.dice.random() < 0.5 else nullcontext():
                done = self._translated(each.do(self.program, folder))
        except (VhdError, OSError):
            self.tally.refused += 1
            self._find_all(wrote(before, Found(self.program, folder.contents())))
            return False
        self.tally.right += 1
        after = Found(self.program, folder.contents(), before.bases)
        self._find_all(wrong(before, after, done))
        if isinstance(done, Read):
            self._find_all(wrote(before, after))
        return not isinstance(done, Read)

    def _translated(self, done: Done) -> Done:
        match done:
            case Merged():
                return Merged(top=done.top, destination=done.destination.replace(str(self.place), FOLDER, 1))
        return done

    def _folder(self) -> Below:
        return Below(LocalFolder(), self.place)

    def _find_all(self, texts: Iterator[str]) -> None:
        for text in texts:
            self._find(text)

    def _find(self, text: str) -> None:
        self.tally.findings.append(f"{self.program.name}: {'; '.join(self.story)}: {text}")


if __name__ == "__main__":
    sys.exit(_kill_oneself(*sys.argv[1:]))
