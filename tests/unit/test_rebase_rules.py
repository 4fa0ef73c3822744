"""What a rebase must not believe, must hold meanwhile, and must say of how its parent is found again."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.keeping import keep
from tests.plainbuild import ImageSpec, build, locator
from tests.plainvhd import SECTOR
from tests.through import ThroughFolder, ThroughStorage
from tests.unit.test_header_update import AFTER, BASE, BEFORE, HEADER, LEAF, OTHER, PATH, STEP, patches, step_file
from tests.unit.test_merge_laws import Event, SpyFolder
from vhdkit.chain.chain import open_chain
from vhdkit.chain.rebase import plan_rebase, rebase
from vhdkit.chain.rebase_plan import Fit
from vhdkit.command_hints import command_words
from vhdkit.errors import (
    CorruptImageError,
    ImageInUseError,
    JournalError,
    MergeError,
    ParentMismatchError,
    ReadOnlyImageError,
    UnsupportedImageError,
    VhdError,
)
from vhdkit.findings import hints_as
from vhdkit.journal.merge_journal import journal_path
from vhdkit.merging.plan.planner import plan_merge
from vhdkit.merging.run.engine import merge
from vhdkit.storage.memory import MemoryFolder
from vhdkit.vhd.open_image import open_image
from vhdkit.vhd.sparse_image import SparseImage

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhdkit.storage.protocols import Folder, Storage

SUB = "/vms/sub/base.vhd"
RENAMED = "/vms/sub/new.vhd"
BESIDE = "/vms/base.vhd"
OUTSIDE = "/else/base.vhd"
W2KU = (locator(0, b"W2ku", "C:\\vms\\base.vhd"),)
BOTH = (*W2KU, locator(1, b"W2ru", ".\\base.vhd"))


def laid(leaf: ImageSpec, *names: str, **others: bytes) -> MemoryFolder:
    """Lay the child, the base under each name, and other files in /vms."""
    files = {PATH: build(leaf), **{name: build(BASE) for name in names}}
    return MemoryFolder(files | {f"/vms/{name}": raw for name, raw in others.items()})


def contents(folder: MemoryFolder) -> dict[str, bytes]:
    return {entry.path: bytes(folder[entry.path].content) for entry in folder.walk("/")}


def refused(folder: MemoryFolder, parent: str, error: type[Exception], text: str, *, ignore: bool = True) -> None:
    """Hold that both the plan and the deed are refused, and change nothing."""
    before = contents(folder)
    for act in (plan_rebase, rebase):
        with pytest.raises(error, match=text):
            act(PATH, parent, ignore_id_mismatch=ignore, folder=folder)
        assert contents(folder) == before


def texts(folder: Folder) -> dict[bytes, str]:
    with open_image(PATH, folder=folder) as image:
        assert isinstance(image, SparseImage)
        return {path.platform_code: path.text for path in image.metadata.parent_paths}


# Found again


@pytest.mark.parametrize(
    ("locators", "names", "parent", "option"),
    [
        (LEAF.locators, [SUB], SUB, None),
        (LEAF.locators, [SUB, BESIDE], SUB, None),
        (LEAF.locators, [OUTSIDE], OUTSIDE, "--search"),
        (LEAF.locators, [OUTSIDE, BESIDE], OUTSIDE, "--search"),
        (W2KU, [BESIDE], BESIDE, None),
        (W2KU, [SUB], SUB, None),
        (W2KU, [SUB, BESIDE], SUB, "--parent"),
        ((), [BESIDE], BESIDE, None),
        ((), [SUB], SUB, "--search"),
        ((), [SUB, BESIDE], SUB, "--parent"),
        ((), [RENAMED, BESIDE], RENAMED, "--parent"),
    ],
)
def test_what_readers_have_to_be_told_is_said_and_is_true(
    locators: tuple[object, ...], names: list[str], parent: str, option: str | None
) -> None:
    folder = laid(replace(LEAF, locators=locators), *names)  # type: ignore[arg-type] # of mixed cases
    planned = plan_rebase(PATH, parent, folder=folder)
    with hints_as(command_words()):
        result = plan_rebase(PATH, parent, folder=folder)
    assert planned == rebase(PATH, parent, folder=folder)
    advice = [match for remark in result.remarks if (match := re.search(r"(--\w+) (\S+) (?:finds|names)", remark))]
    assert [match[1] for match in advice] == ([] if option is None else [option])
    if option is None:
        with open_chain(PATH, folder=folder) as chain:
            assert chain.layers[1].path == parent
        return
    assert not reads_through(folder, parent), "it needs no option"
    with open_chain(
        PATH,
        search=[advice[0][2]] if option == "--search" else [],
        parent=advice[0][2] if option == "--parent" else None,
        folder=folder,
    ) as chain:
        assert chain.layers[1].path == parent


def reads_through(folder: Folder, parent: str) -> bool:
    try:
        with open_chain(PATH, folder=folder) as chain:
            return chain.layers[1].path == parent
    except VhdError:
        return False


def test_the_file_that_is_taken_instead_is_named() -> None:
    folder = laid(LEAF, OUTSIDE, BESIDE)
    assert any(f"takes {BESIDE}, " in remark for remark in rebase(PATH, OUTSIDE, folder=folder).remarks)


def test_a_raw_parent_has_to_be_named_and_that_is_said() -> None:
    raw_child = replace(LEAF, parent_id=bytes(16), parent_name="lost.img", locators=())
    folder = laid(raw_child, **{"disk.img": b"r" * BASE.size})
    with hints_as(command_words()):
        result = rebase(PATH, "/vms/disk.img", folder=folder)
    assert any("--parent /vms/disk.img" in remark for remark in result.remarks)
    assert (result.made_stamp, result.parent_block_size) == (None, 0)
    with open_chain(PATH, parent="/vms/disk.img", folder=folder) as chain:
        assert chain.read(0, SECTOR) == b"r" * SECTOR


def test_a_windows_path_follows_where_the_old_parent_tells_it_and_is_not_kept_where_it_does_not() -> None:
    folder = laid(replace(LEAF, locators=BOTH), BESIDE, SUB)
    rebase(PATH, SUB, folder=folder)
    assert texts(folder) == {b"W2ku": "C:\\vms\\sub\\base.vhd", b"W2ru": ".\\sub\\base.vhd"}
    folder = laid(replace(LEAF, locators=BOTH), RENAMED)
    rebase(PATH, RENAMED, folder=folder)
    assert texts(folder) == {b"W2ku": ".\\sub\\new.vhd", b"W2ru": ".\\sub\\new.vhd"}


def test_a_path_too_long_for_its_locator_is_refused() -> None:
    far = f"/vms/{'x' * 200}/{'y' * 200}/base.vhd"
    refused(laid(LEAF, far), far, MergeError, "room for 512")


# What is compared


def test_block_sizes_and_time_stamps_are_told() -> None:
    spec = replace(LEAF, block_size=8192, parent_timestamp=77)
    folder = laid(spec)
    keep(folder.create(BESIDE)).write_at(0, build(replace(BASE, timestamp=99)))
    folder[BESIDE].mtime = 946684800 + 123
    result = plan_rebase(PATH, BESIDE, folder=folder)
    assert (result.child_block_size, result.parent_block_size) == (8192, 4096)
    assert (result.remembered_stamp, result.made_stamp, result.changed_stamp) == (77, 99, 123)
    assert any("as of" in remark for remark in result.remarks)


def test_a_larger_child_is_taken_with_a_warning() -> None:
    folder = laid(replace(LEAF, size=128 * SECTOR), SUB)
    result = rebase(PATH, SUB, folder=folder)
    assert (result.child_size, result.parent_size) == (128 * SECTOR, 64 * SECTOR)
    assert any(f"its disk has {128 * SECTOR} bytes" in remark for remark in result.remarks)
    with open_chain(PATH, folder=folder) as chain:
        assert chain.read(3 * SECTOR, SECTOR) == b"b" * SECTOR
        assert chain.read(100 * SECTOR, SECTOR) == bytes(SECTOR)


def test_a_parent_whose_own_parent_is_missing_is_taken_and_that_is_said() -> None:
    middle = replace(LEAF, unique_id=b"midd" * 4, parent_id=b"gone" * 4, locators=())
    folder = laid(replace(LEAF, parent_id=middle.unique_id), **{"middle.avhd": build(middle)})
    assert any("itself reads through" in remark for remark in rebase(PATH, "/vms/middle.avhd", folder=folder).remarks)


def test_siblings_stay_byte_for_byte() -> None:
    folder = laid(LEAF, SUB, BESIDE, **{"sibling.avhd": build(replace(LEAF, unique_id=b"sibl" * 4))})
    before = contents(folder)
    assert not rebase(PATH, SUB, folder=folder).changes_nothing
    after = contents(folder)
    assert after.pop(PATH) != before.pop(PATH)
    assert after == before


# What is refused


@pytest.mark.parametrize("which", ["child", "parent"])
def test_a_saved_state_is_refused(which: str) -> None:
    leaf = replace(LEAF, saved_state=which == "child")
    folder = laid(leaf, **{"base.vhd": build(replace(BASE, saved_state=which == "parent"))})
    refused(folder, BESIDE, ReadOnlyImageError, "saved machine state")


@pytest.mark.parametrize(
    ("raw", "error"),
    [(b"QFI\xfb" + bytes(1 << 16), UnsupportedImageError), (b"raw" * 10000, CorruptImageError)],
    ids=["qcow2", "raw"],
)
def test_what_is_no_vhd_is_refused(raw: bytes, error: type[Exception]) -> None:
    refused(laid(LEAF, BESIDE, **{"other.vhd": raw}), "/vms/other.vhd", error, "not a VHD")


def test_an_id_is_not_taken_for_the_one_of_the_child() -> None:
    folder = laid(LEAF, **{"other.vhd": build(OTHER)})
    refused(folder, "/vms/other.vhd", ParentMismatchError, "ignore_id_mismatch=True", ignore=False)


def test_what_may_not_be_written_is_refused_before_and_by_a_plan() -> None:
    folder = laid(LEAF, SUB)
    folder[PATH].read_only = True
    refused(folder, SUB, ReadOnlyImageError, "the file is read-only")
    folder = laid(replace(LEAF, locators=()), BESIDE)
    rebase(PATH, BESIDE, folder=folder)
    folder[PATH].read_only = True
    assert rebase(PATH, BESIDE, folder=folder).changes_nothing, "nothing is to be written"


class LockedFolder(SpyFolder):
    """A folder in which no names may be changed."""

    def may_write(self, path: str) -> bool:
        return path != "/vms" and super().may_write(path)


def test_a_folder_without_room_for_the_step_is_refused_before() -> None:
    inner = laid(LEAF, SUB)
    before = contents(inner)
    with pytest.raises(ReadOnlyImageError, match="/vms must be writable"):
        rebase(PATH, SUB, folder=LockedFolder(inner))
    assert contents(inner) == before


def begun(folder: MemoryFolder, *, into: str) -> MemoryFolder:
    """Return what a power cut leaves of a merge of the top into a file, in the last write to that file."""
    found: list[dict[str, bytes]] = []

    def before(event: Event) -> None:
        if (event.operation, event.path) == ("write", into) and folder.exists(journal_path(into)):
            found.append(contents(folder))

    merge(plan_merge("/vms/top.avhd", into=into, folder=folder), folder=SpyFolder(folder, before))
    return MemoryFolder(found[-1])


def chain_of_three() -> MemoryFolder:
    """Lay a base, a middle and a top that has what both lack, and beside them the child of some other base."""
    middle = replace(LEAF, unique_id=b"midd" * 4, sectors={5: b"m" * SECTOR})
    top = replace(middle, unique_id=b"top!" * 4, parent_id=middle.unique_id, parent_name="middle.avhd", locators=())
    others = {"middle.avhd": build(middle), "top.avhd": build(top), "other.vhd": build(OTHER)}
    return laid(replace(LEAF, parent_id=OTHER.unique_id, parent_name="other.vhd", locators=()), BESIDE, **others)


@pytest.mark.parametrize("parent", [BESIDE, "/vms/middle.avhd"])
def test_a_merge_that_is_not_finished_in_what_the_parent_reads_through_is_refused(parent: str) -> None:
    folder = begun(chain_of_three(), into=BESIDE)
    refused(folder, parent, JournalError, "not finished")


def test_a_merge_of_the_child_that_is_not_finished_is_refused_however_deep_it_goes() -> None:
    folder = begun(chain_of_three(), into=BESIDE)
    before = contents(folder)
    with pytest.raises(JournalError, match="not finished"):
        rebase("/vms/top.avhd", "/vms/other.vhd", ignore_id_mismatch=True, folder=folder)
    assert contents(folder) == before


def test_a_merge_that_had_not_begun_is_in_nobodys_way() -> None:
    folder = laid(LEAF, SUB)
    folder.create(journal_path(SUB)).close()
    assert not rebase(PATH, SUB, folder=folder).changes_nothing


# A step that was cut off


def half() -> MemoryFolder:
    """Lay a child whose relinking from base to other was cut off in its header."""
    raw = bytearray(BEFORE)
    raw[HEADER : HEADER + SECTOR] = AFTER[HEADER : HEADER + SECTOR]
    files = {BESIDE: build(BASE), "/vms/other.vhd": build(OTHER), PATH: bytes(raw), STEP: step_file(patches())}
    return MemoryFolder(files)


@pytest.mark.parametrize("parent", ["/vms/other.vhd", BESIDE])
def test_a_half_step_is_finished_by_the_deed_and_left_by_the_plan(parent: str) -> None:
    folder = half()
    before = contents(folder)
    planned = plan_rebase(PATH, parent, ignore_id_mismatch=True, folder=folder)
    assert contents(folder) == before, "a plan writes nothing"
    assert not planned.changes_nothing
    assert planned.expected_id == OTHER.unique_id
    rebase(PATH, parent, ignore_id_mismatch=True, folder=folder)
    assert not folder.exists(STEP)
    assert reads_through(folder, parent)


# Held meanwhile


@pytest.mark.parametrize("parent", [SUB, "/vms/disk.img"], ids=["image", "raw"])
def test_both_are_held_while_the_child_is_written(parent: str) -> None:
    raw_child = replace(LEAF, parent_id=bytes(16))
    inner = laid(LEAF if parent == SUB else raw_child, SUB, **{"disk.img": bytes(BASE.size)})
    asked: list[str] = []

    def before(event: Event) -> None:
        if (event.operation, event.path) != ("create", STEP):
            return
        for path, exclusive in ((parent, True), (PATH, False)):
            storage = inner.open(path, writable=exclusive)
            with pytest.raises(ImageInUseError):
                storage.lock(exclusive=exclusive)
            storage.close()
            asked.append(path)

    rebase(PATH, parent, folder=SpyFolder(inner, before))
    assert asked == [parent, PATH]


class LateFolder(SpyFolder):
    """A folder in which somebody does something right before the child is opened to be written."""

    act: Callable[[], None]

    def open(self, path: str, *, writable: bool = False) -> Storage:
        if path == PATH and writable:
            self.act()
        return super().open(path, writable=writable)


def test_a_parent_that_becomes_another_before_the_child_is_held_is_noticed() -> None:
    inner = laid(LEAF, SUB)
    folder = LateFolder(inner)

    def swap() -> None:
        inner[SUB].content[:] = build(OTHER)

    folder.act = swap
    with pytest.raises(ParentMismatchError):
        rebase(PATH, SUB, folder=folder)
    assert bytes(inner[PATH].content) == BEFORE


def test_whoever_reads_the_child_is_in_the_way_only_if_something_is_to_be_written() -> None:
    folder = laid(LEAF, SUB, BESIDE)
    rebase(PATH, BESIDE, folder=folder)
    before = contents(folder)
    with open_chain(PATH, folder=folder):
        assert rebase(PATH, BESIDE, folder=folder).changes_nothing
        with pytest.raises(ImageInUseError):
            rebase(PATH, SUB, folder=folder)
    assert contents(folder) == before


class LateStorage(ThroughStorage):
    """A storage before which somebody else is once more, when it is to be had alone."""

    act: Callable[[], None]

    def lock(self, *, exclusive: bool) -> None:
        if exclusive:
            self.act()
        super().lock(exclusive=exclusive)


class LastMomentFolder(ThroughFolder):
    """A folder in which somebody does something right before the child is held alone."""

    act: Callable[[], None]

    def open(self, path: str, *, writable: bool = False) -> Storage:
        storage = LateStorage(super().open(path, writable=writable))
        storage.act = self.act if path == PATH else lambda: None
        return storage


@pytest.mark.parametrize(
    ("name", "error"), [(journal_path(SUB), JournalError), (STEP, ImageInUseError)], ids=["a merge", "a step"]
)
def test_what_begins_before_the_child_is_held_alone_is_noticed(name: str, error: type[Exception]) -> None:
    inner = laid(LEAF, SUB)
    journal = bytes(begun(chain_of_three(), into=BESIDE)[journal_path(BESIDE)].content)
    folder = LastMomentFolder(inner)

    def act() -> None:
        keep(inner.create(name)).write_at(0, step_file(patches()) if name == STEP else journal)
        if name == STEP:
            # A step of which nothing is written yet is none.
            with inner.open(PATH, writable=True) as storage:
                storage.write_at(HEADER, AFTER[HEADER : HEADER + SECTOR])

    folder.act = act
    with pytest.raises(error):
        rebase(PATH, SUB, folder=folder)
    assert inner.exists(name)
    begun_bytes = BEFORE[:HEADER] + AFTER[HEADER : HEADER + SECTOR] + BEFORE[HEADER + SECTOR :]
    assert bytes(inner[PATH].content) == (begun_bytes if name == STEP else BEFORE)


def test_a_raw_parent_that_is_written_is_in_use() -> None:
    folder = laid(replace(LEAF, parent_id=bytes(16)), **{"disk.img": bytes(BASE.size)})
    storage = folder.open("/vms/disk.img", writable=True)
    storage.lock(exclusive=True)
    refused(folder, "/vms/disk.img", ImageInUseError, "in use")
    storage.close()


def test_an_old_parent_that_is_written_is_in_use() -> None:
    folder = laid(LEAF, SUB, BESIDE)
    before = contents(folder)
    with (
        open_image(BESIDE, writable=True, exclusive=True, folder=folder),
        pytest.raises(ImageInUseError, match=BESIDE) as caught,
    ):
        rebase(PATH, SUB, folder=folder)
    assert "compared with the new parent" in caught.value.__notes__[0]
    assert contents(folder) == before


def test_a_plan_does_not_finish_what_was_cut_off_in_the_old_parent_either() -> None:
    folder = half()
    top = replace(LEAF, unique_id=b"top!" * 4, parent_id=LEAF.unique_id, parent_name="leaf.avhd", locators=())
    for path, raw in (("/vms/top.avhd", build(top)), ("/vms/copy.avhd", AFTER)):
        keep(folder.create(path)).write_at(0, raw)
    before = contents(folder)
    result = plan_rebase("/vms/top.avhd", "/vms/copy.avhd", folder=folder)
    assert (result.before, result.fits) == (PATH, Fit.YES)
    assert contents(folder) == before
    assert rebase("/vms/top.avhd", "/vms/copy.avhd", folder=folder).fits is Fit.YES
    assert folder.exists(STEP), "it is of an image that nothing is written to"
