"""The whole race at a hundredth of its size, timing off: every tool that is there merges, and its bytes are judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import race, results
from benchmarks.images import Qcow2Chain, VhdChain, WrongBytesError, check_raw, check_vhd
from benchmarks.measuring import ROOT
from benchmarks.rows import ROWS
from benchmarks.workloads import BLOCK, SECTORS, WORKLOADS, Workload

MAY_BE_MISSING = {
    *("vhdlib", "vhdlib4", "fattools", "unshared", "dissect"),
    *("extfs-raw", "tsk-raw", "ls-ntfs-raw", "ls-ext4-raw"),
}


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("race")
    race.main([str(folder), "--scale", "0.01", "--untimed", "--results", str(folder)])
    return folder


@pytest.fixture(scope="module")
def rows(raced: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((raced / "results.json").read_text())["rows"]
    return found


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_raced(rows: dict[str, Any], name: str) -> None:
    row = rows[name]
    if "skipped" in row:
        # Only what others install or mount may be missing.
        assert ROWS[name].rival in MAY_BE_MISSING, row["skipped"]
        pytest.skip(row["skipped"])
    assert row["ours"]["note"] == ""
    assert row["ratio"] > 0


def test_results_are_written(raced: Path) -> None:
    assert "## Ratios of wall time" in (raced / "results.md").read_text()
    assert (raced / "race.svg").read_text().startswith("<svg")
    assert (raced / "disks.svg").read_text().count("<polyline") >= 2
    assert not list((raced / "vhdkit-race").iterdir())


@pytest.fixture(params=["W2", "W5"])
def work(request: pytest.FixtureRequest) -> Workload:
    return WORKLOADS[request.param](0.002)


def test_an_unmerged_base_is_told_from_a_merged_one(work: Workload, tmp_path: Path) -> None:
    chain, overlays = VhdChain(work, str(tmp_path / "vhd")), Qcow2Chain(work, str(tmp_path / "qcow2"))
    chain.restore()
    overlays.restore()
    with pytest.raises(WrongBytesError):
        check_vhd(work, chain.paths[0])
    with pytest.raises(WrongBytesError):
        check_raw(work, overlays.paths[0])


def test_a_restore_brings_back_what_was_there(work: Workload, tmp_path: Path) -> None:
    chain = VhdChain(work, str(tmp_path))
    chain.restore()
    before = [Path(path).read_bytes() for path in chain.paths]
    with open(chain.paths[0], "r+b") as base:
        base.seek(0, 2)
        base.write(b"more")
        base.seek(1536)
        base.write(bytes(64))
    Path(chain.paths[-1]).unlink()
    chain.restore()
    assert [Path(path).read_bytes() for path in chain.paths] == before


def test_a_view_is_of_the_highest_layer_that_holds_a_sector() -> None:
    work = WORKLOADS["W5"](0.002)
    for block in work.blocks():
        view = work.view(block)
        for sector in range(0, SECTORS, 97):
            holders = [
                layer.number
                for layer in work.layers
                if (held := work.sectors_of(layer.number, block)) is not None and held[sector]
            ]
            expected = [block * SECTORS + sector, holders[-1]] if holders else [0, 0]
            assert view[sector, :2].tolist() == expected


def test_unaligned_placement_is_made_too(tmp_path: Path) -> None:
    dense = WORKLOADS["W1"](0.002)
    work = Workload("unaligned", dense.size, dense.layers, aligned=False)
    chain = VhdChain(work, str(tmp_path))
    chain.restore()
    raw = Path(chain.paths[0]).read_bytes()
    first = int.from_bytes(raw[1536:1540], "big") * 512
    second = int.from_bytes(raw[1540:1544], "big") * 512
    assert second - first == BLOCK + SECTORS // 8


@pytest.mark.parametrize("change", [{"scale": 0.01}, {"timed": False}])
def test_a_race_that_says_nothing_of_speed_gives_no_verdict(change: dict[str, object]) -> None:
    rows = dict(list(results.load(str(ROOT / "benchmarks"))["rows"].items())[:3])
    assert "What bounds" in results._page(rows)  # noqa: SLF001 - what results.md is made of
    page = results._page({name: row | change for name, row in rows.items()})  # noqa: SLF001
    assert "the ratios say nothing" in page
    assert not any(word in page for word in ("What bounds", "| yes |", "| no |"))


def test_a_row_that_is_not_there_is_told_with_those_that_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        race.main([str(tmp_path), "--rows", "W1-cpp"])
    assert "there is no row W1-cpp; there are W1-cp, W1-qemu" in capsys.readouterr().err
