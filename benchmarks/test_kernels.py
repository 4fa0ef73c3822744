"""Kernels on 4,096 bitmaps of 2 MiB blocks (8 GiB of disk): run with `pytest benchmarks`, or `--benchmark-disable`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from vhdkit.disk import extents, sector_bitmap
from vhdkit.disk.extents import Extents, Kind
from vhdkit.disk.read_extents import covered
from vhdkit.disk.sector_bitmap import HeldSectors
from vhdkit.vhd import bat

if TYPE_CHECKING:
    from collections.abc import Callable

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
    found = benchmark(sector_bitmap.runs, bitmaps, SECTORS)
    assert all((ours == naive).all() for ours, naive in zip(found, _naive_runs(bitmaps, SECTORS), strict=True))


def test_runs_the_naive_way(benchmark: BenchmarkFixture, bitmaps: NDArray[np.uint8]) -> None:
    benchmark(_naive_runs, bitmaps, SECTORS)


def test_set_runs(benchmark: BenchmarkFixture) -> None:
    rows = np.zeros((512, SECTORS // 8), np.uint8)
    row = np.repeat(np.arange(512), 50)
    start = np.tile(np.arange(50) * 80, 512)
    benchmark(sector_bitmap.set_runs, rows, row, start, start + 8)
    assert int(sector_bitmap.count(rows, SECTORS).sum()) == 512 * 50 * 8


def test_count(benchmark: BenchmarkFixture, bitmaps: NDArray[np.uint8]) -> None:
    total = benchmark(sector_bitmap.count, bitmaps, SECTORS)
    assert int(total.sum()) == int(np.unpackbits(bitmaps).sum())


def test_full(benchmark: BenchmarkFixture) -> None:
    rows = benchmark(sector_bitmap.full, SECTORS * 512, BLOCKS)
    assert (sector_bitmap.count(rows, SECTORS) == SECTORS).all()


def test_first_overlap_of_a_full_table(benchmark: BenchmarkFixture) -> None:
    sectors = np.random.default_rng(2).permutation(1_044_480).astype(np.uint32) * np.uint32(4097)

    def fresh() -> tuple[tuple[NDArray[np.uint32], int], dict[str, object]]:
        return (sectors.copy(), 4097), {}

    assert benchmark.pedantic(bat.first_overlap, setup=fresh, rounds=5) is None  # type: ignore[no-untyped-call]


def _layer(seed: int, runs: int) -> Extents:
    edges = np.sort(np.random.default_rng(seed).choice(8_000_000, 2 * runs, replace=False)).astype(np.int64) * 512
    return extents.filled(edges[0::2], edges[1::2], edges[0::2] + 4096, 0, 8_000_000 * 512, Kind.PARENT)


def test_overlay_of_100_000_runs(benchmark: BenchmarkFixture) -> None:
    upper, lower = _layer(3, 100_000), _layer(4, 100_000)
    result = benchmark(extents.overlay, upper, lower)
    assert int((result.stop - result.start).sum()) == 8_000_000 * 512


def test_split_at_blocks(benchmark: BenchmarkFixture) -> None:
    layer = _layer(5, 100_000)
    assert benchmark(extents.split, layer, 2 << 20).total == layer.total


def test_covered(benchmark: BenchmarkFixture) -> None:
    start = np.arange(0, 2 << 20, 1024)
    assert int(benchmark(covered, start, start + 512, 2 << 20).sum()) == 2048


def _best(call: Callable[[], object], rounds: int = 7) -> float:
    """Return the shortest of a few runs in seconds."""
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times)


def _random_runs(blocks: int, number: int) -> NDArray[np.uint8]:
    random = np.random.default_rng(6)
    bits = np.zeros((blocks, SECTORS), np.uint8)
    edges = random.permuted(np.tile(np.arange(1, SECTORS), (blocks, 1)), axis=1)[:, : 2 * number]
    np.put_along_axis(bits, edges, 1, axis=1)
    return np.packbits(np.bitwise_xor.accumulate(bits, axis=1), axis=1, bitorder="big")


def _is_timed(request: pytest.FixtureRequest) -> bool:
    return not request.config.getoption("benchmark_disable")


def _tell(name: str, kernel: float, rival: float, size: int = 0) -> None:
    """Print a kernel's time, its rival's and their ratio, for `pytest benchmarks -s -k bar`."""
    rate = f" | {size / kernel / 1e9:.1f} GB/s" if size else ""
    print(f"| {name} | {kernel * 1e3:.2f} ms | {rival * 1e3:.2f} ms | {rival / kernel:.2f}{rate} |")


# How many times as fast as the plain numpy form it must be; seen are about 14, 25, 1.4, 4.
@pytest.mark.parametrize(("name", "bar"), [("50 runs", 10), ("20 runs", 10), ("every other", 1), ("noise", 1)])
def test_bar_of_runs(request: pytest.FixtureRequest, name: str, bar: float) -> None:
    if name.endswith("runs"):
        rows = _random_runs(BLOCKS, int(name.split(maxsplit=1)[0]))
    elif name == "noise":
        rows = np.random.default_rng(7).integers(0, 256, (512, SECTORS // 8), np.uint8)
    else:
        rows = np.full((512, SECTORS // 8), 0xAA, np.uint8)
    for ours, naive in zip(sector_bitmap.runs(rows, SECTORS), _naive_runs(rows, SECTORS), strict=True):
        assert np.array_equal(ours, naive)
    if _is_timed(request):
        kernel, rival = _best(lambda: sector_bitmap.runs(rows, SECTORS)), _best(lambda: _naive_runs(rows, SECTORS))
        _tell(f"runs, {name}", kernel, rival)
        assert rival >= bar * kernel


def test_bar_of_count(request: pytest.FixtureRequest) -> None:
    """At least half as fast as one pass of numpy over the same bytes."""
    is_timed = _is_timed(request)
    rows = np.zeros((524_288 if is_timed else 1024, SECTORS // 8), np.uint8)
    rows[::3], rows[::5] = 0xFF, 0x81
    words = rows.view(np.uint64).ravel()
    expected = np.where(np.arange(len(rows)) % 5 == 0, 2 * SECTORS // 8, SECTORS * (np.arange(len(rows)) % 3 == 0))
    assert np.array_equal(sector_bitmap.count(rows, SECTORS), expected)
    if is_timed:
        stream = _best(lambda: np.bitwise_or.reduce(words))
        kernel = _best(lambda: sector_bitmap.count(rows, SECTORS))
        _tell("count, against one pass", kernel, stream, rows.nbytes)
        # numpy's popcount alone takes 1.4 passes.
        assert kernel <= 2 * stream


@pytest.mark.parametrize("length", [1, 8])
def test_bar_of_merging_sectors(request: pytest.FixtureRequest, length: int) -> None:
    out, other = np.random.default_rng(8).integers(0, 256, (2, 2 << 20), np.uint8)
    wanted = np.arange(SECTORS) // length % 2 == 0
    expected = np.where(np.repeat(wanted, 512), other, out)

    def naive() -> None:
        np.copyto(out.reshape(-1, 512), other.reshape(-1, 512), where=wanted[:, None])

    sector_bitmap.merge_sectors(out, other, wanted)
    assert np.array_equal(out, expected)
    if _is_timed(request):
        kernel, rival = _best(lambda: sector_bitmap.merge_sectors(out, other, wanted), 50), _best(naive, 50)
        _tell(f"merge_sectors, runs of {length}", kernel, rival, int(wanted.sum()) * 512)
        assert rival >= 8 * kernel


def _naive_set_runs(rows: NDArray[np.uint8], row: NDArray[np.int64], start: NDArray[np.int64]) -> None:
    steps = np.zeros((len(rows), SECTORS + 1), np.int16)
    np.add.at(steps, (row, start), 1)
    np.add.at(steps, (row, start + 1), -1)
    rows |= np.packbits(np.cumsum(steps[:, :-1], axis=1, dtype=np.int16) > 0, axis=1, bitorder="big")


def test_bar_of_setting_runs(request: pytest.FixtureRequest) -> None:
    row, start = np.repeat(np.arange(512), 50), np.tile(np.arange(50) * 80, 512)
    ours, naive = np.zeros((2, 512, SECTORS // 8), np.uint8)
    sector_bitmap.set_runs(ours, row, start, start + 1)
    _naive_set_runs(naive, row, start)
    assert np.array_equal(ours, naive)
    if _is_timed(request):
        kernel = _best(lambda: sector_bitmap.set_runs(ours, row, start, start + 1))
        rival = _best(lambda: _naive_set_runs(naive, row, start))
        _tell("set_runs, 50 a block", kernel, rival)
        assert rival >= 4 * kernel


def test_bar_of_owners(request: pytest.FixtureRequest) -> None:
    """Ten layers of the same 16 blocks against a pass over each layer's unpacked bits."""
    rows, layers = np.arange(16), _random_runs(160, 20).reshape(10, 16, -1)
    numbered = [HeldSectors(rows, layer) for layer in layers]

    def naive() -> NDArray[np.int64]:
        owner = np.full((16, SECTORS), -1)
        for number, layer in enumerate(layers):
            owner[(np.unpackbits(layer, axis=1) == 1) & (owner < 0)] = number
        return owner

    row, start, stop, owner = sector_bitmap.owners(16, numbered, SECTORS)
    assert np.array_equal(np.repeat(owner, stop - start), naive().ravel())
    assert np.array_equal(row, np.sort(row))
    if _is_timed(request):
        kernel, rival = _best(lambda: sector_bitmap.owners(16, numbered, SECTORS)), _best(naive)
        _tell("owners, ten layers", kernel, rival)
