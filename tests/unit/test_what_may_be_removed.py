"""Sources that could not be removed in the end are obstacles of the plan, not an error once all is merged."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.cutting import at_first, cut_off
from tests.typed import as_typed
from tests.unit.test_between_runs import BLOCK, MIB, merge, view, write
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def vms(tmp_path: Path) -> Path:
    vhdkit.create_image(str(tmp_path / "base.vhd"), size=MIB, block_size=BLOCK)
    vhdkit.create_image(str(tmp_path / "leaf.avhd"), parent=str(tmp_path / "base.vhd"))
    write(tmp_path / "leaf.avhd", 4096, b"leaf" * 1024)
    return tmp_path


@pytest.fixture
def immutable(vms: Path) -> Iterator[Path]:
    """The leaf, marked immutable, which only root may do, and not on every file system."""
    leaf, tool = vms / "leaf.avhd", shutil.which("chattr")
    if tool is None or subprocess.run([tool, "+i", leaf], check=False, capture_output=True).returncode:
        pytest.skip("no file can be marked immutable here")
    yield leaf
    subprocess.run([tool, "-i", leaf], check=True)


def contents(vms: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in vms.iterdir()}


def test_an_immutable_source_is_an_obstacle_unless_it_is_kept(vms: Path, immutable: Path) -> None:
    before, expected = contents(vms), view(immutable)
    with pytest.raises(vhdkit.ReadOnlyImageError, match=r"leaf\.avhd: .*immutable.*keep_sources=True") as caught:
        merge(immutable)
    assert "keep it with --keep-sources" in as_typed(caught.value)
    assert contents(vms) == before
    merge(immutable, keep_sources=True)
    assert view(vms / "base.vhd") == expected
    assert immutable.exists()


def test_one_that_became_immutable_after_the_cut_is_kept_if_that_is_asked(vms: Path) -> None:
    cut_off(LocalFolder(), str(vms / "leaf.avhd"), str(vms / "base.vhd"), at_first("remove", "leaf.avhd"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalFolder, "may_remove", lambda _folder, path: not path.endswith("leaf.avhd"))
        with pytest.raises(vhdkit.ReadOnlyImageError, match="immutable"):
            merge(vms / "leaf.avhd")
        merge(vms / "leaf.avhd", keep_sources=True)
    assert sorted(contents(vms)) == ["base.vhd", "leaf.avhd"]


def test_anothers_source_in_a_sticky_folder_is_an_obstacle(vms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vms.chmod(0o1777)
    before = contents(vms)
    monkeypatch.setattr("vhdkit.storage.local_folder.this_user", lambda: 54321)
    plan = vhdkit.plan_merge(str(vms / "leaf.avhd"))
    assert ["sticky" in str(each) for each in plan.obstacles] == [True]
    assert contents(vms) == before
    assert vhdkit.plan_merge(str(vms / "leaf.avhd"), keep_sources=True).obstacles == ()


@pytest.mark.parametrize("name", ["leaf.avhd", "undo.vhd"])
def test_a_drop_that_could_remove_not_all_is_refused_and_the_roll_back_left(
    vms: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    undo, old = str(vms / "undo.vhd"), view(vms / "base.vhd")
    merge(vms / "leaf.avhd", undo=undo)
    before = contents(vms)
    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "may_remove", lambda _folder, path: not path.endswith(name))
        with pytest.raises(vhdkit.ReadOnlyImageError, match="immutable"):
            vhdkit.drop_undo(undo)
    assert contents(vms) == before
    vhdkit.rollback(undo)
    assert view(vms / "base.vhd") == old
