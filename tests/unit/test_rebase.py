"""A child is told where its parent is: what is compared, what is refused, and that nothing else changes."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.plainbuild import ImageSpec, build, locator
from tests.plainvhd import DIFFERENCING
from tests.typed import as_typed
from vhdkit.chain.rebase_plan import Fit
from vhdkit.command_hints import command_words
from vhdkit.errors import (
    ChainError,
    ChainLoopError,
    CorruptImageError,
    ImageInUseError,
    JournalError,
    MergeError,
    ParentMismatchError,
    ReadOnlyImageError,
)
from vhdkit.findings import hints_as
from vhdkit.vhd.open_image import open_image
from vhdkit.vhd.sparse_image import SparseImage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1 << 20
SIZE = 8 * MIB


@pytest.fixture
def vms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay a base with something in it, and a child with something else."""
    folder = tmp_path / "vms"
    folder.mkdir()
    monkeypatch.chdir(folder)
    made("base.vhd", size=SIZE)
    made("child.avhd", parent="base.vhd")
    write("child.avhd", 3 * MIB, b"child")
    return folder


def made(path: str, *, size: int | None = None, parent: str | None = None) -> None:
    vhdkit.create_image(path, size=size, parent=parent, stamp=7)
    if parent is None:
        write(path, 0, b"base" * 1024)


def write(path: str, offset: int, data: bytes) -> None:
    with vhdkit.open_chain(path, writable=True) as chain:
        chain.write(offset, data, sync=True)


def view(path: str, *, parent: str | None = None) -> bytes:
    with vhdkit.open_chain(path, parent=parent) as chain:
        return chain.read(0, chain.size)


def parents(path: str) -> list[str]:
    with vhdkit.open_chain(path) as chain:
        return [os.path.relpath(layer.path) for layer in chain.layers[1:]]


def renamed_away(vms: Path, name: str) -> Path:
    """Rename the base so that neither name nor folder leads to it."""
    (vms / name).parent.mkdir(exist_ok=True)
    return (vms / "base.vhd").rename(vms / name)


@pytest.mark.parametrize("name", ["other.vhd", "below/base.vhd", "below/other name.vhd"])
def test_a_parent_that_was_moved_or_renamed_is_found_again(vms: Path, name: str) -> None:
    before = view("child.avhd")
    renamed_away(vms, name)
    result = vhdkit.rebase("child.avhd", name)
    assert not result.changes_nothing
    assert result.expected_id == result.found_id
    assert parents("child.avhd") == [name]
    assert view("child.avhd") == before
    assert vhdkit.check("child.avhd").findings == ()
    # By what it says, not by its id: a second file with the id beside it no longer leads astray.
    shutil.copy(vms / name, vms / "copy.vhd")
    assert parents("child.avhd") == [name]


def test_a_parent_outside_needs_a_search_folder_and_that_is_said(vms: Path, tmp_path: Path) -> None:
    before = view("child.avhd")
    (tmp_path / "elsewhere").mkdir()
    (vms / "base.vhd").rename(tmp_path / "elsewhere" / "base.vhd")
    with hints_as(command_words()):
        result = vhdkit.rebase("child.avhd", str(tmp_path / "elsewhere" / "base.vhd"))
    assert any(f"--search {tmp_path / 'elsewhere'}" in remark for remark in result.remarks)
    with vhdkit.open_chain("child.avhd", search=[str(tmp_path / "elsewhere")]) as chain:
        assert chain.read(0, chain.size) == before


def test_what_it_says_already_is_not_written_again(vms: Path) -> None:
    raw = (vms / "child.avhd").read_bytes()
    assert vhdkit.rebase("child.avhd", "base.vhd").changes_nothing, "as it was made, so it is"
    again = vhdkit.rebase("child.avhd", "base.vhd")
    assert again.changes_nothing
    assert again.fits is Fit.YES
    (vms / "child.avhd").chmod(0o444)
    assert vhdkit.rebase("child.avhd", "base.vhd").changes_nothing, "nothing is written, so nothing is in the way"
    assert (vms / "child.avhd").read_bytes() == raw


def test_another_id_is_refused_with_both_and_taken_if_it_is_to_be_ignored(vms: Path) -> None:
    before = view("child.avhd")
    raw = (vms / "base.vhd").read_bytes()
    (vms / "base.vhd").unlink()
    made("new.vhd", size=SIZE)
    child = (vms / "child.avhd").read_bytes()
    with pytest.raises(ParentMismatchError, match="ignore_id_mismatch=True") as caught:
        vhdkit.rebase("child.avhd", "new.vhd")
    assert "--ignore-id-mismatch" in as_typed(caught.value)
    assert (caught.value.expected, caught.value.found) == (raw[-512 + 68 : -512 + 84], id_of("new.vhd"))
    assert caught.value.windows_code == 0xC03A000E
    assert (vms / "child.avhd").read_bytes() == child
    result = vhdkit.rebase("child.avhd", "new.vhd", ignore_id_mismatch=True)
    assert result.fits is Fit.UNKNOWN
    assert any("nothing proves" in remark for remark in result.remarks)
    assert parents("child.avhd") == ["new.vhd"]
    assert view("child.avhd") == before


def id_of(path: str) -> bytes:
    with vhdkit.open_image(path) as image:
        return image.unique_id


def test_the_one_with_the_right_id_is_named_when_another_is_refused(vms: Path) -> None:
    made("new.vhd", size=SIZE)
    with pytest.raises(ParentMismatchError, match=str(vms / "base.vhd")):
        vhdkit.rebase("child.avhd", "new.vhd")


def test_whether_the_content_fits_is_told_by_reading_both(vms: Path) -> None:
    shutil.copy(vms / "base.vhd", vms / "copy.vhd")
    assert vhdkit.plan_rebase("child.avhd", "copy.vhd").fits is Fit.YES
    write("copy.vhd", 5 * MIB, b"!")
    child = (vms / "child.avhd").read_bytes()
    with pytest.raises(ChainError, match=f"first at byte {5 * MIB}"):
        vhdkit.rebase("child.avhd", "copy.vhd")
    assert (vms / "child.avhd").read_bytes() == child
    result = vhdkit.rebase("child.avhd", "copy.vhd", ignore_id_mismatch=True)
    assert (result.fits, result.difference) == (Fit.NO, 5 * MIB)
    assert parents("child.avhd") == ["copy.vhd"]


def test_a_plan_writes_nothing(vms: Path) -> None:
    renamed_away(vms, "other.vhd")
    before = {path.name: path.read_bytes() for path in vms.iterdir()}
    assert not vhdkit.plan_rebase("child.avhd", "other.vhd").changes_nothing
    assert {path.name: path.read_bytes() for path in vms.iterdir()} == before


def test_time_stamps_are_compared_and_never_a_reason_to_refuse(vms: Path) -> None:
    renamed_away(vms, "other.vhd")
    os.utime("other.vhd", (2_000_000_000, 2_000_000_000))
    assert any("as of" in remark for remark in vhdkit.rebase("child.avhd", "other.vhd").remarks)


def smaller(vms: Path) -> str:
    made("large.vhd", size=2 * SIZE)
    del vms
    return "large.vhd"


def itself(vms: Path) -> str:
    del vms
    return "child.avhd"


def grandchild(vms: Path) -> str:
    made("grandchild.avhd", parent="child.avhd")
    del vms
    return "grandchild.avhd"


def raw_file(vms: Path) -> str:
    (vms / "disk.img").write_bytes(bytes(SIZE))
    return "disk.img"


def damaged(vms: Path) -> str:
    raw = bytearray((vms / "base.vhd").read_bytes())
    raw[512 + 40] ^= 1
    (vms / "damaged.vhd").write_bytes(raw)
    return "damaged.vhd"


def missing(vms: Path) -> str:
    del vms
    return "nowhere.vhd"


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (smaller, MergeError, "cut off"),
        (itself, ChainLoopError, "loop"),
        (grandchild, ChainLoopError, "loop"),
        (raw_file, CorruptImageError, "footer"),
        (damaged, CorruptImageError, "checksum"),
        (missing, FileNotFoundError, "nowhere"),
    ],
)
def test_a_parent_that_cannot_be_is_refused(
    vms: Path, make: Callable[[Path], str], error: type[Exception], text: str
) -> None:
    parent = make(vms)
    before = {path.name: path.read_bytes() for path in vms.iterdir()}
    with pytest.raises(error, match=text):
        vhdkit.rebase("child.avhd", parent, ignore_id_mismatch=True)
    assert {path.name: path.read_bytes() for path in vms.iterdir()} == before


def test_an_image_without_a_parent_is_refused(vms: Path) -> None:
    made("new.vhd", size=SIZE)
    with pytest.raises(ChainError, match="no differencing image"):
        vhdkit.rebase("base.vhd", "new.vhd")
    assert vms.is_dir()


def test_a_child_that_may_not_be_written_is_refused(vms: Path) -> None:
    renamed_away(vms, "other.vhd")
    (vms / "child.avhd").chmod(0o444)
    with pytest.raises(ReadOnlyImageError):
        vhdkit.rebase("child.avhd", "other.vhd")


def test_a_parent_in_use_is_no_parent_that_cannot_be_found(vms: Path) -> None:
    made("other.vhd", size=SIZE)
    write("other.vhd", 0, b"something else")
    before = (vms / "child.avhd").read_bytes()
    with open_image("base.vhd", writable=True, exclusive=True):
        for plan in (False, True):
            with pytest.raises(ImageInUseError, match=r"base\.vhd"):
                (vhdkit.plan_rebase if plan else vhdkit.rebase)("child.avhd", "other.vhd", ignore_id_mismatch=True)
    assert (vms / "child.avhd").read_bytes() == before


def test_files_in_use_are_refused(vms: Path) -> None:
    shutil.copy(vms / "base.vhd", vms / "copy.vhd")
    with vhdkit.open_chain("copy.vhd", writable=True), pytest.raises(ImageInUseError):
        vhdkit.rebase("child.avhd", "copy.vhd")
    with vhdkit.open_chain("child.avhd"), pytest.raises(ImageInUseError):
        vhdkit.rebase("child.avhd", "copy.vhd")
    assert parents("child.avhd") == ["base.vhd"]


def test_a_merge_that_is_not_finished_is_in_the_way(vms: Path) -> None:
    plan = vhdkit.plan_merge("child.avhd")

    def stop(state: vhdkit.Progress) -> None:
        if state.bytes_done:
            raise vhdkit.MergeCancelled("enough")

    with pytest.raises(vhdkit.MergeCancelled):
        vhdkit.merge(plan, progress=stop)
    shutil.copy(vms / "base.vhd", vms / "copy.vhd")
    with pytest.raises(JournalError, match="not finished"):
        vhdkit.rebase("child.avhd", "copy.vhd", ignore_id_mismatch=True)


def test_a_raw_parent_is_taken_by_a_child_that_looks_for_none(vms: Path) -> None:
    (vms / "disk.img").write_bytes(b"raw!" * (SIZE // 4))
    spec = ImageSpec(
        disk_type=DIFFERENCING,
        size=SIZE,
        parent_id=bytes(16),
        parent_name="lost.img",
        locators=(locator(0, b"W2ru", ".\\lost.img"),),
    )
    (vms / "raw-child.vhd").write_bytes(build(spec))
    result = vhdkit.rebase("raw-child.vhd", "disk.img")
    assert result.found_id == bytes(16)
    assert view("raw-child.vhd", parent="disk.img") == b"raw!" * (SIZE // 4)
    with closing(vhdkit.open_image("raw-child.vhd")) as image:
        assert isinstance(image, SparseImage)
        assert image.header.parent_name == "disk.img"
