from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.plainvhd import flat, parse
from tests.through import ThroughStorage
from vhdkit.storage.local_file import LocalStorage
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from vhdkit.storage.protocols import Storage

MIB = 1 << 20


@pytest.fixture
def vms(tmp_path: Path) -> Path:
    vhdkit.create_image(str(tmp_path / "base.vhd"), size=8 * MIB, block_size=65536)
    write(tmp_path / "base.vhd", 0, b"base" * 4096)
    vhdkit.create_image(str(tmp_path / "middle.avhd"), parent=str(tmp_path / "base.vhd"))
    write(tmp_path / "middle.avhd", 4096, b"middle.." * 512)
    vhdkit.create_image(str(tmp_path / "leaf.avhd"), parent=str(tmp_path / "middle.avhd"))
    write(tmp_path / "leaf.avhd", 5 * MIB, b"leaf" * 512)
    return tmp_path


def write(path: Path, offset: int, data: bytes) -> None:
    with vhdkit.open_chain(str(path), writable=True) as chain:
        chain.write(offset, data)


def view(path: Path) -> bytes:
    with vhdkit.open_chain(str(path)) as chain:
        return chain.read(0, chain.size)


def merge_while(leaf: Path, into: Path, happens: Callable[[], object]) -> vhdkit.MergeResult:
    """Merge, and let something happen once in the middle of the copying."""
    left = [happens]

    def progress(state: vhdkit.Progress) -> None:
        if state.phase == vhdkit.Phase.COPYING and left:
            left.pop()()

    return vhdkit.merge(vhdkit.plan_merge(str(leaf), into=str(into)), progress=progress)


def test_the_space_of_a_removed_source_is_freed_while_its_directory_is_synced(
    vms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []
    begin_close, sync = LocalStorage.begin_close, LocalFolder.sync

    def closing(storage: LocalStorage) -> None:
        assert not os.path.exists(storage.path)
        told.append(("closing", os.path.basename(storage.path)))
        begin_close(storage)

    def syncing(folder: LocalFolder, directory: str) -> None:
        told.append(("syncing", directory))
        sync(folder, directory)

    monkeypatch.setattr(LocalStorage, "begin_close", closing)
    monkeypatch.setattr(LocalFolder, "sync", syncing)
    vhdkit.merge(vhdkit.plan_merge(str(vms / "leaf.avhd"), into=str(vms / "base.vhd")))
    first = told.index(("closing", "leaf.avhd"))
    synced = ("syncing", str(vms))
    assert told[first : first + 4] == [("closing", "leaf.avhd"), synced, ("closing", "middle.avhd"), synced]


def test_nobody_who_asks_can_write_to_a_layer_during_its_merge(vms: Path) -> None:
    refused = []

    def try_all() -> None:
        for name in ("leaf.avhd", "middle.avhd", "base.vhd"):
            with pytest.raises(vhdkit.ImageInUseError) as caught:
                vhdkit.open_image(str(vms / name), writable=True, exclusive=True)
            refused.append(Path(caught.value.path).name)
        with pytest.raises(vhdkit.ImageInUseError):
            write(vms / "leaf.avhd", 0, b"late")
        with pytest.raises(vhdkit.ImageInUseError):
            view(vms / "leaf.avhd")

    expected = view(vms / "leaf.avhd")
    merge_while(vms / "leaf.avhd", vms / "base.vhd", try_all)
    assert refused == ["leaf.avhd", "middle.avhd", "base.vhd"]
    assert os.listdir(vms) == ["base.vhd"]
    assert view(vms / "base.vhd") == expected


def test_a_source_written_around_the_locks_during_its_merge_is_not_removed(vms: Path) -> None:
    """A writer that asks for no lock: the file is held against what it was before anything goes by names."""
    place = (vms / "leaf.avhd").read_bytes().index(b"leaf" * 512)

    def write_late() -> None:
        with (vms / "leaf.avhd").open("r+b") as file:
            file.seek(place)
            file.write(b"late")

    with pytest.raises(vhdkit.MergeError, match="changed or replaced"):
        merge_while(vms / "leaf.avhd", vms / "base.vhd", write_late)
    assert view(vms / "leaf.avhd")[5 * MIB : 5 * MIB + 4] == b"late"
    assert sorted(os.listdir(vms)) == ["base.vhd", "base.vhd.vhdkit-journal", "leaf.avhd", "middle.avhd"]
    # The same merge again takes over what was written, though its journal had passed that place.
    plan = vhdkit.plan_merge(str(vms / "leaf.avhd"), into=str(vms / "base.vhd"))
    assert plan.mark == 0  # everything is copied again
    vhdkit.merge(plan)
    assert view(vms / "base.vhd")[5 * MIB : 5 * MIB + 8] == b"lateleaf"


def test_a_destination_replaced_during_the_merge_costs_no_source(vms: Path) -> None:
    expected = view(vms / "leaf.avhd")
    (vms / "restored").write_bytes((vms / "base.vhd").read_bytes())
    with pytest.raises(vhdkit.MergeError, match="replaced while"):
        merge_while(vms / "leaf.avhd", vms / "base.vhd", lambda: os.replace(vms / "restored", vms / "base.vhd"))
    assert view(vms / "leaf.avhd") == expected


def test_another_file_that_takes_the_sources_name_is_not_removed(vms: Path) -> None:
    (vms / "innocent").write_bytes(b"precious")
    with pytest.raises(vhdkit.MergeError, match=r"leaf\.avhd"):
        merge_while(vms / "leaf.avhd", vms / "base.vhd", lambda: os.replace(vms / "innocent", vms / "leaf.avhd"))
    assert (vms / "leaf.avhd").read_bytes() == b"precious"


def test_a_snapshot_cannot_be_taken_during_the_merge(vms: Path) -> None:
    def snapshot() -> None:
        with pytest.raises(vhdkit.ImageInUseError):
            vhdkit.create_image(str(vms / "new.avhd"), parent=str(vms / "leaf.avhd"))

    expected = view(vms / "leaf.avhd")
    merge_while(vms / "leaf.avhd", vms / "base.vhd", snapshot)
    assert os.listdir(vms) == ["base.vhd"]
    assert view(vms / "base.vhd") == expected


@pytest.mark.parametrize("parent", ["leaf", "middle", "base"])
def test_a_child_that_appears_during_the_merge_is_not_orphaned(vms: Path, parent: str) -> None:
    """Whoever made it asked for no lock: it comes into the folder as a whole."""
    expected = view(vms / "leaf.avhd")
    suffix = "vhd" if parent == "base" else "avhd"
    with tempfile.TemporaryDirectory() as elsewhere:
        made = Path(elsewhere) / "new.avhd"
        vhdkit.create_image(str(vms / "new.avhd"), parent=str(vms / f"{parent}.{suffix}"))
        before = view(vms / "new.avhd")
        shutil.move(vms / "new.avhd", made)
        with pytest.raises(vhdkit.MergeError, match="came or went"):
            merge_while(vms / "leaf.avhd", vms / "base.vhd", lambda: shutil.move(made, vms / "new.avhd"))
    assert view(vms / "leaf.avhd") == expected
    assert {"leaf.avhd", "middle.avhd", "base.vhd"} < set(os.listdir(vms))
    if parent == "leaf":
        assert view(vms / "new.avhd") == before
        vhdkit.merge(vhdkit.plan_merge(str(vms / "leaf.avhd"), into=str(vms / "base.vhd")))
        assert sorted(os.listdir(vms)) == ["base.vhd", "new.avhd"]
        assert view(vms / "new.avhd") == before


@pytest.mark.parametrize("stubborn", ["leaf.avhd", "middle.avhd", "base.vhd.vhdkit-journal"])
def test_a_merge_cut_off_at_a_removal_can_be_run_again(vms: Path, stubborn: str) -> None:
    expected = view(vms / "leaf.avhd")
    order = ["leaf.avhd", "middle.avhd", "base.vhd.vhdkit-journal"]

    class Stubborn(LocalFolder):
        def remove(self, path: str) -> None:
            if path.endswith(stubborn):
                raise OSError(errno.EIO, "cut", path)
            super().remove(path)

    plan = vhdkit.plan_merge(str(vms / "leaf.avhd"), into=str(vms / "base.vhd"))
    with pytest.raises(OSError, match="cut") as caught:
        vhdkit.merge(plan, folder=Stubborn())
    assert "complete and durable" in "".join(caught.value.__notes__)
    left = order[order.index(stubborn) :]
    assert sorted(os.listdir(vms)) == sorted(["base.vhd", *left])
    assert view(vms / "base.vhd") == expected
    if "leaf.avhd" in left:
        assert view(vms / "leaf.avhd") == expected
    again = vhdkit.plan_merge(str(vms / "leaf.avhd"), into=str(vms / "base.vhd"))
    assert again.resume is vhdkit.Resume.FINISHES
    assert list(again.removals) == [str(vms / name) for name in left[:-1]]
    vhdkit.merge(again)
    assert os.listdir(vms) == ["base.vhd"]
    assert view(vms / "base.vhd") == expected


def test_a_kept_layer_whose_view_ends_is_told(vms: Path) -> None:
    plan = vhdkit.plan_merge(str(vms / "leaf.avhd"), into=str(vms / "base.vhd"), keep_sources=True)
    assert plan.ending_views == (str(vms / "middle.avhd"),)
    assert vhdkit.plan_merge(str(vms / "leaf.avhd")).ending_views == ()


def test_a_destination_with_a_second_name_is_refused(vms: Path) -> None:
    os.link(vms / "middle.avhd", vms / "backup.bin")
    plan = vhdkit.plan_merge(str(vms / "leaf.avhd"))
    assert any("hard links" in str(obstacle) for obstacle in plan.obstacles)


def test_a_copy_of_the_parent_in_a_folder_below_is_not_taken_for_it(vms: Path) -> None:
    (vms / "backup").mkdir()
    (vms / "middle.avhd").rename(vms / "backup" / "middle.avhd")
    with pytest.raises(vhdkit.ParentNotFoundError):
        vhdkit.plan_merge(str(vms / "leaf.avhd"))


@pytest.mark.parametrize("refusal", [errno.EOPNOTSUPP, errno.EINVAL, None])
def test_space_is_taken_where_the_system_has_no_call_for_it(
    vms: Path, monkeypatch: pytest.MonkeyPatch, refusal: int | None
) -> None:
    def refuse(*_arguments: int) -> None:
        assert refusal is not None
        raise OSError(refusal, "not here")

    if refusal is None:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    expected = view(vms / "leaf.avhd")
    result = vhdkit.merge(vhdkit.plan_merge(str(vms / "leaf.avhd"), into=str(vms / "base.vhd")))
    status = (vms / "base.vhd").stat()
    assert status.st_size == result.destination_size
    assert flat([parse(vms / "base.vhd")]).tobytes() == expected


def test_the_holes_of_a_sparse_disk_are_counted_before_they_are_filled(tmp_path: Path) -> None:
    vhdkit.create_image(str(tmp_path / "base.vhd"), size=16 * MIB, disk_type="fixed")
    vhdkit.create_image(str(tmp_path / "leaf.avhd"), parent=str(tmp_path / "base.vhd"))
    write(tmp_path / "leaf.avhd", 2 * MIB, b"x" * (4 * MIB))
    plan = vhdkit.plan_merge(str(tmp_path / "leaf.avhd"))
    assert plan.destination_size == plan.destination_size_before
    assert plan.space_needed == 4 * MIB

    class Full(LocalFolder):
        def free_space(self, directory: str) -> int:
            del directory
            return 4 * MIB - 1

    (obstacle,) = vhdkit.plan_merge(str(tmp_path / "leaf.avhd"), folder=Full()).obstacles
    assert isinstance(obstacle, vhdkit.NotEnoughSpaceError)
    assert (obstacle.needed, obstacle.available) == (4 * MIB, 4 * MIB - 1)


@pytest.mark.thorough
def test_a_skipped_test_is_a_failure_where_nothing_may_be_missing(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    conftest = Path(__file__).resolve().parents[1] / "conftest.py"
    monkeypatch.setenv("PYTHONPATH", str(conftest.parents[1]))
    pytester.makeconftest(conftest.read_text(encoding="utf-8"))
    pytester.makepyfile("import pytest\ndef test_it():\n    pytest.skip('needs something')")
    monkeypatch.setenv("VHDKIT_NO_SKIPS", "1")
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(failed=1)
    monkeypatch.delenv("VHDKIT_NO_SKIPS")
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(skipped=1)


def test_a_file_of_that_name_in_a_search_folder_does_not_win_over_the_id_beside_the_child(vms: Path) -> None:
    (vms / "backup").mkdir()
    (vms / "backup" / "middle.avhd").write_bytes((vms / "middle.avhd").read_bytes())
    (vms / "middle.avhd").rename(vms / "renamed.avhd")
    with pytest.raises(vhdkit.ParentNotFoundError, match="several") as caught:
        vhdkit.open_chain(str(vms / "leaf.avhd"), search=[str(vms / "backup")])
    assert {Path(candidate.path).name for candidate in caught.value.candidates} >= {"middle.avhd", "renamed.avhd"}
    with vhdkit.open_chain(str(vms / "leaf.avhd"), search=[str(vms)], parent=str(vms / "renamed.avhd")) as chain:
        assert chain.layers[1].path == str(vms / "renamed.avhd")


# What the machine has no more of says nothing about the files


class Lacking(LocalFolder):
    """A folder that lacks something from when `lacks` is true, or only for the name it is about."""

    def __init__(self, code: int, *, name: str = "") -> None:
        super().__init__()
        self.code = code
        self.name = name
        self.lacks = False

    def fail(self, path: str) -> None:
        if self.lacks and os.path.basename(path) == self.name:
            raise OSError(self.code, os.strerror(self.code), path)

    def open(self, path: str, *, writable: bool = False) -> Storage:
        self.fail(path)
        return super().open(path, writable=writable)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_too_many_open_files_are_not_told_as_a_source_that_changed(vms: Path, code: int) -> None:
    before, folder = view(vms / "leaf.avhd"), Lacking(code, name="leaf.avhd")

    def lack(state: vhdkit.Progress) -> None:
        folder.lacks = state.phase is vhdkit.Phase.FINISHING

    plan = vhdkit.plan_merge(str(vms / "leaf.avhd"), into=str(vms / "base.vhd"), folder=folder)
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        vhdkit.merge(plan, progress=lack, folder=folder)
    assert not isinstance(caught.value, vhdkit.MergeError)
    assert "reads as before" in "".join(caught.value.__notes__)
    assert view(vms / "leaf.avhd") == before
    vhdkit.merge(vhdkit.plan_merge(str(vms / "leaf.avhd"), into=str(vms / "base.vhd")))
    assert view(vms / "base.vhd") == before


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_too_many_open_files_are_not_told_as_a_parent_that_is_missing(vms: Path, code: int) -> None:
    folder = Lacking(code, name="middle.avhd")
    folder.lacks = True
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        vhdkit.open_chain(str(vms / "leaf.avhd"), folder=folder)
    assert not isinstance(caught.value, vhdkit.ParentNotFoundError)


def test_of_a_merge_whose_journal_is_gone_nothing_is_left_to_be_done(vms: Path) -> None:
    class Unsynced(LocalFolder):
        def remove(self, path: str) -> None:
            super().remove(path)
            self.is_over = path.endswith("-journal")

        def sync(self, directory: str) -> None:
            if getattr(self, "is_over", False):
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), directory)
            super().sync(directory)

    before, folder = view(vms / "leaf.avhd"), Unsynced()
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)) as caught:
        vhdkit.merge(vhdkit.plan_merge(str(vms / "leaf.avhd"), into=str(vms / "base.vhd")), folder=folder)
    told = "".join(caught.value.__notes__)
    assert "complete" in told
    assert "nothing is left to be done" in told
    assert view(vms / "base.vhd") == before
    assert os.listdir(vms) == ["base.vhd"]


class Full(Lacking):
    """A disk that has no room for one file any more, from when `lacks` is true."""

    def create(self, path: str, *, private: bool = False) -> Storage:
        return FullStorage(super().create(path, private=private), self)

    def open(self, path: str, *, writable: bool = False) -> Storage:
        return FullStorage(LocalFolder.open(self, path, writable=writable), self)


class FullStorage(ThroughStorage):
    def __init__(self, inner: Storage, folder: Full) -> None:
        super().__init__(inner)
        self._folder = folder

    def write_at(self, offset: int, buffer: Buffer) -> None:
        self._folder.fail(self.path)
        super().write_at(offset, buffer)

    def copy_from(self, source: Storage, source_offset: int, offset: int, length: int) -> None:
        self._folder.fail(self.path)
        super().copy_from(source, source_offset, offset, length)


def test_a_journal_that_finds_no_room_is_told_as_what_it_is(vms: Path) -> None:
    before, folder = view(vms / "leaf.avhd"), Full(errno.ENOSPC, name="base.vhd.vhdkit-journal")
    folder.lacks = True
    plan = vhdkit.plan_merge(str(vms / "leaf.avhd"), into=str(vms / "base.vhd"))
    with pytest.raises(vhdkit.NotEnoughSpaceError, match="journal") as caught:
        vhdkit.merge(plan, folder=folder)
    assert caught.value.path == str(vms / "base.vhd.vhdkit-journal")
    assert (caught.value.needed, caught.value.available) == (4096, 0)
    assert "shares" not in "".join(caught.value.__notes__)
    assert view(vms / "leaf.avhd") == before
    assert not (vms / "base.vhd.vhdkit-journal").exists()


def test_of_a_disk_that_fills_up_what_is_still_to_be_copied_is_missing(tmp_path: Path) -> None:
    vhdkit.create_image(str(tmp_path / "base.vhd"), size=16 * MIB, disk_type="fixed")
    write(tmp_path / "base.vhd", 0, b"b" * (16 * MIB))
    vhdkit.create_image(str(tmp_path / "leaf.avhd"), parent=str(tmp_path / "base.vhd"))
    write(tmp_path / "leaf.avhd", 0, b"x" * (12 * MIB))
    folder = Full(errno.ENOSPC, name="base.vhd")

    def fill(state: vhdkit.Progress) -> None:
        folder.lacks = folder.lacks or state.bytes_done >= 4 * MIB

    with pytest.raises(vhdkit.NotEnoughSpaceError) as caught:
        vhdkit.merge(vhdkit.plan_merge(str(tmp_path / "leaf.avhd")), progress=fill, folder=folder)
    assert 0 < caught.value.needed <= 8 * MIB
