"""`ensure_merged`: begun, gone on with or done already is a success; a leaf that may be lost never is."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.cutting import CutError, CuttingFolder, at_first
from tests.forging import drawn
from tests.typed import as_typed
from vhdkit import Ensured
from vhdkit.disk.unique_id import guid
from vhdkit.journal.merge_journal import read_journal
from vhdkit.merging.completion import MOST_LEAVES, completion_path
from vhdkit.merging.plan.planner import plan_request
from vhdkit.storage.memory import MemoryFolder

if TYPE_CHECKING:
    from vhdkit.options import MergeRequest
    from vhdkit.progress import Progress
    from vhdkit.storage.protocols import Folder

MIB = 1 << 20
BASE, LEAF = "/vms/base.vhd", "/vms/leaf.avhd"
RECORD = completion_path(BASE)


def id_of(folder: MemoryFolder, path: str) -> str:
    with vhdkit.open_image(path, folder=folder) as image:
        return guid(image.unique_id)


def add_leaf(folder: MemoryFolder, path: str = LEAF, *, seed: int = 1, offset: int = 0, size: int = 3 * MIB) -> str:
    """Make a leaf over the base that holds so many bytes of noise, and return its id."""
    vhdkit.create_image(path, parent=BASE, folder=folder)
    with vhdkit.open_chain(path, writable=True, folder=folder) as chain:
        chain.write(offset, random.Random(seed).randbytes(size))
    return id_of(folder, path)


def chain_in_memory() -> tuple[MemoryFolder, str]:
    folder = MemoryFolder({})
    vhdkit.create_image(BASE, size=16 * MIB, folder=folder)
    with vhdkit.open_chain(BASE, writable=True, folder=folder) as chain:
        chain.write(0, b"b" * 4 * MIB)
    return folder, add_leaf(folder)


def view(folder: MemoryFolder, path: str) -> bytes:
    with vhdkit.open_chain(path, lock=False, folder=folder) as chain:
        return chain.read(0, chain.size)


def contents(folder: MemoryFolder) -> dict[str, bytes]:
    return {entry.path: bytes(folder[entry.path].content) for entry in folder.walk("/")}


def ensure(folder: MemoryFolder, leaf_id: str, path: str = LEAF, **options: object) -> Ensured:
    return vhdkit.ensure_merged(path, into=BASE, leaf_id=leaf_id, folder=folder, **options).outcome  # type: ignore[arg-type]


def test_it_is_begun_once_and_done_ever_after() -> None:
    folder, leaf_id = chain_in_memory()
    expected = view(folder, LEAF)
    assert ensure(folder, leaf_id) is Ensured.BEGUN
    after = contents(folder)
    assert list(after) == [BASE, RECORD]
    for _ in range(5):
        assert ensure(folder, leaf_id) is Ensured.WAS_DONE
        assert contents(folder) == after
    assert view(folder, BASE) == expected


def test_what_was_cancelled_is_resumed() -> None:
    folder, leaf_id = chain_in_memory()
    expected = view(folder, LEAF)

    def stop(state: Progress) -> None:
        if state.phase is vhdkit.Phase.FINISHING:
            raise vhdkit.MergeCancelled("enough")

    with pytest.raises(vhdkit.MergeCancelled):
        ensure(folder, leaf_id, progress=stop)
    assert RECORD not in contents(folder)
    assert ensure(folder, leaf_id) is Ensured.RESUMED
    assert ensure(folder, leaf_id) is Ensured.WAS_DONE
    assert view(folder, BASE) == expected


@pytest.mark.parametrize("is_complete", [False, True])
def test_a_plain_merge_that_finishes_one_that_was_begun_here_leaves_the_record(*, is_complete: bool) -> None:
    folder, leaf_id = chain_in_memory()
    expected = view(folder, LEAF)
    # Cut off before it is complete, or before it says so in its record.
    ending = RECORD + ".partial" if is_complete else BASE
    when = at_first("create", ending) if is_complete else at_first("write", ending)
    with pytest.raises(CutError):
        vhdkit.ensure_merged(LEAF, into=BASE, leaf_id=leaf_id, folder=CuttingFolder(folder, when))
    journal = read_journal(folder, BASE)
    assert journal is not None
    assert f"--ensure {leaf_id}` " in as_typed(journal.hint)
    plan = vhdkit.plan_merge(LEAF, into=BASE, folder=folder)
    assert (plan.resume is vhdkit.Resume.FINISHES) is is_complete
    vhdkit.merge(plan, folder=folder)
    assert list(contents(folder)) == [BASE, RECORD]
    assert ensure(folder, leaf_id) is Ensured.WAS_DONE
    assert view(folder, BASE) == expected


def test_a_plain_merge_leaves_no_record_and_its_leaf_may_be_lost() -> None:
    folder, leaf_id = chain_in_memory()
    vhdkit.merge(vhdkit.plan_merge(LEAF, folder=folder), folder=folder)
    assert list(contents(folder)) == [BASE]
    with pytest.raises(vhdkit.MergeError, match=f"the leaf is gone, and .* {leaf_id} .*may be lost"):
        ensure(folder, leaf_id)


def test_another_image_that_has_the_name_is_never_merged() -> None:
    folder, leaf_id = chain_in_memory()
    other = guid(bytes(range(16)))
    before = contents(folder)
    with pytest.raises(vhdkit.MergeError, match="another image has its name"):
        ensure(folder, other)
    assert contents(folder) == before
    assert ensure(folder, leaf_id) is Ensured.BEGUN
    newer = add_leaf(folder, seed=2)
    before = contents(folder)
    assert ensure(folder, leaf_id) is Ensured.WAS_DONE
    assert contents(folder) == before
    assert ensure(folder, newer) is Ensured.BEGUN


@pytest.mark.parametrize("leaf_id", ["", "x", "1234", 7, None, b"0" * 16])
def test_what_is_no_id_is_refused(leaf_id: object) -> None:
    folder, _ = chain_in_memory()
    with pytest.raises((TypeError, ValueError), match="leaf_id"):
        vhdkit.ensure_merged(LEAF, into=BASE, leaf_id=leaf_id, folder=folder)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["as before the merge", "used since", "half-way"])
def test_a_destination_that_was_put_back_is_never_called_done(kind: str) -> None:
    folder, leaf_id = chain_in_memory()
    older = bytes(folder[BASE].content)
    if kind == "half-way":
        done = bytearray(older)

        def keep(state: Progress) -> None:
            if state.phase is vhdkit.Phase.COPYING and not state.bytes_done:
                done[:] = folder[BASE].content

        ensure(folder, leaf_id, progress=keep)
        older = bytes(done)
    else:
        ensure(folder, leaf_id)
    folder[BASE].content[:] = older
    if kind == "used since":
        with vhdkit.open_chain(BASE, writable=True, folder=folder) as chain:
            chain.write(MIB, b"used" * 1000)
    with pytest.raises(vhdkit.MergeError, match="put back from an earlier"):
        ensure(folder, leaf_id)


def test_a_disk_that_was_used_since_is_done_still_and_one_that_was_written_over_is_not() -> None:
    folder, leaf_id = chain_in_memory()
    ensure(folder, leaf_id)
    with vhdkit.open_chain(BASE, writable=True, folder=folder) as chain:
        chain.write(0, b"used" * 1000)
        chain.write(8 * MIB, b"more" * 1000)
    assert ensure(folder, leaf_id) is Ensured.WAS_DONE
    with vhdkit.open_chain(BASE, writable=True, folder=folder) as chain:
        chain.write(0, b"x" * 16 * MIB)
    with pytest.raises(vhdkit.MergeError, match="written over since"):
        ensure(folder, leaf_id)


def test_a_leaf_that_held_nothing_is_done_whatever_the_disk_holds() -> None:
    folder = MemoryFolder({})
    vhdkit.create_image(BASE, size=16 * MIB, folder=folder)
    vhdkit.create_image(LEAF, parent=BASE, folder=folder)
    leaf_id = id_of(folder, LEAF)
    assert ensure(folder, leaf_id) is Ensured.BEGUN
    with vhdkit.open_chain(BASE, writable=True, folder=folder) as chain:
        chain.write(0, b"x" * 16 * MIB)
    assert ensure(folder, leaf_id) is Ensured.WAS_DONE


def test_later_leaves_add_to_the_record_and_cover_earlier_ones() -> None:
    folder, leaf_id = chain_in_memory()
    ids = [leaf_id]
    ensure(folder, leaf_id)
    for number in range(2, 5):
        ids.append(add_leaf(folder, seed=number))
        assert ensure(folder, ids[-1]) is Ensured.BEGUN
    # Every sector of the first was overwritten by the others.
    assert [ensure(folder, each) for each in ids] == [Ensured.WAS_DONE] * 4


def test_the_newest_leaves_are_remembered() -> None:
    folder, _ = chain_in_memory()
    folder.remove(LEAF)
    ids = []
    for number in range(MOST_LEAVES + 2):
        ids.append(add_leaf(folder, seed=number, size=512))
        ensure(folder, ids[-1])
    assert len(json.loads(bytes(folder[RECORD].content))["merges"]) == MOST_LEAVES
    assert ensure(folder, ids[2]) is Ensured.WAS_DONE
    with pytest.raises(vhdkit.MergeError, match="may be lost"):
        ensure(folder, ids[1])


def test_a_destination_of_another_id_shows_nothing() -> None:
    folder, leaf_id = chain_in_memory()
    ensure(folder, leaf_id)
    vhdkit.create_image("/vms/new.vhd", size=16 * MIB, folder=folder)
    folder[BASE].content[:] = folder["/vms/new.vhd"].content
    folder.remove("/vms/new.vhd")
    with pytest.raises(vhdkit.MergeError, match="does not show that"):
        ensure(folder, leaf_id)


def test_a_forged_record_changes_nothing_and_gains_nothing_but_a_word() -> None:
    folder, leaf_id = chain_in_memory()
    ensure(folder, leaf_id)
    record = json.loads(bytes(folder[RECORD].content))
    lost = add_leaf(folder, seed=9)
    folder.remove(LEAF)
    refused = 0
    forged = drawn(record, 17, 400, texts=[bytes.fromhex(lost.replace("-", "")).hex()])
    for forgery in forged:
        folder[RECORD].content[:] = forgery.text.encode("utf-8", "surrogatepass")
        before = contents(folder)
        for wanted in (leaf_id, lost):
            try:
                assert ensure(folder, wanted) is Ensured.WAS_DONE
                assert wanted == leaf_id, forgery
            except (vhdkit.VhdError, OSError):
                refused += 1
        assert contents(folder) == before, forgery
    assert 400 < refused < 800


def test_a_record_that_cannot_be_read_is_named_before_anything_is_merged() -> None:
    folder, leaf_id = chain_in_memory()
    folder.create(RECORD).close()
    before = contents(folder)
    with pytest.raises(vhdkit.JournalError, match=r"base\.vhd\.vhdkit-merged: it is no completion record"):
        ensure(folder, leaf_id)
    assert contents(folder) == before


def test_an_undo_image_takes_no_name_of_a_record() -> None:
    folder, _ = chain_in_memory()
    with pytest.raises((vhdkit.VhdError, ValueError)):
        vhdkit.plan_merge(LEAF, undo="/vms/x.vhd.vhdkit-merged", folder=folder)


def test_a_leaf_that_another_call_merges_at_the_same_time_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, leaf_id = chain_in_memory()
    plan, name = plan_request, "vhdkit.merging.ensure_merged.plan_request"

    def beaten(request: MergeRequest, place: Folder) -> vhdkit.MergePlan:
        monkeypatch.setattr(name, plan)
        assert ensure(folder, leaf_id) is Ensured.BEGUN
        return plan(request, place)

    monkeypatch.setattr(name, beaten)
    assert ensure(folder, leaf_id) is Ensured.WAS_DONE


def test_a_leaf_that_another_call_merges_once_it_is_planned_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, leaf_id = chain_in_memory()
    name, carry_out = "vhdkit.merging.ensure_merged.merge", vhdkit.merge

    def beaten(plan: vhdkit.MergePlan, **options: object) -> vhdkit.MergeResult:
        monkeypatch.setattr(name, carry_out)
        with pytest.raises(CutError):
            vhdkit.merge(plan, folder=CuttingFolder(folder, at_first("write", BASE)))
        return carry_out(plan, **options)  # type: ignore[arg-type] # by name

    monkeypatch.setattr(name, beaten)
    assert ensure(folder, leaf_id) is Ensured.RESUMED
    assert ensure(folder, leaf_id) is Ensured.WAS_DONE


def test_a_leaf_that_held_nothing_is_recorded_by_a_plain_merge_too() -> None:
    folder = MemoryFolder({})
    vhdkit.create_image(BASE, size=16 * MIB, folder=folder)
    vhdkit.create_image(LEAF, parent=BASE, folder=folder)
    leaf_id = id_of(folder, LEAF)
    with pytest.raises(CutError):
        vhdkit.ensure_merged(
            LEAF, into=BASE, leaf_id=leaf_id, folder=CuttingFolder(folder, at_first("create", RECORD + ".partial"))
        )
    vhdkit.merge(vhdkit.plan_merge(LEAF, into=BASE, folder=folder), folder=folder)
    assert list(contents(folder)) == [BASE, RECORD]
    assert ensure(folder, leaf_id) is Ensured.WAS_DONE


def test_a_refused_plan_leaves_no_record() -> None:
    folder, leaf_id = chain_in_memory()
    add_leaf(folder, "/vms/sibling.avhd", seed=3)
    before = contents(folder)
    with pytest.raises(vhdkit.SiblingsError):
        ensure(folder, leaf_id)
    assert contents(folder) == before
