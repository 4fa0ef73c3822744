"""What snapshots cost: `snapshot list` of fifty deep and fifty wide, and `snapshot take` whatever the disk's size."""

from __future__ import annotations

import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.cli.running import environment
from vhdkit.snapshot.machine import Machine

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

_DEEP = _WIDE = 50
_LIST_SECONDS = 0.5
_TAKE_SECONDS = 0.3


def command(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "vhdkit", *words], check=True, capture_output=True, env=environment())


@pytest.fixture
def tree(tmp_path: Path) -> str:
    """A machine with fifty snapshots one after another, and as many beside each other above the last."""
    base = str(tmp_path / "xp.vhd")
    vhdkit.create_image(base, size=127 << 30)
    machine = Machine.adopt([base])
    for number in range(_DEEP):
        machine.take(f"deep {number}")
    for number in range(_WIDE):
        machine.apply(f"deep {_DEEP - 1}")
        machine.take(f"wide {number}")
    return base


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_list_of_fifty_deep_and_fifty_wide(tree: str, options: list[str], benchmark: BenchmarkFixture) -> None:
    command("snapshot", "list", tree, *options)
    benchmark(command, "snapshot", "list", tree, *options)
    if benchmark.stats is not None:
        assert benchmark.stats["median"] < _LIST_SECONDS


def test_take_in_a_tree_of_a_hundred(tree: str, benchmark: BenchmarkFixture) -> None:
    benchmark(lambda: command("snapshot", "take", str(uuid.uuid4()), tree))
    if benchmark.stats is not None:
        assert benchmark.stats["median"] < _TAKE_SECONDS


@pytest.mark.parametrize("gib", [1, 127, 2040])
def test_take_whatever_the_size(gib: int, tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    base = str(tmp_path / "xp.vhd")
    vhdkit.create_image(base, size=gib << 30)
    Machine.adopt([base])
    benchmark(lambda: command("snapshot", "take", str(uuid.uuid4()), base))
    if benchmark.stats is not None:
        assert benchmark.stats["median"] < _TAKE_SECONDS
