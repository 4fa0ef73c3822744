"""merge --ensure: for schedulers, which run a command again until it succeeds."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.cli.running import BASE, LEAF, MIDDLE, environment, program, view_of
from vhdkit.disk.unique_id import guid

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.running import Outcome

RECORD = f"{BASE}.vhdkit-merged"


@pytest.fixture
def leaf_id(vms: Path) -> str:
    with vhdkit.open_image(str(vms / LEAF)) as image:
        return guid(image.unique_id)


def test_it_succeeds_once_and_ever_after_and_says_which(cli: Callable[..., Outcome], vms: Path, leaf_id: str) -> None:
    shown = view_of(*(vms / name for name in (LEAF, MIDDLE, BASE)))
    words = ["merge", LEAF, "--into", BASE, "--ensure", leaf_id]
    assert cli(*words, "--json").json["outcome"] == "begun"
    for _ in range(3):
        again = cli(*words, "--json")
        assert (again.code, again.json) == (0, {"outcome": "was-done", "destination": str(vms / BASE)})
    assert "was merged already" in cli(*words).out
    assert sorted(os.listdir(vms)) == sorted([BASE, RECORD])
    assert view_of(vms / BASE) == shown
    assert [job.state.plain for job in vhdkit.jobs()] == ["completed"]


def test_a_leaf_that_may_be_lost_is_an_error(cli: Callable[..., Outcome], vms: Path, leaf_id: str) -> None:
    assert cli("merge", LEAF, "--into", BASE).code == 0
    told = cli("merge", LEAF, "--into", BASE, "--ensure", leaf_id).refused()
    assert "may be lost" in told
    assert sorted(os.listdir(vms)) == [BASE]


@pytest.mark.parametrize(
    "words", [[], ["--into", BASE, "--undo", "u.vhd"], ["--into", BASE, "--background"], ["--into", BASE, "--dry-run"]]
)
def test_what_it_does_not_go_with_is_wrong_usage(cli: Callable[..., Outcome], words: list[str], leaf_id: str) -> None:
    assert cli("merge", LEAF, "--ensure", leaf_id, *words).code == 64
    assert cli("merge", LEAF, "--into", BASE, "--ensure", "nonsense").code == 64


def test_of_many_at_once_each_succeeds_or_is_told_to_try_again(vms: Path, leaf_id: str) -> None:
    shown = view_of(*(vms / name for name in (LEAF, MIDDLE, BASE)))
    command = program("merge", LEAF, "--into", BASE, "--ensure", leaf_id, "--progress", "none")
    codes: list[int] = []
    while 0 not in codes:
        racers = [
            subprocess.Popen(command, cwd=vms, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for _ in range(4)
        ]
        told = [racer.communicate(timeout=120) for racer in racers]
        codes = [racer.returncode for racer in racers]
        assert {*codes} <= {0, 1, 75}, told
        # A file that another has just removed, or a journal that it has just written, may be met half-way.
        assert not any(b"Traceback" in err or b"may be lost" in err for _, err in told), told
    assert subprocess.run(command, cwd=vms, env=environment(), check=False, capture_output=True).returncode == 0
    assert view_of(vms / BASE) == shown
