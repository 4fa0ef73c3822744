"""How many merges run at once on a file system, and which wait for none."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.jobs.making import HANGS_SECONDS, make_chain, view
from vhdkit.job.merge_slots import DEFAULT_PARALLEL, MergeSlot
from vhdkit.job.start import run_merge
from vhdkit.options import MergeRequest
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from pathlib import Path


def test_as_many_slots_as_are_asked_for_and_one_that_is_released_is_had_again(vms: Path, state: Path) -> None:
    leaf = make_chain(vms, "a", 1)
    slots = [MergeSlot(MergeRequest(child=leaf), str(state)) for _ in range(DEFAULT_PARALLEL + 1)]
    assert [slot.take() for slot in slots] == [True] * DEFAULT_PARALLEL + [False]
    assert slots[0].take()
    wide = MergeSlot(MergeRequest(child=leaf, parallel=DEFAULT_PARALLEL + 1), str(state))
    assert wide.take()
    slots[0].release()
    slots[0].release()
    assert slots[-1].take()
    for slot in [*slots, wide]:
        slot.release()


@pytest.mark.parametrize("broken", ["file", "link"])
def test_where_no_slot_can_be_had_there_is_no_limit(vms: Path, state: Path, tmp_path: Path, broken: str) -> None:
    leaf = make_chain(vms, "a", 1)
    if broken == "file":
        state.write_bytes(b"")
    else:
        directory = state / "queues" / str(os.stat(leaf).st_dev)
        directory.mkdir(parents=True)
        (tmp_path / "precious").write_bytes(b"precious")
        for number in range(DEFAULT_PARALLEL):
            (directory / str(number)).symlink_to(tmp_path / "precious")
    slots = [MergeSlot(MergeRequest(child=leaf), str(state)) for _ in range(5)]
    assert all(slot.take() for slot in slots)


def test_a_merge_that_only_changes_names_waits_for_no_slot(vms: Path, state: Path) -> None:
    """A machine's manifest may be held until it is done."""

    class Stubborn(LocalFolder):
        def remove(self, path: str) -> None:
            if path == leaf:
                raise OSError(5, "cut", path)
            super().remove(path)

    leaf = make_chain(vms, "a", 1)
    base, before = str(vms / "a.vhd"), view(leaf)
    with pytest.raises(OSError, match="cut"):
        vhdkit.merge(vhdkit.plan_merge(leaf), folder=Stubborn())
    slots = [MergeSlot(MergeRequest(child=base), str(state)) for _ in range(DEFAULT_PARALLEL)]
    assert all(slot.take() for slot in slots)
    plan, stop = vhdkit.plan_merge(leaf), threading.Event()
    assert plan.resume is vhdkit.Resume.FINISHES
    merging = threading.Thread(target=run_merge, args=(plan, MergeRequest(child=leaf)), kwargs={"cancel": stop})
    merging.start()
    merging.join(HANGS_SECONDS)
    stop.set()
    merging.join()
    for slot in slots:
        slot.release()
    assert not os.path.exists(leaf)
    assert view(base) == before
