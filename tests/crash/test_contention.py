"""Two processes at one chain at once: writers that exclude each other, and a reader that asks nobody."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import vhdkit
from tests.crash.racer import Racer, race
from tests.crash.real import TOP, UNDO, Scene, Stage, journal_of, names_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.thorough

BUSY, FAILED = 75, 1
SMALL = Scene(name="small", size=2, block_size=64 << 10, levels=2, below=True, dense=1, scattered=20, grand=True)


@pytest.fixture
def racers() -> Iterator[list[Racer]]:
    both = [Racer(), Racer()]
    yield both
    for racer in both:
        racer.close()


def staged(scene: Scene, folder: Path) -> Stage:
    stage = Stage(scene, folder / scene.name.replace(" ", "-"))
    stage.build()
    return stage


def merging(scene: Scene, **more: Any) -> dict[str, Any]:
    return {"arguments": scene.merge, **more}


def alone(racer: Racer, stage: Stage, arguments: list[str]) -> None:
    """Do something that nobody stands in the way of."""
    answers = race([racer], stage.work, [{"arguments": arguments}])
    assert answers[0][0] == 0, answers


def finish(racer: Racer, stage: Stage) -> None:
    """Merge if nobody has come to the end of it."""
    if TOP in names_in(stage.work) or journal_of(stage.work, stage.scene) is not None:
        alone(racer, stage, stage.scene.merge)


def assert_fair(answers: list[tuple[int, str]]) -> None:
    """One wins, or both are told to try again (locks are taken without waiting); and whoever loses says why."""
    assert any(code == 0 for code, _ in answers) or all("try again" in said for _, said in answers), answers
    for code, said in answers:
        assert code in {0, FAILED, BUSY}, said
        assert "Traceback" not in said
        if code == FAILED:
            words = ("No such file", "has changed", "went on", "came or went", "was changed", "finish that first")
            assert any(word in said for word in words), said


def races_of_merges(stage: Stage, racers: list[Racer], number: int) -> Counter[tuple[int, ...]]:
    seen: Counter[tuple[int, ...]] = Counter()
    dice = random.Random(number)
    for _ in range(number):
        stage.restore()
        late = dice.choice([0, 0, dice.uniform(0, 0.03)])
        answers = race(racers, stage.work, [merging(stage.scene), merging(stage.scene, late=late)])
        assert_fair(answers)
        codes = tuple(sorted(code for code, _ in answers))
        seen[codes] += 1
        assert codes != (0, 0), answers
        if codes == (BUSY, BUSY):
            assert journal_of(stage.work, stage.scene) is None
            stage.assert_as_before()
            finish(racers[0], stage)
        stage.assert_merged()
    return seen


def races_with_a_writer(stage: Stage, racers: list[Racer], number: int) -> Counter[tuple[int, ...]]:
    """The writer changes the first sectors of what is merged: what it was told to have done must be there."""
    seen: Counter[tuple[int, ...]] = Counter()
    dice = random.Random(number)
    data = b"written!" * 128
    for _ in range(number):
        stage.restore()
        write = {"write": [TOP, 0, data.hex()], "late": dice.choice([0, dice.uniform(0, 0.05)])}
        answers = race(racers, stage.work, [merging(stage.scene), write])
        assert_fair(answers)
        seen[tuple(code for code, _ in answers)] += 1
        leaf = TOP if TOP in names_in(stage.work) else stage.scene.destination
        with vhdkit.open_chain(str(stage.work / leaf)) as chain:
            found = chain.read(0, chain.size)
        is_written = answers[1][0] == 0
        assert (found[: len(data)] == data) == is_written, answers
        finish(racers[0], stage)
        with vhdkit.open_chain(str(stage.work / stage.scene.destination)) as chain:
            assert chain.read(0, chain.size) == found
    return seen


def races_with_a_roll_back(stage: Stage, racers: list[Racer], number: int) -> Counter[tuple[int, ...]]:
    """A merge that was stopped half way is continued and rolled back at once."""
    seen: Counter[tuple[int, ...]] = Counter()
    dice = random.Random(number)
    for _ in range(number):
        stage.restore()
        stop_after(stage, dice.randrange(1, 12))
        tasks = [
            merging(stage.scene),
            {"arguments": ["rollback", UNDO], "late": dice.choice([0, dice.uniform(0, 0.02)])},
        ]
        answers = race(racers, stage.work, tasks)
        assert_fair(answers)
        seen[tuple(code for code, _ in answers)] += 1
        stage.look()
        if journal_of(stage.work, stage.scene) is not None:
            alone(racers[0], stage, ["rollback", UNDO])
        stage.assert_as_before()
    return seen


def stop_after(stage: Stage, steps: int) -> None:
    """Merge in this process, and stop at the given step; nothing is told before the room is made."""
    left = [steps]

    def progress(state: vhdkit.Progress) -> None:
        left[0] -= state.phase == vhdkit.Phase.COPYING
        if left[0] <= 0:
            raise vhdkit.MergeCancelled("as the test wants it")

    work = stage.work
    into = str(work / stage.scene.destination)
    try:
        vhdkit.merge(vhdkit.plan_merge(str(work / TOP), into=into, undo=str(work / UNDO)), progress=progress)
    except vhdkit.MergeCancelled:
        return


RACES = {
    "two merges": (races_of_merges, SMALL),
    "a merge and a writer": (races_with_a_writer, replace(SMALL, name="writer", grand=False)),
    "a merge and a roll-back": (races_with_a_roll_back, replace(SMALL, name="roll-back", undo=True)),
}


@pytest.mark.parametrize("name", RACES)
def test_of_two_processes_one_wins_and_the_other_says_why_not(name: str, tmp_path: Path, racers: list[Racer]) -> None:
    races, scene = RACES[name]
    races(staged(scene, tmp_path), racers, 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", RACES)
def test_of_two_hundred_races_each_has_one_winner(name: str, tmp_path: Path, racers: list[Racer]) -> None:
    races, scene = RACES[name]
    seen = races(staged(scene, tmp_path), racers, 200)
    print(f"{name}: exit codes {dict(seen)}")  # noqa: T201 - the figures are what the run is for
