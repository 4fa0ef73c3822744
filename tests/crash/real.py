"""Real files and real processes: scenes that are built, merged by the program, killed, and looked at.

A `Scene` is a chain of files in a folder of its own. `Stage` builds it once, keeps what every layer reads as (found by
the tests' own reader) and what a merge that nobody disturbs makes of it, and puts it back as often as needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import vhdkit
from tests.cli.running import environment, program
from tests.plainvhd import DIFFERENCING, flat, parse
from tests.side_files import taken_apart
from vhdkit.journal.merge_journal import SUFFIX

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

MIB: Final = 1 << 20
_PIECE: Final = MIB
TOP, GRAND, SIBLING, UNDO = "top.avhd", "grand.avhd", "sibling.avhd", "undo.avhd"
ENDED: Final = ".vhdkit-ended"


# What is built


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A chain and how it is merged. Sizes in MiB; each source has `dense` MiB in one piece and `scattered` writes.

    With `below` the destination is itself differencing; `grand` is a child of the topmost source, and `sibling` one of
    the destination, which is relinked to the undo image.
    """

    name: str
    size: int
    base: Any = "dynamic"
    block_size: int = 2 * MIB
    levels: int = 1
    below: bool = False
    dense: int = 0
    scattered: int = 0
    grows: int = 0
    grand: bool = False
    sibling: bool = False
    undo: bool = False
    verify: bool = False
    rate: str = ""

    @property
    def destination(self) -> str:
        return "middle.avhd" if self.below else "base.vhd"

    @property
    def sources(self) -> list[str]:
        """The files that go, leaf first."""
        return [TOP, *(f"source-{number}.avhd" for number in range(self.levels - 1, 0, -1))]

    @property
    def merge(self) -> list[str]:
        """The command line of the merge, in the scene's folder."""
        options = ["--undo", UNDO] if self.undo else []
        options += ["--relink-siblings"] if self.sibling else []
        options += ["--verify"] if self.verify else []
        options += ["--rate", self.rate] if self.rate else []
        return ["merge", TOP, "--into", self.destination, "--json", "--progress", "json", *options]

    def build(self, folder: Path) -> None:
        """Make the files."""
        dice = random.Random(self.name)
        size = self.size * MIB
        vhdkit.create_image(
            str(folder / "base.vhd"), size=size, disk_type=self.base, block_size=self.block_size, unique_id=_id(dice)
        )
        self._fill(folder / "base.vhd", dice)
        parent = folder / "base.vhd"
        line = ["middle.avhd"] if self.below else []
        for name in [*line, *reversed(self.sources), *([GRAND] if self.grand else [])]:
            grown = size + self.grows * MIB if name == TOP and self.grows else None
            vhdkit.create_image(
                str(folder / name), parent=str(parent), size=grown, block_size=self.block_size, unique_id=_id(dice)
            )
            parent = folder / name
            self._fill(parent, dice)
        if self.sibling:
            vhdkit.create_image(str(folder / SIBLING), parent=str(folder / self.destination), unique_id=_id(dice))
            self._fill(folder / SIBLING, dice)

    def _fill(self, path: Path, dice: random.Random) -> None:
        with vhdkit.open_chain(str(path), writable=True) as chain:
            start = dice.randrange(max(1, chain.size - self.dense * MIB)) // 512 * 512
            for done in range(0, self.dense * MIB, MIB):
                chain.write(start + done, dice.randbytes(MIB))
            for _ in range(self.scattered):
                length = dice.choice([512, 512, 1024, 4096, 8192, 700])
                offset = dice.randrange(chain.size - length)
                chain.write(offset, bytes(length) if dice.random() < 0.1 else dice.randbytes(length))


def _id(dice: random.Random) -> bytes:
    return dice.randbytes(16)


# What is read


def plain_digest(folder: Path, name: str) -> str:
    """Return the digest of an image's view, by the tests' own reader; parents are found by unique id alone."""
    images = {image.unique_id: image for image in map(parse, images_in(folder))}
    layers = [parse(folder / name)]
    while layers[-1].disk_type == DIFFERENCING:
        layers.append(images[layers[-1].parent_id])
    view = flat(layers)
    return _digest(len(view), lambda at: view[at : at + _PIECE].data)


def digest(path: Path, *, lock: bool = True) -> str:
    """Return the same digest, by vhdkit."""
    with vhdkit.open_chain(str(path), lock=lock) as chain:
        return chain_digest(chain)


def chain_digest(chain: vhdkit.Chain) -> str:
    """Return the digest of a chain that is open."""
    buffer = bytearray(_PIECE)
    return _digest(chain.size, lambda at: memoryview(buffer)[: chain.read_into(at, buffer)])


def _digest(size: int, read: Callable[[int], memoryview]) -> str:
    total = hashlib.sha256(size.to_bytes(8, "big"))
    for at in range(0, size, _PIECE):
        piece = read(at)
        if np.frombuffer(piece, np.uint8).any():
            total.update(at.to_bytes(8, "big"))
            total.update(piece)
    return total.hexdigest()


def images_in(folder: Path) -> list[Path]:
    """Return the files with an image's name."""
    return sorted(path for path in folder.iterdir() if path.suffix in {".vhd", ".avhd"})


def names_in(folder: Path) -> set[str]:
    """Return all names."""
    return {path.name for path in folder.iterdir()}


def file_hash(path: Path) -> str:
    """Return the hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """What a merge's journal says: the kinds of its records, the payload in all, and how much of it is durable."""

    kinds: tuple[str, ...]
    payload: int
    done: int

    @property
    def phase(self) -> str:
        """The last thing that was done."""
        return next((kind for kind in reversed(self.kinds) if kind != "stopped"), "empty")


def journal_of(folder: Path, scene: Scene) -> Journal | None:
    """Return what the journal of the scene's merge says, None without one."""
    try:
        found, _, _ = taken_apart((folder / (scene.destination + SUFFIX)).read_bytes())
    except FileNotFoundError:
        return None
    kinds = tuple(str(record["kind"]) for record in found)
    begins = [at for at, kind in enumerate(kinds) if kind == "begin"]
    marks = [int(record["bytes"]) for record in found[max(begins, default=0) :] if record["kind"] == "mark"]
    payload = int(found[begins[-1]]["payload_bytes"]) if begins else 0
    return Journal(kinds=kinds, payload=payload, done=max(marks, default=0))


# What is run


@dataclass(slots=True, kw_only=True)
class Ended:
    """A process that has ended: of its own (`code` 0 or more) or killed (less than 0)."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def bytes_reached(self) -> int:
        """How many bytes of payload the last line of progress told."""
        lines = [line for line in self.err.splitlines() if line.startswith("{") and line.endswith("}")]
        return max((int(json.loads(line)["bytes-done"]) for line in lines), default=0)


class Running:
    """The program, started in a folder; its output goes to files elsewhere, which no full pipe or disk can stop."""

    def __init__(self, folder: Path, arguments: Sequence[str], **options: Any) -> None:
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - until its end
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            program(*arguments), cwd=folder, env=environment(), stdout=self._out, stderr=self._err, **options
        )

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    @property
    def told(self) -> bytes:
        """What it has said on stderr so far."""
        return os.pread(self._err.fileno(), MIB, 0)

    def wait_until(self, happens: Callable[[], bool], timeout: float = 60) -> bool:
        """Wait for something while it runs; return whether that came before its end."""
        end = time.monotonic() + timeout
        while self.is_alive:
            if happens():
                return True
            assert time.monotonic() < end, "it neither happens nor does the program end"
            time.sleep(0.002)
        return False

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ended(self, timeout: float = 120) -> Ended:
        """Wait for its end."""
        code = self.process.wait(timeout)
        seconds = time.monotonic() - self.begun
        out, err = (os.pread(file.fileno(), MIB, 0).decode() for file in (self._out, self._err))
        self._out.close()
        self._err.close()
        return Ended(code=code, out=out, err=err, seconds=seconds)


# The stage


@dataclass(slots=True)
class Stage:
    """A scene's files: `saved` as they were built, `work` where things happen; and what is to be expected."""

    scene: Scene
    place: Path
    before: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    merged_file: str = ""
    seconds: float = 0.0

    @property
    def work(self) -> Path:
        return self.place / "work"

    @property
    def left(self) -> set[str]:
        """The names that a merge leaves which is final."""
        return set(self.before) - set(self.scene.sources)

    def build(self) -> None:
        """Build the files, read every layer, and merge them once without disturbing it."""
        self.work.mkdir(parents=True)
        self.scene.build(self.work)
        self.before = {path.name: plain_digest(self.work, path.name) for path in images_in(self.work)}
        self.files = {path.name: file_hash(path) for path in images_in(self.work)}
        shutil.copytree(self.work, self.place / "saved")
        self.restore()
        done = Running(self.work, self.scene.merge).ended()
        assert done.code == 0, done.err
        assert not done.json["resumed"]
        self.seconds = done.seconds
        self.merged_file = file_hash(self.work / self.scene.destination)
        assert plain_digest(self.work, self.scene.destination) == self.before[TOP]

    def restore(self) -> None:
        """Put the files back as they were built, their times too: where they lie decides what is in them."""
        shutil.rmtree(self.work)
        shutil.copytree(self.place / "saved", self.work)

    def expected(self) -> Mapping[str, str]:
        """Return what the images that are there now must read as, whatever state the merge is in."""
        scene, there = self.scene, names_in(self.work)
        hidden = {*scene.sources[1:], scene.destination}
        views = {name: view for name, view in self.before.items() if name not in hidden and name in there}
        if TOP not in there:
            views[scene.destination] = self.before[TOP]
        if UNDO in there:
            views[UNDO] = self.before[scene.destination]
        return views

    def look(self, *, plain: bool = True, lock: bool = True) -> None:
        """Hold the laws against what lies there: everything opens, nothing is corrupt, what must read as before does.

        With `lock` vhdkit finishes a header that was being rewritten; without it looks only.
        """
        assert set(self.before) - set(self.scene.sources) <= names_in(self.work)
        for name, view in self.expected().items():
            if plain:
                assert plain_digest(self.work, name) == view, f"{name} reads otherwise"
            assert digest(self.work / name, lock=lock) == view, f"vhdkit reads {name} otherwise"
        for path in images_in(self.work):
            vhdkit.open_image(str(path)).close()
            report = vhdkit.check(str(path), chain=True)
            assert report.exit_code in {0, 3}, [str(finding) for finding in report.findings]

    def assert_merged(self) -> None:
        """The merge is complete: the bytes of an undisturbed one, and nothing left but what was kept for an undo."""
        assert file_hash(self.work / self.scene.destination) == self.merged_file, "other bytes than an uncut merge's"
        if self.scene.below:
            assert file_hash(self.work / "base.vhd") == self.files["base.vhd"]
        there = names_in(self.work)
        kept = {*self.scene.sources, UNDO, self.scene.destination + SUFFIX} if self.scene.undo else set()
        if self.scene.verify and not self.scene.undo:
            # With the topmost gone nothing can be verified any more: a middle source is kept, and its view has ended.
            middle = [name for name in self.scene.sources[1:] if name in there]
            kept |= {*middle, *(name + ENDED for name in middle)}
        assert there == self.left | kept

    def assert_as_before(self) -> None:
        """A roll-back is complete: every layer reads as before, and nothing else lies there."""
        assert names_in(self.work) == set(self.before)
        now = {name: plain_digest(self.work, name) for name in self.before if self._differs(name)}
        assert now == {name: self.before[name] for name in now}
        self.look(plain=False)

    def _differs(self, name: str) -> bool:
        return file_hash(self.work / name) != self.files[name]
