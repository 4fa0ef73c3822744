"""Real files, real processes, kill -9: the promises of a merge as a machine meets them.

Everything here runs `python -m vhdkit` as a process of its own on files of a real file system. The fast versions are in
CI; those that are marked slow are run by hand, and print their figures.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import pytest

from tests.crash.real import Scene, Stage
from tests.crash.soak import Soak, Tally

if TYPE_CHECKING:
    from pathlib import Path

FEW = [
    Scene(name="dense, relinked", size=64, dense=5, grand=True, rate="16M"),
    Scene(
        name="scattered, with an undo image",
        size=16,
        block_size=64 << 10,
        levels=2,
        below=True,
        scattered=25,
        undo=True,
        grand=True,
    ),
]
MANY = [
    Scene(name="one dense level, dynamic", size=256, dense=200, grand=True, rate="200M"),
    Scene(name="three levels, fixed", size=128, base="fixed", levels=3, dense=24, scattered=400, rate="60M"),
    Scene(name="differencing, small blocks", size=512, block_size=512 << 10, below=True, dense=40, scattered=900),
    Scene(name="larger child", size=64, dense=16, scattered=500, grows=960, grand=True, rate="30M"),
    Scene(name="longer table", size=64, block_size=4096, dense=8, scattered=200, grows=40, rate="30M"),
    Scene(name="undo, two levels", size=256, levels=2, dense=60, scattered=500, undo=True, grand=True, rate="150M"),
    Scene(
        name="undo, verified, a sibling kept",
        size=128,
        below=True,
        dense=20,
        scattered=150,
        undo=True,
        verify=True,
        sibling=True,
        grand=True,
    ),
    Scene(name="undo of a larger child", size=64, dense=12, scattered=300, grows=192, undo=True, rate="30M"),
    Scene(name="1 GiB, scattered, verified", size=1024, block_size=512 << 10, levels=3, scattered=500, verify=True),
    Scene(name="1 GiB, dense", size=1024, dense=420, rate="300M", grand=True),
]


def staged(scene: Scene, folder: Path) -> Stage:
    stage = Stage(scene, folder / scene.name.replace(" ", "-"))
    stage.build()
    return stage


@pytest.mark.parametrize("scene", FEW, ids=lambda scene: scene.name)
def test_a_merge_that_is_killed_again_and_again_loses_nothing(scene: Scene, tmp_path: Path) -> None:
    tally = Tally()
    soak = Soak(staged(scene, tmp_path), random.Random(scene.name), tally, plain_share=0.3)
    while tally.killed < 4:
        soak.round()


@pytest.mark.slow
def test_three_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    total = Tally()
    for scene in MANY:
        begun, tally = time.monotonic(), Tally()
        soak = Soak(staged(scene, tmp_path), random.Random(scene.name), tally, plain_share=16 / scene.size)
        while tally.killed < (20 if scene.size > 128 else 45):
            soak.round()
        print(f"{scene.name}: {tally} ({time.monotonic() - begun:.0f} s)", flush=True)  # noqa: T201
        total.add(tally)
    print(f"in all: {total}")  # noqa: T201 - the figures are what the run is for
    assert total.killed >= 300
