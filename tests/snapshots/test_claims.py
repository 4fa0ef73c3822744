"""What a machine's snapshots need is an obstacle of every plan, whoever makes it."""

from __future__ import annotations

import os
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.snapshots.machines import SIZE, Kept, advised, contents
from tests.typed import as_typed
from vhdkit.chain.rebase import plan_rebase
from vhdkit.errors import MergeCancelled, ReadOnlyImageError, SnapshotError
from vhdkit.journal.claims import Change, claims_on, obstacles
from vhdkit.merging.drop_undo import drop_undo
from vhdkit.merging.rollback import rollback
from vhdkit.snapshot.machine import Machine
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.search_scope import SearchScope

if TYPE_CHECKING:
    from collections.abc import Callable

MANIFEST = "xp.vhdkit-snapshots.json"


@pytest.fixture
def three(kept: Kept) -> Kept:
    """Snapshots A and B, and what was written since."""
    kept.take("A", "a")
    kept.take("B", "b")
    kept.write("c")
    return kept


@pytest.fixture(params=[0o444, 0o644], ids=["frozen", "let be written"])
def layers(three: Kept, request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Return the active layer and those below it, as they were frozen or with the mark lifted."""
    machine = three.machine
    found = (machine.active[0], *machine.layers_of("B"), *machine.layers_of("A"))
    for path in found[1:]:
        Path(path).chmod(request.param)
    return found


def test_a_plan_in_python_is_told_which_snapshot_froze_a_layer(three: Kept, layers: tuple[str, ...]) -> None:
    before = three.all_shown()
    for top, into in ((layers[0], layers[1]), (layers[0], layers[2]), (layers[1], layers[2])):
        plan = vhdkit.plan_merge(top, into=into)
        (refusal,) = (each for each in plan.obstacles if isinstance(each, SnapshotError))
        assert "frozen as snapshot" in str(refusal)
        assert MANIFEST in str(refusal)
        assert not any("chmod" in str(each) or "allow writing" in str(each) for each in plan.obstacles)
        with pytest.raises(SnapshotError, match="frozen as snapshot"):
            vhdkit.merge(plan)
        with pytest.raises(SnapshotError, match="frozen as snapshot"):
            vhdkit.start_merge(top, into=into)
        with pytest.raises(SnapshotError, match="frozen as snapshot"):
            vhdkit.start_merge(top, into=into, detached=True)
    assert three.all_shown() == before


def test_a_layer_is_not_rebased_to_what_its_snapshots_do_not_say(three: Kept, layers: tuple[str, ...]) -> None:
    vhdkit.create_image("other.vhd", size=SIZE)
    before = contents(three.folder)
    for layer in layers[:2]:
        for act in (plan_rebase, vhdkit.rebase):
            with pytest.raises(SnapshotError, match="would show something else"):
                act(layer, "other.vhd", ignore_id_mismatch=True)
    assert contents(three.folder) == before
    # Where its parent was renamed it is told so, and stays frozen.
    mode = Path(layers[1]).stat().st_mode
    Path("xp.vhd").rename("base.vhd")
    assert vhdkit.rebase(layers[1], "base.vhd").fits == "yes"
    assert Path(layers[1]).stat().st_mode == mode
    assert Machine.adopt([layers[0]]).check() == ()


def test_an_undo_image_of_a_machines_layer_is_neither_rolled_back_nor_dropped(three: Kept) -> None:
    """A merge into a layer that was undone-able before it became a layer of the machine."""
    active = three.machine.active[0]
    Path(MANIFEST).rename("aside")
    frozen = three.folder / "xp.vhd"
    (middle,) = (
        path for path in three.folder.glob("*.avhd") if path != Path(active) and not path.stat().st_mode & 0o222
    )
    frozen.chmod(0o644)
    with pytest.raises(MergeCancelled):
        stopped(str(middle))
    Path("aside").rename(MANIFEST)
    before = contents(three.folder)
    with pytest.raises(SnapshotError, match="frozen as snapshot 'A'"):
        rollback("undo.vhd")
    assert contents(three.folder) == before
    Path(MANIFEST).rename("aside")
    frozen.chmod(0o644)
    vhdkit.merge(vhdkit.plan_merge(str(middle)))
    Path("aside").rename(MANIFEST)
    before = contents(three.folder)
    for act in (rollback, drop_undo):
        with pytest.raises(SnapshotError, match="frozen as snapshot"):
            act("undo.vhd")
    assert contents(three.folder) == before


def stopped(top: str) -> None:
    stop = threading.Event()

    def advance(state: object) -> None:
        if getattr(state, "bytes_done", 0):
            stop.set()

    vhdkit.merge(vhdkit.plan_merge(top, undo="undo.vhd"), progress=advance, cancel=stop)


def test_a_merge_into_the_present_is_anybodys_and_can_be_rolled_back(three: Kept) -> None:
    active = three.machine.active[0]
    vhdkit.create_image("stray.avhd", parent=active)
    with vhdkit.open_chain("stray.avhd", writable=True) as chain:
        chain.write(0, b"s" * 4096, sync=True)
    vhdkit.merge(vhdkit.plan_merge("stray.avhd", undo="undo.vhd"))
    assert three.shows() == "s"
    rollback("undo.vhd")
    assert three.shows() == "c"


def test_who_acts_for_a_machine_may_merge_what_no_snapshot_needs_and_no_more(three: Kept) -> None:
    machine = three.machine
    active, middle, base = (machine.active[0], *machine.layers_of("B"), *machine.layers_of("A"))
    machine.delete("A")

    def refused(top: str, into: str, acting_for: str) -> bool:
        change = Change(destination=into, sources=(top,), acting_for=acting_for)
        return bool(obstacles(SearchScope(LocalFolder()), change))

    assert refused(middle, base, "")
    assert refused(middle, base, str(three.folder / "other.vhdkit-snapshots.json"))
    assert not refused(middle, base, machine.file.path)
    # B's own view would end.
    assert refused(active, middle, machine.file.path)


def test_a_frozen_layer_says_who_froze_it_when_it_is_to_be_written(three: Kept) -> None:
    for name, path in (("A", "xp.vhd"), ("B", three.machine.layers_of("B")[0])):
        for opening in (vhdkit.open_image, vhdkit.open_chain):
            with pytest.raises(ReadOnlyImageError, match=f"frozen as snapshot '{name}'") as refused:
                opening(path, writable=True)
            assert "vhdkit snapshot apply" in as_typed(refused.value)
            assert "allow writing" not in str(refused.value)


def test_a_manifest_that_cannot_be_read_claims_what_is_called_as_its_layers(three: Kept) -> None:
    vhdkit.create_image("yy.vhd", size=SIZE)
    vhdkit.create_image("yy.avhd", parent="yy.vhd")
    top = three.machine.active[0]
    Path(MANIFEST).write_bytes(b"{")
    Path("xp.vhd").chmod(0o644)
    (refusal,) = vhdkit.plan_merge(top, into="xp.vhd").obstacles
    assert "cannot be told" in str(refusal)
    assert MANIFEST in str(refusal)
    assert vhdkit.plan_merge("yy.avhd").obstacles == ()


def test_a_manifest_of_another_user_claims_nothing(three: Kept) -> None:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root may give files away")
    os.chown(MANIFEST, 12345, 12345)
    assert claims_on(SearchScope(LocalFolder()), [str(three.folder / "xp.vhd")]) == ()


@pytest.mark.parametrize("act", ["list", "check", "apply", "revert", "delete", "rename", "export"])
def test_without_its_active_layer_a_machine_still_answers(three: Kept, act: str) -> None:
    machine = three.machine
    active = Path(machine.active[0])
    active.unlink()
    verbs: dict[str, Callable[[], object]] = {
        "list": lambda: (machine.is_running(), machine.owed()),
        "check": machine.check,
        "apply": lambda: machine.apply("A"),
        "revert": machine.revert,
        "delete": lambda: machine.delete("A"),
        "rename": lambda: machine.rename("A", "C"),
        "export": lambda: machine.export("A", "out"),
    }
    (remark,) = machine.check()
    assert (remark.kind, remark.path) == ("missing", str(active))
    assert any("snapshot apply" in command for command in advised(remark))
    verbs[act]()
    with pytest.raises(SnapshotError, match="not there") if act not in {"apply", "revert"} else nullcontext():
        machine.take("D")
    if act in {"apply", "revert"}:
        assert machine.check() == ()
        assert three.shows() == {"apply": "a", "revert": "b"}[act]
