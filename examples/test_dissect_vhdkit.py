"""What dissect.target makes of a chain by itself, and through the adapter: the model says which is right."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dissect.target import container

from tests.serve.disks import SIZE, model_of_three_layers, on_disk  # noqa: F401 - the first is a fixture

if TYPE_CHECKING:
    from tests.model import ModelChain

ADAPTER = Path(__file__).with_name("dissect_vhdkit.py")


@pytest.fixture
def leaf(model: ModelChain, tmp_path: Path) -> Path:
    return on_disk(model, tmp_path / "chain")


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The adapter's class, known to dissect as long as the test runs."""
    monkeypatch.setattr(container, "CONTAINERS", list(container.CONTAINERS))
    return runpy.run_path(str(ADAPTER))["ChainContainer"]


def test_dissect_by_itself_reads_another_disk(model: ModelChain, leaf: Path) -> None:
    """Should it ever read the right one, the adapter has had its day."""
    with leaf.open("rb") as file:
        disk = container.open(file)
        assert disk.__type__ == "vhd"
        # It reads by 8 KiB, and not beyond the last whole ones of a disk.
        content = disk.read(SIZE // 8192 * 8192)
    assert len(content) > SIZE - 8192
    assert content != model.read(0, len(content))


def test_the_adapter_reads_the_disk_of_the_chain(model: ModelChain, leaf: Path, adapter: Any) -> None:
    disk = container.open(leaf)
    assert type(disk) is adapter
    assert disk.size == SIZE
    assert disk.read(SIZE) == model.read(0, SIZE)
    assert disk.seek(90_000) == disk.tell() == 90_000
    assert disk.read(5_000) == model.read(90_000, 5_000)
    disk.close()


def test_a_leaf_is_known_by_its_content_too(model: ModelChain, leaf: Path, adapter: Any) -> None:
    renamed = leaf.rename(leaf.with_name("disk.bin"))
    disk = container.open(renamed)
    assert type(disk) is adapter
    assert disk.read(SIZE) == model.read(0, SIZE)
    disk.close()


def test_an_open_file_stays_with_dissect(leaf: Path, adapter: Any) -> None:
    """Where it is, and so where its parents are, is not known."""
    with leaf.open("rb") as file:
        assert type(container.open(file)) is not adapter


def test_the_tools_of_dissect_take_it_by_their_own_option(model: ModelChain, leaf: Path, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("target-dd")
    copy = tmp_path / "copy.raw"
    words: list[str | Path] = [program, "--plugin-path", ADAPTER, "-w", copy, leaf]
    done = subprocess.run(words, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert copy.read_bytes() == model.read(0, SIZE)
