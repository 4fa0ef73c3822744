"""A layer that a merge went past and kept says that its view has ended, and is used no more unless that is accepted."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.cutting import at_first, cut_off
from tests.typed import as_typed
from tests.unit.test_between_runs import BLOCK, MIB, merge, view, write
from vhdkit.chain.rebase import plan_rebase
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from pathlib import Path

MARK = ".vhdkit-ended"
ENDED = vhdkit.Corruption.VIEW_ENDED


@pytest.fixture
def vms(tmp_path: Path) -> Path:
    """Four levels, of which the upper three were merged into the lowest and kept."""
    vhdkit.create_image(str(tmp_path / "d0.vhd"), size=4 * MIB, block_size=BLOCK)
    write(tmp_path / "d0.vhd", 0, b"base" * (MIB // 4))
    for level in (1, 2, 3):
        below = tmp_path / ("d0.vhd" if level == 1 else f"d{level - 1}.avhd")
        vhdkit.create_image(str(tmp_path / f"d{level}.avhd"), parent=str(below))
        write(tmp_path / f"d{level}.avhd", level * MIB // 4, b"d%d" % level * (MIB // 4))
    merge(tmp_path / "d3.avhd", into=str(tmp_path / "d0.vhd"), keep_sources=True)
    return tmp_path


def ended(findings: tuple[vhdkit.Finding, ...]) -> list[tuple[str, vhdkit.Level]]:
    return [(os.path.basename(each.path), each.level) for each in findings if each.corruption is ENDED]


def child_of(layer: Path, **options: object) -> None:
    vhdkit.create_image(str(layer.with_name("child.avhd")), parent=str(layer), **options)  # type: ignore[arg-type] # by name


def test_layers_between_are_marked_and_the_leaf_is_not(vms: Path) -> None:
    assert sorted(path.name for path in vms.glob(f"*{MARK}*")) == [f"d1.avhd{MARK}", f"d2.avhd{MARK}"]
    with pytest.raises(vhdkit.JournalError, match=rf"view has ended.*d2\.avhd{MARK}"):
        child_of(vms / "d2.avhd")
    with pytest.raises(vhdkit.JournalError) as refused:
        child_of(vms / "d2.avhd")
    assert "--accept-ended accepts it" in as_typed(refused.value)
    assert not (vms / "child.avhd").exists()
    child_of(vms / "d3.avhd")
    assert view(vms / "child.avhd") == view(vms / "d0.vhd")


def test_a_child_is_made_of_it_where_that_is_accepted(vms: Path) -> None:
    child_of(vms / "d2.avhd", accept_ended=True)
    assert view(vms / "child.avhd") == view(vms / "d2.avhd")


def test_no_image_is_told_that_it_is_its_parent_unless_that_is_accepted(vms: Path) -> None:
    child_of(vms / "d0.vhd")
    before = (vms / "child.avhd").read_bytes()
    for act in (vhdkit.rebase, plan_rebase):
        with pytest.raises(vhdkit.JournalError, match=rf"view has ended.*d2\.avhd{MARK}"):
            act(str(vms / "child.avhd"), str(vms / "d2.avhd"), ignore_id_mismatch=True)
    assert (vms / "child.avhd").read_bytes() == before
    vhdkit.rebase(str(vms / "child.avhd"), str(vms / "d2.avhd"), ignore_id_mismatch=True, accept_ended=True)
    assert view(vms / "child.avhd") == view(vms / "d2.avhd")


def test_a_layer_that_stands_in_the_way_may_be_removed_and_that_is_said(vms: Path) -> None:
    child_of(vms / "d0.vhd")
    write(vms / "child.avhd", 3 * MIB, b"late" * 1024)
    expected = view(vms / "child.avhd")
    advice = rf"went past {vms / 'd1.avhd'}, whose view has ended: remove it instead, with what reads through it"
    with pytest.raises(vhdkit.SiblingsError, match=advice):
        merge(vms / "child.avhd", into=str(vms / "d0.vhd"))
    with pytest.raises(vhdkit.SiblingsError, match=advice):
        vhdkit.open_image(str(vms / "d0.vhd"), writable=True)
    for level in (1, 2, 3):
        (vms / f"d{level}.avhd").unlink()
    merge(vms / "child.avhd", into=str(vms / "d0.vhd"))
    assert view(vms / "d0.vhd") == expected


def test_what_was_merged_past_it_is_told_where_it_lies_now(vms: Path) -> None:
    expected = view(vms / "d3.avhd")
    (vms / "moved").mkdir()
    for name in ("d2.avhd", f"d2.avhd{MARK}"):
        os.rename(vms / name, vms / "moved" / name)
    vhdkit.rebase(str(vms / "d3.avhd"), str(vms / "moved" / "d2.avhd"))
    assert vhdkit.rebase(str(vms / "d3.avhd"), str(vms / "moved" / "d2.avhd")).changes_nothing
    with vhdkit.open_chain(str(vms / "d3.avhd"), search=[str(vms)]) as chain:
        assert chain.read(0, chain.size) == expected


def test_it_is_neither_merged_nor_merged_into_unless_that_is_accepted(vms: Path) -> None:
    before = {path.name: path.read_bytes() for path in vms.iterdir()}
    for top, into in (("d2.avhd", "d0.vhd"), ("d3.avhd", "d2.avhd")):
        plan = vhdkit.plan_merge(str(vms / top), into=str(vms / into))
        assert "view has ended" in str(plan.obstacles[0])
        with pytest.raises(vhdkit.JournalError, match="view has ended"):
            vhdkit.merge(plan)
    assert {path.name: path.read_bytes() for path in vms.iterdir()} == before
    expected = view(vms / "d3.avhd")
    merge(vms / "d3.avhd", into=str(vms / "d2.avhd"), accept_ended=True)
    assert view(vms / "d2.avhd") == expected
    # It shows now what the topmost did, and may be a parent again.
    assert not (vms / f"d2.avhd{MARK}").exists()
    child_of(vms / "d2.avhd")


def test_the_same_merge_again_goes_past_it_and_keeps_or_removes_it(vms: Path) -> None:
    expected = view(vms / "d3.avhd")
    merge(vms / "d3.avhd", into=str(vms / "d0.vhd"), keep_sources=True)
    assert (vms / f"d1.avhd{MARK}").exists()
    merge(vms / "d3.avhd", into=str(vms / "d0.vhd"))
    assert view(vms / "d0.vhd") == expected
    assert os.listdir(vms) == ["d0.vhd"]


def test_a_merge_of_a_new_leaf_goes_past_it(vms: Path) -> None:
    child_of(vms / "d3.avhd")
    write(vms / "child.avhd", 3 * MIB, b"late" * 1024)
    expected = view(vms / "child.avhd")
    merge(vms / "child.avhd", into=str(vms / "d0.vhd"))
    assert view(vms / "d0.vhd") == expected
    assert os.listdir(vms) == ["d0.vhd"]


def test_chain_and_check_say_it_as_loud_as_it_matters(vms: Path) -> None:
    quiet = [("d2.avhd", vhdkit.Level.INFO), ("d1.avhd", vhdkit.Level.INFO)]
    with vhdkit.open_chain(str(vms / "d3.avhd")) as chain:
        assert ended(chain.findings) == quiet
    assert ended(vhdkit.check(str(vms / "d3.avhd"), chain=True).findings) == quiet
    (vms / "d3.avhd").unlink()
    loud = [("d2.avhd", vhdkit.Level.WARNING), ("d1.avhd", vhdkit.Level.WARNING)]
    with vhdkit.open_chain(str(vms / "d2.avhd")) as chain:
        assert ended(chain.findings) == loud
    assert ended(vhdkit.check(str(vms / "d2.avhd"), chain=True).findings) == loud


def test_a_layer_that_was_renamed_is_known_by_its_id(vms: Path) -> None:
    os.rename(vms / "d2.avhd", vms / "other.avhd")
    with pytest.raises(vhdkit.JournalError, match="view has ended"):
        child_of(vms / "other.avhd")


def test_a_mark_says_nothing_of_another_image_or_of_another_parent(vms: Path) -> None:
    vhdkit.create_image(str(vms / "new.vhd"), size=MIB)
    shutil.copy(vms / f"d2.avhd{MARK}", vms / f"new.vhd{MARK}")
    child_of(vms / "new.vhd")
    (vms / "child.avhd").unlink()
    shutil.copy(vms / "d0.vhd", vms / "copy.vhd")
    (vms / "d0.vhd").unlink()
    (vms / "d2.avhd").unlink()
    (vms / "d3.avhd").unlink()
    vhdkit.rebase(str(vms / "d1.avhd"), str(vms / "copy.vhd"), search=[str(vms)])
    child_of(vms / "d1.avhd")


@pytest.mark.parametrize(
    "change",
    [
        lambda mark: {**mark, "version": 2},
        lambda mark: {**mark, "command": "rm"},
        lambda mark: {**mark, "unique_id": "/etc/passwd"},
        lambda mark: {**mark, "leaf_id": ""},
        lambda mark: {**mark, "ended": float("nan")},
        lambda mark: {**mark, "ended": 10**400},
        lambda mark: [mark],
        lambda _mark: "",
        lambda mark: {**mark, "header": "0" * 64},
    ],
)
def test_a_mark_that_is_none_hides_only_itself(vms: Path, change: object) -> None:
    path = vms / f"d2.avhd{MARK}"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))  # type: ignore[operator] # a function
    child_of(vms / "d2.avhd")
    with vhdkit.open_chain(str(vms / "d3.avhd")) as chain:
        assert [name for name, _ in ended(chain.findings)] == ["d1.avhd"]


def test_one_that_is_kept_as_a_leftover_is_marked(tmp_path: Path) -> None:
    vhdkit.create_image(str(tmp_path / "d0.vhd"), size=MIB, block_size=BLOCK)
    for level in (1, 2):
        below = tmp_path / ("d0.vhd" if level == 1 else "d1.avhd")
        vhdkit.create_image(str(tmp_path / f"d{level}.avhd"), parent=str(below))
        write(tmp_path / f"d{level}.avhd", 0, b"d%d" % level * 4096)
    cut_off(LocalFolder(), str(tmp_path / "d2.avhd"), str(tmp_path / "d0.vhd"), at_first("remove", "d1.avhd"))
    os.utime(tmp_path / "d1.avhd", (2e9, 2e9))
    result = merge(tmp_path / "d1.avhd", into=str(tmp_path / "d0.vhd"))
    assert result.removed == ()
    assert sorted(os.listdir(tmp_path)) == ["d0.vhd", "d1.avhd", f"d1.avhd{MARK}"]
    with pytest.raises(vhdkit.JournalError, match="view has ended"):
        child_of(tmp_path / "d1.avhd")


def test_a_machine_is_not_begun_with_it(vms: Path) -> None:
    with pytest.raises(vhdkit.SnapshotError, match="view has ended"):
        vhdkit.Machine.adopt([str(vms / "d3.avhd")])
    assert not list(vms.glob("*.json"))


def test_what_it_shows_now_can_be_had_as_a_file_of_its_own(vms: Path) -> None:
    vhdkit.merge(vhdkit.plan_merge(str(vms / "d2.avhd"), to=str(vms / "new.vhd")))
    assert view(vms / "new.vhd") == view(vms / "d2.avhd")
