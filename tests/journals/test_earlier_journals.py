"""Merges that an earlier version has cut off go on; what their journals and step files say is read as it was meant."""

from __future__ import annotations

import json
import os
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.journals.make import CUTS, three, two
from tests.unit.test_merge_laws import vhdkit_view
from vhdkit.journal.merge_journal import read_journal
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from vhdkit.journal.merge_journal import Journal

ARCHIVE = Path(__file__).with_name("made-by-dfd6f62.tar.xz")
OTHERS = ("kept", "dropping", "rollback", "restored", "stopped", "no UTF-8")
# What each journal says, besides how the merge began.
SAYS: dict[str, dict[str, object]] = {
    "begin": {"reserved": False, "mark": 0},
    "begin with undo": {"reserved": False, "saved": 0},
    "reserved": {"reserved": True, "mark": 0},
    "growing": {"reserved": True, "grown": False},
    "grown": {"grown": True},
    "saved": {"reserved": True, "mark": 0},
    "mark": {"reserved": True, "merged": False},
    "mark with undo": {"reserved": True, "merged": False},
    "merged": {"merged": True},
    "relinking": {"merged": True},
    "removing": {"merged": True},
    "kept": {"merged": True, "dropping": False},
    "dropping": {"merged": True, "dropping": True, "keep_undo_file": False},
    "rollback": {"rolling_back": True, "restored": False},
    "restored": {"rolling_back": True, "restored": True},
    "stopped": {"stopped": "cancelled"},
    "no UTF-8": {"reserved": True},
}


def unpacked(case: str, place: Path) -> Path:
    """Unpack one case, with the times of its files."""
    with tarfile.open(ARCHIVE) as tar:
        times = json.loads(tar.extractfile("times.json").read())  # type: ignore[union-attr]
        for member in tar.getmembers():
            if member.name.startswith(case + "/"):
                tar.extract(member, place, filter="data")
                name = os.path.join(os.fsencode(place), os.fsencode(member.name))
                os.utime(name, ns=(times[member.name], times[member.name]))
    return place / case


def journal_of(folder: Path) -> Journal:
    journal = read_journal(LocalFolder(), str(folder / "layer-0.vhd"))
    assert journal is not None
    return journal


def expected(case: str) -> bytes:
    if case in CUTS:
        chain, _, _, _ = CUTS[case]
        return chain().view().tobytes()
    return two().view().tobytes()


@pytest.mark.parametrize("case", SAYS)
def test_what_an_earlier_journal_says_is_read(case: str, tmp_path: Path) -> None:
    journal = journal_of(unpacked(case, tmp_path))
    for name, value in SAYS[case].items():
        assert getattr(journal, name) == value, name
    if case.startswith("mark"):
        assert journal.mark > 0
    if case in {"saved", "mark with undo"}:
        assert journal.saved > 0
    if case in {"merged", "relinking"}:
        assert [journal.resolve(relink.path) for relink in journal.relinks or ()] == [
            str(tmp_path / case / "layer-2.avhd")
        ]


def test_every_case_is_there() -> None:
    assert {*SAYS} == {*CUTS, *OTHERS}


def leaf_of(folder: Path) -> str:
    """Return the file that shows the disk: once the topmost source is gone, the destination does."""
    if folder.name == "removing":
        return str(folder / "layer-0.vhd")
    images = sorted(name for name in os.listdir(folder) if name.endswith(".avhd"))
    return str(folder / (images[-1] if images else "layer-0.vhd"))


@pytest.mark.parametrize("case", [case for case in SAYS if case not in {"dropping", "rollback", "restored"}])
def test_a_merge_that_an_earlier_version_has_cut_off_goes_on(case: str, tmp_path: Path) -> None:
    if case == "no UTF-8" and sys.platform != "linux":
        pytest.skip("its name is no UTF-8")
    folder = unpacked(case, tmp_path)
    view = expected(case)
    assert vhdkit_view(LocalFolder(), leaf_of(folder)) == view
    begun = journal_of(folder).begin
    assert begun is not None
    top = str(folder / begun.sources[0].path)
    undo = str(folder / "undo.vhd") if begun.undo else None
    plan = vhdkit.plan_merge(top, into=str(folder / "layer-0.vhd"), undo=undo)
    assert plan.obstacles == ()
    vhdkit.merge(plan)
    left = sorted(name for name in os.listdir(folder) if name.endswith(".avhd"))
    if undo is None:
        # With the topmost gone, a source goes only if its state was noted once the destination had been read.
        kept = {"merged": ["layer-2.avhd"], "relinking": ["layer-2.avhd"], "removing": ["layer-1.avhd"]}
        assert left == kept.get(case, [])
    shown = left[-1] if left and undo is None and case != "removing" else "layer-0.vhd"
    assert vhdkit_view(LocalFolder(), str(folder / shown)) == view
    assert not [name for name in os.listdir(folder) if name.endswith((".vhdkit-header", ".partial"))]
    report = vhdkit.check(str(folder / "layer-0.vhd"))
    assert report.count(vhdkit.Level.ERROR) == 0


@pytest.mark.parametrize("case", ["saved", "mark with undo", "kept", "rollback", "restored"])
def test_a_merge_that_an_earlier_version_has_made_is_rolled_back(case: str, tmp_path: Path) -> None:
    folder = unpacked(case, tmp_path)
    vhdkit.rollback(str(folder / "undo.vhd"))
    assert sorted(os.listdir(folder)) == ["layer-0.vhd", "layer-1.avhd"]
    base = two().layers[-1].data.tobytes()
    assert vhdkit_view(LocalFolder(), str(folder / "layer-0.vhd")) == base
    assert vhdkit_view(LocalFolder(), str(folder / "layer-1.avhd")) == two().view().tobytes()


def test_an_undo_image_that_an_earlier_version_began_to_drop_is_dropped(tmp_path: Path) -> None:
    folder = unpacked("dropping", tmp_path)
    vhdkit.drop_undo(str(folder / "undo.vhd"))
    assert os.listdir(folder) == ["layer-0.vhd"]
    assert vhdkit_view(LocalFolder(), str(folder / "layer-0.vhd")) == two().view().tobytes()


def test_a_step_that_an_earlier_version_has_cut_off_is_read_through(tmp_path: Path) -> None:
    folder = unpacked("relinking", tmp_path)
    with vhdkit.open_chain(str(folder / "layer-2.avhd")) as chain:
        assert [Path(layer.path).name for layer in chain.layers] == ["layer-2.avhd", "layer-0.vhd"]
        assert chain.read(0, chain.size) == three().view().tobytes()
    assert (folder / "layer-2.avhd.vhdkit-header").exists()
