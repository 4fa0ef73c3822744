"""A journal that was left behind when its image was renamed is pointed out, and speaks of no other file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import vhdkit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1 << 20
JOURNAL = ".vhdkit-journal"


def view(path: Path) -> bytes:
    with vhdkit.open_chain(str(path)) as chain:
        return chain.read(0, chain.size)


@pytest.fixture
def vms(tmp_path: Path) -> Path:
    """A leaf over a base."""
    vhdkit.create_image(str(tmp_path / "base.vhd"), size=8 * MIB)
    for name, letter in (("base.vhd", b"b"), ("leaf.avhd", b"l")):
        if name == "leaf.avhd":
            vhdkit.create_image(str(tmp_path / name), parent=str(tmp_path / "base.vhd"))
        with vhdkit.open_chain(str(tmp_path / name), writable=True) as chain:
            chain.write(MIB, letter * MIB)
    return tmp_path


def stopped(vms: Path, **options: str) -> None:
    """Begin a merge, and stop it once it has copied something."""

    def stop(state: vhdkit.Progress) -> None:
        if state.phase is vhdkit.Phase.FINISHING:
            raise vhdkit.MergeCancelled("enough")

    plan = vhdkit.plan_merge(str(vms / "leaf.avhd"), **options)  # type: ignore[arg-type] # by name
    with pytest.raises(vhdkit.MergeCancelled):
        vhdkit.merge(plan, progress=stop)


def content(vms: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in vms.iterdir() if path.is_file()}


def roll_back(vms: Path) -> None:
    vhdkit.rollback(str(vms / "undo.vhd"))


def drop(vms: Path) -> None:
    vhdkit.drop_undo(str(vms / "undo.vhd"))


def merge(vms: Path) -> None:
    vhdkit.merge(vhdkit.plan_merge(str(vms / "leaf.avhd")))


def merge_with_undo(vms: Path) -> None:
    vhdkit.merge(vhdkit.plan_merge(str(vms / "leaf.avhd"), undo=str(vms / "undo.vhd")))


@pytest.mark.parametrize("verb", [roll_back, drop, merge, merge_with_undo])
def test_a_destination_that_was_renamed_without_its_journal_is_refused_with_the_way_out(
    vms: Path, verb: Callable[[Path], None]
) -> None:
    before, leaf = view(vms / "base.vhd"), view(vms / "leaf.avhd")
    stopped(vms, undo=str(vms / "undo.vhd"))
    (vms / "base.vhd").rename(vms / "disk.vhd")
    found = content(vms)
    with pytest.raises(vhdkit.JournalError) as refused:
        verb(vms)
    assert f"rename the journal to {vms / 'disk.vhd'}{JOURNAL}" in str(refused.value)
    assert str(vms / f"base.vhd{JOURNAL}") in str(refused.value)
    assert content(vms) == found
    (vms / f"base.vhd{JOURNAL}").rename(vms / f"disk.vhd{JOURNAL}")
    if verb is merge:
        merge(vms)
        assert view(vms / "disk.vhd") == leaf
    roll_back(vms)
    assert (view(vms / "disk.vhd"), view(vms / "leaf.avhd")) == (before, leaf)


def test_an_undo_image_is_not_written_though_the_destination_was_renamed(vms: Path) -> None:
    stopped(vms, undo=str(vms / "undo.vhd"))
    (vms / "base.vhd").rename(vms / "disk.vhd")
    with pytest.raises(vhdkit.ReadOnlyImageError, match="kept for taking back a merge"):
        vhdkit.open_chain(str(vms / "undo.vhd"), writable=True)


def test_without_an_undo_image_a_renamed_destination_needs_no_journal(vms: Path) -> None:
    leaf = view(vms / "leaf.avhd")
    stopped(vms)
    (vms / "base.vhd").rename(vms / "disk.vhd")
    merge(vms)
    assert view(vms / "disk.vhd") == leaf


def test_what_reads_says_that_a_journal_speaks_of_another_file(vms: Path) -> None:
    stopped(vms)
    base = str(vms / "base.vhd")
    (vms / "base.vhd").rename(vms / "disk.vhd")
    vhdkit.create_image(base, size=MIB)
    with vhdkit.open_chain(base) as chain:
        seen = [*chain.findings, *vhdkit.check(base, chain=True).findings, *vhdkit.scan(str(vms)).unfinished]
    found = [finding for finding in seen if finding.corruption is vhdkit.Corruption.MERGE_UNFINISHED]
    assert len(found) == 3
    for finding in found:
        assert "does not speak of it: it is the journal of a merge into another file" in finding.message
        assert finding.hint is None


def test_a_journal_beside_a_new_file_of_an_old_name_does_not_speak_of_that(vms: Path) -> None:
    stopped(vms)
    (vms / "base.vhd").rename(vms / "disk.vhd")
    merge(vms)
    vhdkit.create_image(str(vms / "base.vhd"), size=MIB)
    found = content(vms)
    with pytest.raises(
        vhdkit.JournalError, match=r"of a merge into another file.*or remove it if that file is no more"
    ):
        vhdkit.create_image(str(vms / "child.avhd"), parent=str(vms / "base.vhd"))
    assert content(vms) == found
    kept = vms / f"base.vhd{JOURNAL}"
    raw = kept.read_bytes()
    kept.unlink()
    vhdkit.create_image(str(vms / "child.avhd"), parent=str(vms / "base.vhd"))
    kept.write_bytes(raw)
    with pytest.raises(vhdkit.JournalError, match="of a merge into another file"):
        vhdkit.merge(vhdkit.plan_merge(str(vms / "child.avhd")))
    os.unlink(kept)
    vhdkit.merge(vhdkit.plan_merge(str(vms / "child.avhd")))
    assert not (vms / "child.avhd").exists()
