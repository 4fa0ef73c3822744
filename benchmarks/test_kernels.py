"""Kernels on 4,096 bitmaps of 2 MiB blocks (8 GiB of disk): run with `pytest benchmarks`, or `--benchmark-disable`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from vhdkit.format import bat, bitmap
from vhdkit.image import extent
from vhdkit.image.extent import Extents, Kind
from vhdkit.image.transfer import covered

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pytest_benchmark.fixture import BenchmarkFixture

BLOCKS, SECTORS = 4096, 4096


@pytest.fixture(params=["empty", "full", "sparse", "every-other"])
def bitmaps(request: pytest.FixtureRequest) -> NDArray[np.uint8]:
    rows = np.zeros((BLOCKS if request.param != "every-other" else BLOCKS // 8, SECTORS // 8), np.uint8)
    if request.param == "full":
        rows[:] = 0xFF
    elif request.param == "every-other":
        rows[:] = 0xAA
    elif request.param == "sparse":
        random = np.random.default_rng(1)
        rows[random.integers(0, len(rows), 20 * len(rows)), random.integers(0, rows.shape[1], 20 * len(rows))] = 0x7E
    return rows


def _naive_runs(bitmaps: NDArray[np.uint8], sectors: int) -> tuple[NDArray[np.int64], ...]:
    """The plain numpy way: every bit a byte, then differences."""
    bits = np.unpackbits(bitmaps, axis=1, bitorder="big")[:, :sectors]
    edges = np.diff(np.pad(bits, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row, start = np.nonzero(edges == 1)
    return row, start, np.nonzero(edges == -1)[1]


def test_runs(benchmark: BenchmarkFixture, bitmaps: NDArray[np.uint8]) -> None:
    found = benchmark(bitmap.runs, bitmaps, SECTORS)
    assert all((ours == naive).all() for ours, naive in zip(found, _naive_runs(bitmaps, SECTORS), strict=True))


def test_runs_the_naive_way(benchmark: BenchmarkFixture, bitmaps: NDArray[np.uint8]) -> None:
    benchmark(_naive_runs, bitmaps, SECTORS)


def test_set_runs(benchmark: BenchmarkFixture) -> None:
    rows = np.zeros((512, SECTORS // 8), np.uint8)
    row = np.repeat(np.arange(512), 50)
    start = np.tile(np.arange(50) * 80, 512)
    benchmark(bitmap.set_runs, rows, row, start, start + 8)
    assert int(bitmap.count(rows, SECTORS).sum()) == 512 * 50 * 8


def test_count(benchmark: BenchmarkFixture, bitmaps: NDArray[np.uint8]) -> None:
    total = benchmark(bitmap.count, bitmaps, SECTORS)
    assert int(total.sum()) == int(np.unpackbits(bitmaps).sum())


def test_first_overlap_of_a_full_table(benchmark: BenchmarkFixture) -> None:
    sectors = np.random.default_rng(2).permutation(1_044_480).astype(np.uint32) * np.uint32(4097)

    def fresh() -> tuple[tuple[NDArray[np.uint32], int], dict[str, object]]:
        return (sectors.copy(), 4097), {}

    assert benchmark.pedantic(bat.first_overlap, setup=fresh, rounds=5) is None  # type: ignore[no-untyped-call]


def _layer(seed: int, runs: int) -> Extents:
    edges = np.sort(np.random.default_rng(seed).choice(8_000_000, 2 * runs, replace=False)).astype(np.int64) * 512
    return extent.filled(edges[0::2], edges[1::2], edges[0::2] + 4096, 0, 8_000_000 * 512, Kind.PARENT)


def test_overlay_of_100_000_runs(benchmark: BenchmarkFixture) -> None:
    upper, lower = _layer(3, 100_000), _layer(4, 100_000)
    result = benchmark(extent.overlay, upper, lower)
    assert int((result.stop - result.start).sum()) == 8_000_000 * 512


def test_split_at_blocks(benchmark: BenchmarkFixture) -> None:
    layer = _layer(5, 100_000)
    assert benchmark(extent.split, layer, 2 << 20).total == layer.total


def test_covered(benchmark: BenchmarkFixture) -> None:
    start = np.arange(0, 2 << 20, 1024)
    assert int(benchmark(covered, start, start + 512, 2 << 20).sum()) == 2048
