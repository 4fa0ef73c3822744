"""A reader that asks nobody (lock=False, the -U of the command line) while another process merges what it reads."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.crash.racer import Racer
from tests.crash.real import GRAND, TOP, UNDO, Running, Scene, Stage, chain_digest, digest, names_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.thorough

LONG = Scene(name="long", size=32, block_size=512 << 10, levels=2, below=True, dense=2, scattered=20, grand=True)
SHORT = Scene(name="short", size=2, block_size=64 << 10, levels=2, below=True, dense=1, scattered=20, grand=True)
GROWING = Scene(name="growing", size=4, block_size=4096, dense=1, scattered=20, grows=12, grand=True)
UNDONE = Scene(name="undone", size=4, block_size=64 << 10, below=True, dense=1, grand=True, undo=True)


class Readers:
    """The topmost source and what lies over it, read over and over: opened anew, and through a chain kept open.

    Not siblings: who has one open and asked nobody has the destination open too, and sees it change.
    """

    def __init__(self, stage: Stage, *, kept: bool = True) -> None:
        self.stage = stage
        self.seen: Counter[str] = Counter()
        self._stack = ExitStack()
        self._kept: dict[str, vhdkit.Chain] = {}
        self.names = [TOP, GRAND]
        for name in self.names if kept else ():
            chain = vhdkit.open_chain(str(stage.work / name), lock=False)
            self._kept[name] = self._stack.enter_context(chain)

    def read(self) -> None:
        """Read each once in both ways."""
        for name in self.names:
            try:
                found = digest(self.stage.work / name, lock=False)
            except (vhdkit.ParentNotFoundError, FileNotFoundError) as error:
                # Its parent went between the reading of its header and the looking for the name in it.
                self.seen[type(error).__name__] += 1
            else:
                assert found == self.stage.before[name], f"{name}, opened anew, reads otherwise"
                self.seen["anew"] += 1
        for name, chain in self._kept.items():
            assert chain_digest(chain) == self.stage.before[name], f"{name}, kept open, reads otherwise"
            self.seen["kept open"] += 1

    def close(self) -> None:
        self._stack.close()


def read_while(stage: Stage, goes_on: Callable[[], bool], *, kept: bool) -> Counter[str]:
    readers = Readers(stage, kept=kept)
    try:
        while goes_on():
            readers.read()
    finally:
        readers.close()
    return readers.seen


def staged(scene: Scene, folder: Path) -> Stage:
    stage = Stage(scene, folder / scene.name)
    stage.build()
    stage.restore()
    return stage


def test_a_reader_sees_no_wrong_byte_while_another_process_merges(tmp_path: Path) -> None:
    stage = staged(LONG, tmp_path)
    run = Running(stage.work, [*stage.scene.merge, "--rate", "4M"])
    seen = read_while(stage, lambda: run.is_alive, kept=True)
    assert run.ended().code == 0
    stage.assert_merged()
    assert min(seen["anew"], seen["kept open"]) >= 5
    assert digest(stage.work / GRAND) == stage.before[GRAND]


def relinkings(scene: Scene, folder: Path, number: int, *, kept: bool = True) -> Counter[str]:
    """Read through many short merges, most of which is relinking, renaming and removing."""
    stage, racer, seen = staged(scene, folder), Racer(), Counter[str]()
    try:
        for _ in range(number):
            stage.restore()
            end = time.monotonic() + 0.6
            racer.start(stage.work, time.monotonic(), arguments=scene.merge)
            kept_name = stage.work / (UNDO if scene.undo else TOP)

            def goes_on(end: float = end, name: Path = kept_name) -> bool:
                is_there = name.exists() if not scene.undo else True
                return is_there and time.monotonic() < end

            seen += read_while(stage, goes_on, kept=kept)
            code, said = racer.answer()
            assert code == 0, said
            assert scene.undo or TOP not in names_in(stage.work)
            stage.look(plain=False)
    finally:
        racer.close()
    return seen


@pytest.mark.parametrize("scene", [SHORT, UNDONE], ids=lambda scene: scene.name)
def test_a_reader_sees_no_wrong_byte_while_names_and_headers_change(scene: Scene, tmp_path: Path) -> None:
    assert relinkings(scene, tmp_path, 3)["anew"] > 8


MOVES = pytest.mark.xfail(reason="blocks move to make room for a longer table: who has no lock may read the old place")


@pytest.mark.slow
@pytest.mark.parametrize(
    "scene", [SHORT, UNDONE, pytest.param(GROWING, marks=MOVES)], ids=["short", "undone", "growing"]
)
def test_a_reader_sees_no_wrong_byte_in_a_hundred_merges(scene: Scene, tmp_path: Path) -> None:
    print(scene.name, dict(relinkings(scene, tmp_path, 100, kept=scene is not GROWING)))  # noqa: T201 - the figures are what the run is for
