"""The workloads of the race, seeded, at any scale: `python benchmarks/workloads.py FOLDER W1 [--scale 0.1]`.

A workload is plain arrays: which blocks each layer holds, in the order in which they were first written, and which
sectors of each. What a sector holds follows from its layer and its number, so any result can be judged without asking
the program that made it. `images` writes these arrays as files.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SECTOR = 512
BLOCK = 2 << 20
SECTORS = BLOCK // SECTOR
GIB = 1 << 30
# A layer's number is stamped into its sectors; this one marks bytes that no bitmap speaks for.
STALE = 0x5741_4C45


@dataclass(frozen=True, slots=True)
class Layer:
    """What one image holds: `blocks` (int64) in file order, `held` (bool, blocks x sectors). Number 0 is the base."""

    number: int
    blocks: NDArray[np.int64]
    held: NDArray[np.bool_]

    @property
    def payload(self) -> int:
        """Bytes of the sectors that it holds."""
        return int(np.count_nonzero(self.held)) * SECTOR


@dataclass(frozen=True)
class Workload:
    """A chain before its merge, the base first, and what its leaf reads."""

    name: str
    size: int
    layers: tuple[Layer, ...]
    aligned: bool = True
    _seed: int = field(default=4, repr=False)

    @cached_property
    def pattern(self) -> NDArray[np.uint64]:
        """One block of random words, a row for each sector."""
        return np.random.default_rng(self._seed).integers(0, 1 << 64, (SECTORS, SECTOR // 8), np.uint64)

    @cached_property
    def _rows(self) -> tuple[dict[int, int], ...]:
        return tuple({block: row for row, block in enumerate(layer.blocks.tolist())} for layer in self.layers)

    def sectors_of(self, layer: int, block: int) -> NDArray[np.bool_] | None:
        """Return which sectors of a block a layer holds, or None for none."""
        row = self._rows[layer].get(block)
        return None if row is None else self.layers[layer].held[row]

    def written(self, layer: int, block: int) -> NDArray[np.uint64]:
        """Return what a layer's block would hold if all its sectors were written: block and layer in each."""
        words = self.pattern.copy()
        words[:, 0] = np.arange(block * SECTORS, (block + 1) * SECTORS, dtype=np.uint64)
        words[:, 1] = layer
        return words

    def view(self, block: int, layer: int | None = None) -> NDArray[np.uint64]:
        """Return what is read of a block through a layer, the leaf unless told."""
        top = len(self.layers) - 1 if layer is None else layer
        words: NDArray[np.uint64] | None = None
        for number in range(top + 1):
            held = self.sectors_of(number, block)
            if held is None:
                continue
            if held.all():
                words = self.written(number, block)
                continue
            if words is None:
                words = np.zeros((SECTORS, SECTOR // 8), np.uint64)
            words[held] = self.written(number, block)[held]
        return np.zeros((SECTORS, SECTOR // 8), np.uint64) if words is None else words

    def blocks(self) -> list[int]:
        """Return the blocks that any layer holds, ascending."""
        return sorted(set().union(*self._rows))

    @property
    def payload(self) -> int:
        """Bytes of the sectors that the children hold together: what a merge is about."""
        return sum(layer.payload for layer in self.layers[1:])


def _full(number: int, blocks: NDArray[np.int64]) -> Layer:
    return Layer(number, blocks, np.ones((len(blocks), SECTORS), np.bool_))


def _at_least(count: float, least: int = 8) -> int:
    return max(least, round(count))


def _runs(random: np.random.Generator, count: int, length: int) -> NDArray[np.bool_]:
    """Return a block's sectors with `count` runs of `length` at random places, which may touch."""
    free = SECTORS - count * length
    start = np.sort(random.integers(0, free + 1, count)) + np.arange(count) * length
    held = np.zeros(SECTORS, np.bool_)
    held[(start[:, None] + np.arange(length)).ravel()] = True
    return held


def _dense(name: str, scale: float) -> Workload:
    """8 GiB of disk: the parent holds 4 GiB, the child 2 GiB of full blocks, half on blocks the parent has."""
    quarter = _at_least(1024 * scale)
    base = np.arange(2 * quarter, dtype=np.int64)
    child = np.arange(2 * quarter - quarter // 2, 3 * quarter - quarter // 2, dtype=np.int64)
    return Workload(name, 4 * quarter * BLOCK, (_full(0, base), _full(1, child)))


def _scattered(scale: float) -> Workload:
    """4 GiB of parent; 1,500 blocks of the child, in each 51 runs of 8 sectors (a tenth) at any sector."""
    random = np.random.default_rng(2)
    base, count = _at_least(2048 * scale, 12), _at_least(1500 * scale)
    blocks = random.permutation(base)[:count].astype(np.int64)
    held = np.array([_runs(random, 51, 8) for _ in range(count)])
    return Workload("W2", base * BLOCK, (_full(0, np.arange(base, dtype=np.int64)), Layer(1, blocks, held)))


def _every_other(scale: float) -> Workload:
    """2 GiB of parent; 500 blocks of the child with every other sector."""
    random = np.random.default_rng(3)
    base, count = _at_least(1024 * scale, 12), _at_least(500 * scale)
    blocks = random.permutation(base)[:count].astype(np.int64)
    held = np.zeros((count, SECTORS), np.bool_)
    held[:, ::2] = True
    return Workload("W3", base * BLOCK, (_full(0, np.arange(base, dtype=np.int64)), Layer(1, blocks, held)))


def spread(scale: float, gib: float, name: str = "W4") -> Workload:
    """A disk of `gib` GiB, its parent nearly empty; 3,000 blocks over all of it, runs of 1, 2 and 5 sectors in each."""
    random = np.random.default_rng(5)
    count = _at_least(3000 * scale)
    entries = max(round(gib * GIB / BLOCK), count + count // 3)
    blocks = random.permutation(np.linspace(0, entries - 1, count).astype(np.int64))
    held = np.zeros((count, SECTORS), np.bool_)
    for row in held:
        for length, low in zip((1, 2, 5), (0, SECTORS // 3, 2 * SECTORS // 3), strict=True):
            start = low + int(random.integers(0, SECTORS // 3 - length))
            row[start : start + length] = True
    base = np.unique(np.linspace(0, entries - 1, 8).astype(np.int64))
    return Workload(name, entries * BLOCK, (_full(0, base), Layer(1, blocks, held)))


def _chain(scale: float) -> Workload:
    """A 4 GiB disk, half of it in the base; 10 levels with 1 to 24 runs of up to 64 sectors in each of 300 blocks."""
    random = np.random.default_rng(6)
    entries, count = _at_least(2048 * scale, 16), _at_least(300 * scale, 5)
    layers = [_full(0, np.arange(entries // 2, dtype=np.int64))]
    for number in range(1, 11):
        blocks = random.permutation(entries)[:count].astype(np.int64)
        held = np.zeros((count, SECTORS), np.bool_)
        for row in held:
            for _ in range(int(random.integers(1, 25))):
                start = int(random.integers(0, SECTORS - 64))
                row[start : start + int(random.integers(1, 65))] = True
        layers.append(Layer(number, blocks, held))
    return Workload("W5", entries * BLOCK, tuple(layers))


def half_full(scale: float) -> Workload:
    """A disk of 2 GiB in one layer, every other block of it full."""
    entries = _at_least(1024 * scale, 16)
    return Workload("half full", entries * BLOCK, (_full(0, np.arange(0, entries, 2, dtype=np.int64)),))


def patched(scale: float) -> Workload:
    """A disk of 2 GiB, the first half in the base; 300 blocks of the child, in each up to 20 runs of 16 sectors."""
    random = np.random.default_rng(7)
    entries, count = _at_least(1024 * scale, 16), _at_least(300 * scale)
    blocks = random.permutation(entries)[:count].astype(np.int64)
    held = np.array([_runs(random, 20, 16) for _ in range(count)])
    base = _full(0, np.arange(entries // 2, dtype=np.int64))
    return Workload("patched", entries * BLOCK, (base, Layer(1, blocks, held)))


WORKLOADS: dict[str, Callable[[float], Workload]] = {
    "W1": lambda scale: _dense("W1", scale),
    "W2": _scattered,
    "W3": _every_other,
    "W4": lambda scale: spread(scale, 2040 * scale),
    "W5": _chain,
    "W6": lambda scale: _dense("W6", scale),
}


def main() -> None:
    """Write the VHD chain of one workload into a folder, and say which file is its leaf."""
    from benchmarks.images import VhdChain  # noqa: PLC0415 - it needs this module

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder")
    parser.add_argument("workload", choices=sorted(WORKLOADS))
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    chain = VhdChain(WORKLOADS[options.workload](options.scale), options.folder)
    chain.restore()
    print(chain.paths[-1])


if __name__ == "__main__":
    main()
