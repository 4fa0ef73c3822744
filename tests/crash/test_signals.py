"""A merge that is paused, slowed down, or asked to end by a signal."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.crash.real import MIB, TOP, Running, Scene, Stage, digest, journal_of, names_in

SCENE = Scene(name="signals", size=16, dense=5, scattered=20, grand=True, verify=True)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    built = Stage(SCENE, tmp_path_factory.mktemp("signals"))
    built.build()
    return built


def begun(stage: Stage, rate: str) -> Running:
    """Start it, and wait until it copies."""
    stage.restore()
    run = Running(stage.work, [*SCENE.merge, "--rate", rate])
    assert run.wait_until(lambda: b'"copying"' in run.told)
    return run


def test_a_merge_that_is_stopped_and_continued_is_the_same_merge(stage: Stage) -> None:
    dice = random.Random(5)
    run = begun(stage, "4M")
    for _ in range(4):
        time.sleep(dice.uniform(0, 0.15))
        run.send(signal.SIGSTOP)
        time.sleep(dice.uniform(0.05, 0.3))
        assert digest(stage.work / TOP, lock=False) == stage.before[TOP]
        run.send(signal.SIGCONT)
    done = run.ended()
    assert done.code == 0, done.err
    stage.assert_merged()


def test_the_rate_is_kept(stage: Stage) -> None:
    done = begun(stage, "3M").ended()
    assert done.code == 0, done.err
    assert done.json["bytes-copied"] / done.json["seconds"] <= 3 * MIB * 1.25
    stage.assert_merged()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("times", [1, 2])
def test_a_merge_that_is_asked_to_end_does_so_before_it_is_complete(
    stage: Stage, number: signal.Signals, times: int
) -> None:
    run = begun(stage, "1M")
    for _ in range(times):
        run.send(number)
        time.sleep(0.005)
    done = run.ended()
    assert done.code == 130, done.err
    assert "interrupted" in done.err
    assert "goes on with it" in done.err
    assert "Traceback" not in done.err
    assert journal_of(stage.work, SCENE) is not None
    stage.look()
    done = Running(stage.work, SCENE.merge).ended()
    assert (done.code, done.json["resumed"]) == (0, True)
    stage.assert_merged()


def listens(run: Running) -> bool:
    """Whether it catches SIGTERM, as the program does while it works and Python alone does not."""
    status = Path(f"/proc/{run.process.pid}/status").read_text().splitlines()
    (caught,) = [int(line.split()[1], 16) for line in status if line.startswith("SigCgt:")] or [0]
    return bool(caught >> signal.SIGTERM - 1 & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc tells which signals are caught")
def test_it_can_be_asked_to_end_at_any_time(stage: Stage) -> None:
    dice = random.Random(6)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        stage.restore()
        run = Running(stage.work, SCENE.merge)
        # Before it listens, and after the work is done, Python itself is what the signal meets.
        run.wait_until(lambda run=run: listens(run))  # type: ignore[misc] # of this turn
        time.sleep(dice.uniform(0, stage.seconds))
        run.send(number)
        done = run.ended()
        is_over = journal_of(stage.work, SCENE) is None and TOP not in names_in(stage.work)
        assert done.code in {0, 130} or (is_over and done.code in {-number, 1}), done.err
        stage.look()
        if not is_over:
            assert Running(stage.work, SCENE.merge).ended().code == 0
        stage.assert_merged()
