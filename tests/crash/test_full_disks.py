"""Disks that are full: before a merge, and in the middle of it because somebody else has taken the room."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.cli.running import snapshot
from tests.crash.real import MIB, TOP, UNDO, Running, Scene, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.crash.real import Ended

pytestmark = pytest.mark.thorough

DISK = 64 * MIB
# A dynamic destination gets new blocks; an existing block of a differencing one is filled in place.
SCENES = [
    Scene(name="dynamic", size=16, dense=6, scattered=4, grand=True),
    Scene(name="undo", size=16, below=True, levels=2, dense=3, undo=True),
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 64 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, check=False) if sys.platform == "linux" else None
    if done is None or done.returncode:
        pytest.skip("mounting a small file system needs Linux and its root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stage]:
    """Build every scene once, elsewhere: the small disk has only what is worked on."""
    built = {scene.name: Stage(scene, tmp_path_factory.mktemp(scene.name)) for scene in SCENES}
    for stage in built.values():
        stage.build()
    return built


def leave(disk: Path, free: int) -> Path:
    """Take all of a disk's room but `free` bytes."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        room = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - free)
    return ballast


def moved_to(disk: Path, stage: Stage) -> Stage:
    """Return the stage with its work on the disk."""
    stage.restore()
    (disk / "work").mkdir()
    for path in stage.work.iterdir():
        (disk / "work" / path.name).write_bytes(path.read_bytes())
    there = Stage(stage.scene, disk, before=stage.before, files=stage.files, merged_file=stage.merged_file)
    assert there.work == disk / "work"
    return there


def missing(done: Ended) -> int:
    """Return how many bytes a failed merge says are missing."""
    found = re.search(r"(\d+) bytes are needed, (\d+) are free, (\d+) are missing", done.err)
    assert found is not None, done.err
    needed, free, less = map(int, found.groups())
    assert needed - free == less
    return less


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_a_disk_with_too_little_room_is_refused_before_the_first_byte(
    scene: Scene, stages: dict[str, Stage], disk: Path
) -> None:
    stage = moved_to(disk, stages[scene.name])
    plan = plan_of(stage)
    ballast = leave(disk, plan.space_needed - 4096)
    before = snapshot(stage.work)
    done = Running(stage.work, scene.merge).ended()
    assert done.code == 1
    assert 4096 <= missing(done) <= 4096 * 3
    assert snapshot(stage.work) == before, "something was changed, or left behind"
    # What it says is missing is enough.
    os.truncate(ballast, ballast.stat().st_size - missing(done) - 4 * 4096)
    done = Running(stage.work, scene.merge).ended()
    assert done.code == 0, done.err
    stage.assert_merged()


def merge_or_error(stage: Stage, progress: Callable[[vhdkit.Progress], None]) -> vhdkit.NotEnoughSpaceError | None:
    """Merge; return what it says about space if there is not enough."""
    try:
        vhdkit.merge(plan_of(stage), progress=progress)
    except vhdkit.NotEnoughSpaceError as error:
        return error
    return None


def plan_of(stage: Stage) -> vhdkit.MergePlan:
    work, scene = stage.work, stage.scene
    undo = str(work / UNDO) if scene.undo else None
    return vhdkit.plan_merge(str(work / TOP), into=str(work / scene.destination), undo=undo)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
@pytest.mark.parametrize("at", ["begun", "copying"])
def test_a_disk_that_fills_during_the_merge_costs_nothing(
    scene: Scene, at: str, stages: dict[str, Stage], disk: Path
) -> None:
    stage = moved_to(disk, stages[scene.name])
    taken: list[Path] = []

    def take(state: vhdkit.Progress) -> None:
        wanted = vhdkit.Phase.RESERVING if at == "begun" else vhdkit.Phase.COPYING
        if state.phase is wanted and not taken:
            taken.append(leave(disk, 0))

    error = merge_or_error(stage, take)
    # What the sectors take was reserved before; the journal's next line was not, and may be what is refused.
    assert error is not None or at == "copying"
    if error is not None:
        assert error.needed > error.available
        assert "are missing" in str(error)
        stage.look()
        assert Running(stage.work, scene.merge).ended().code == 1, "it cannot go on while the disk is full"
        stage.look()
        taken[0].unlink()
        done = Running(stage.work, scene.merge).ended()
        assert done.code == 0, done.err
    assert taken
    stage.assert_merged()


@pytest.mark.parametrize("room", [0, MIB])
def test_a_limit_of_file_size_is_an_error_and_costs_nothing(stages: dict[str, Stage], room: int) -> None:
    scene = SCENES[0]
    stage = stages[scene.name]
    stage.restore()
    limit = (stage.work / scene.destination).stat().st_size + room

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = Running(stage.work, scene.merge, preexec_fn=limited).ended()
    assert done.code == 1
    assert os.strerror(errno.EFBIG) in done.err
    assert "Traceback" not in done.err
    stage.look()
    done = Running(stage.work, scene.merge).ended()
    assert done.code == 0, done.err
    stage.assert_merged()


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO])
def test_a_quota_that_is_reached_while_copying_says_what_goes_on(
    number: int, stages: dict[str, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = SCENES[1]
    stage = stages[scene.name]
    stage.restore()
    write = os.pwrite
    is_full = []

    def reached(state: vhdkit.Progress) -> None:
        if state.phase is vhdkit.Phase.COPYING:
            is_full.append(True)

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if is_full:
            raise OSError(number, os.strerror(number))
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises((vhdkit.NotEnoughSpaceError, OSError)) as caught:
        vhdkit.merge(plan_of(stage), progress=reached)
    monkeypatch.undo()
    assert isinstance(caught.value, vhdkit.NotEnoughSpaceError) == (number != errno.EIO)
    assert "goes on with it" in "".join(caught.value.__notes__)
    assert "takes it back" in "".join(caught.value.__notes__)
    stage.look()
    done = Running(stage.work, scene.merge).ended()
    assert done.code == 0, done.err
    stage.assert_merged()
