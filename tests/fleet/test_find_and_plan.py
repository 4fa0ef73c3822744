"""Which chains a pattern means, and the tasks that follow."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import permutations
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.cutting import CutError, CuttingFolder, at_first
from tests.fleet.machines_on_disk import assert_merged, found, make_machines, outcomes, plan_of, run_here
from tests.plainbuild import ImageSpec, build, locator
from tests.plainvhd import DIFFERENCING
from vhdkit import fleet
from vhdkit.chain.chain import open_chain_with
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from vhdkit.chain.chain import Chain
    from vhdkit.storage.protocols import Folder


def merges(plan: fleet.FleetPlan) -> list[tuple[str, str]]:
    """Return the names of leaf and destination of each merge."""
    requests = [task.request for task in plan.tasks]
    assert all(isinstance(request, fleet.EnsureRequest) for request in requests)
    pairs = [(each.merge.child, each.merge.into or "") for each in requests if isinstance(each, fleet.EnsureRequest)]
    return [(leaf.rsplit("/", 1)[1], into.rsplit("/", 1)[1]) for leaf, into in pairs]


def child_of(parent: Path, name: str) -> Path:
    path = parent.parent / name
    vhdkit.create_image(str(path), parent=str(parent))
    return path


def test_all_matched_layers_go_into_the_first_that_is_not(vms: Path) -> None:
    make_machines(vms, 2, levels=3)
    plan = plan_of(vms, "merge")
    assert merges(plan) == [("vm00_2.avhd", "vm00.vhd"), ("vm01_2.avhd", "vm01.vhd")]
    assert [task.group for task in plan.tasks] == [0, 1]
    # A pattern that means the base as well says the same: a base is merged into nothing.
    assert merges(plan_of(vms, "merge", "**/*")) == merges(plan)
    assert merges(plan_of(vms, "merge", "**/vm*_[12].avhd")) == [
        ("vm00_2.avhd", "vm00_0.avhd"),
        ("vm01_2.avhd", "vm01_0.avhd"),
    ]
    assert merges(plan_of(vms, "merge", "vm00/vm00_1.avhd")) == [("vm00_1.avhd", "vm00_0.avhd")]
    assert plan_of(vms, "merge", "**/*.vhd").tasks == ()


@pytest.mark.parametrize("verb", ["merge", "hash", "convert"])
def test_several_patterns_mean_what_one_would(vms: Path, tmp_path: Path, verb: str) -> None:
    """As when a shell has taken a pattern apart, or two of them overlap."""
    views = make_machines(vms, 2, levels=3)
    options = fleet.FleetOptions(verb=fleet.FleetVerb(verb), destination=str(tmp_path))
    apart = [found(vms, str(path.relative_to(vms))) for path in sorted(vms.rglob("*.avhd"))]
    whole = fleet.plan_fleet([found(vms)], options)
    assert fleet.plan_fleet(apart, options).tasks == whole.tasks
    assert fleet.plan_fleet([found(vms, "vm00/*_1.avhd"), found(vms), found(vms)], options).tasks == whole.tasks
    if verb == "merge":
        assert outcomes(run_here(fleet.plan_fleet(apart, options))) == {"done": 2}
        assert_merged(vms, views)


def test_two_merges_of_one_chain_are_a_group_the_lower_one_first(vms: Path) -> None:
    views = make_machines(vms, 1, levels=4)
    plan = plan_of(vms, "merge", "**/*_[13].avhd")
    assert merges(plan) == [("vm00_1.avhd", "vm00_0.avhd"), ("vm00_3.avhd", "vm00_2.avhd")]
    assert [task.group for task in plan.tasks] == [0, 0]
    assert outcomes(run_here(plan)) == {"done": 2}
    assert outcomes(run_here(plan_of(vms, "merge"))) == {"done": 1}
    (vms / "vm00" / "vm00_0.avhd.vhdkit-merged").unlink()
    (vms / "vm00" / "vm00_2.avhd.vhdkit-merged").unlink()
    assert_merged(vms, views)


def test_merges_above_one_base_that_none_of_them_changes_are_independent(vms: Path) -> None:
    base = vms / "golden.vhd"
    vhdkit.create_image(str(base), size=4 << 20)
    for name in ("a", "b"):
        child_of(child_of(base, f"{name}.avhd"), f"{name}_leaf.avhd")
    plan = plan_of(vms, "merge", "*_leaf.avhd")
    assert merges(plan) == [("a_leaf.avhd", "a.avhd"), ("b_leaf.avhd", "b.avhd")]
    assert len({task.group for task in plan.tasks}) == 2
    # Two that both want to go into the base are refused by each other, and change nothing.
    both = plan_of(vms, "merge", "*.avhd")
    assert len({task.group for task in both.tasks}) == 1
    report = run_here(both)
    assert [type(chain.error) for chain in report.chains] == [vhdkit.SiblingsError] * 2
    assert len(list(vms.iterdir())) == 5


def test_what_cannot_be_read_or_opened_is_an_obstacle_and_stops_nothing(vms: Path) -> None:
    views = make_machines(vms, 3, levels=1)
    (vms / "vm01" / "vm01.vhd").unlink()
    (vms / "vm02" / "vm02_0.avhd").write_bytes(b"no image" * 1000)
    plan = plan_of(vms, "merge")
    assert merges(plan) == [("vm00_0.avhd", "vm00.vhd")]
    errors = {each.path.rsplit("/", 1)[1]: type(each.error) for each in plan.obstacles}
    assert errors == {"vm01_0.avhd": vhdkit.ParentNotFoundError, "vm02_0.avhd": vhdkit.CorruptImageError}
    report = run_here(plan)
    assert outcomes(report) == {"done": 1, "failed": 2}
    shutil.rmtree(vms / "vm01")
    shutil.rmtree(vms / "vm02")
    assert_merged(vms, {"vm00": views["vm00"]})


def test_images_that_are_each_others_parents_are_both_told(vms: Path) -> None:
    ids = {"one.avhd": bytes(range(16)), "two.avhd": bytes(range(16, 32))}
    for (name, own), (other, parent) in permutations(ids.items()):
        spec = ImageSpec(
            disk_type=DIFFERENCING,
            size=1 << 20,
            unique_id=own,
            parent_id=parent,
            parent_name=other,
            locators=(locator(0, b"W2ru", f".\\{other}"),),
        )
        (vms / name).write_bytes(build(spec))
    obstacles = plan_of(vms, "merge").obstacles
    assert [type(each.error) for each in obstacles] == [vhdkit.ChainLoopError] * 2


def test_a_file_a_folder_and_a_name_with_brackets_are_patterns(vms: Path) -> None:
    make_machines(vms, 1, levels=1)
    odd = vms / "vm00" / "web[1].vhd"
    vhdkit.create_image(str(odd), size=4 << 20)
    assert [chain.leaf.path for chain in found(vms, "vm00/web[1].vhd").chains] == [str(odd)]
    assert len(found(vms, "vm00/vm00_0.avhd").chains) == 1
    assert len(found(vms, "").chains) == 2
    for missing in ("nowhere/*.vhd", "vm00/gone.avhd", "nowhere/gone.avhd"):
        here = found(vms, missing)
        path = str(vms / missing.removesuffix("/*.vhd"))
        assert {path: FileNotFoundError} == {name: type(error) for name, error in here.unreadable.items()}
        assert here.chains == ()


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_merge_that_was_cut_off_while_it_removed_its_sources_is_finished(vms: Path, gone: int) -> None:
    views = make_machines(vms, 1, levels=3)
    sources = [str(vms / "vm00" / f"vm00_{level}.avhd") for level in (2, 1, 0)]
    (task,) = plan_of(vms, "merge").tasks
    assert isinstance(task.request, fleet.EnsureRequest)
    when = at_first("remove", sources[gone])
    with pytest.raises(CutError):
        vhdkit.ensure_merged(
            sources[0],
            into=str(vms / "vm00" / "vm00.vhd"),
            leaf_id=task.request.leaf_id,
            folder=CuttingFolder(LocalFolder(), when),
        )
    assert any((vms / "vm00").glob("*.vhdkit-journal"))
    assert outcomes(run_here(plan_of(vms, "merge"))) == {"resumed": 1}
    assert_merged(vms, views)


@pytest.mark.parametrize("is_cut", [True, False])
def test_a_merge_that_is_spelled_out_may_be_asked_for_again(vms: Path, is_cut: bool) -> None:
    views = make_machines(vms, 2, levels=1)
    leaf = vms / "vm00" / "vm00_0.avhd"
    plan = plan_of(vms, "merge", "vm00/vm00_0.avhd")
    (task,) = plan.tasks
    assert isinstance(task.request, fleet.EnsureRequest)
    if is_cut:
        when = at_first("remove", leaf.name)
        with pytest.raises(CutError):
            vhdkit.ensure_merged(
                leaf,
                into=leaf.with_name("vm00.vhd"),
                leaf_id=task.request.leaf_id,
                folder=CuttingFolder(LocalFolder(), when),
            )
        leaf.unlink()
    else:
        run_here(plan)
    asked = [found(vms, f"{name}/{name}_0.avhd") for name in views]
    again = fleet.plan_fleet(asked, fleet.FleetOptions(verb=fleet.FleetVerb.MERGE))
    assert again.obstacles == ()
    assert outcomes(run_here(again)) == {"resumed" if is_cut else "was-done": 1, "done": 1}
    assert_merged(vms, views)
    # A leaf without a completion record, or one that must be read, is missing.
    assert len(plan_of(vms, "merge", "vm00/vm00_7.avhd").obstacles) == 1
    assert len(plan_of(vms, "hash", "vm00/vm00_0.avhd").obstacles) == 1


def test_a_pattern_that_means_less_than_that_of_the_run_that_was_cut_off_finishes_it(vms: Path) -> None:
    views = make_machines(vms, 1, levels=3)
    (task,) = plan_of(vms, "merge").tasks
    assert isinstance(task.request, fleet.EnsureRequest)
    leaf = task.request.merge.child
    with pytest.raises(CutError):
        vhdkit.ensure_merged(
            leaf,
            into=task.request.merge.into or "",
            leaf_id=task.request.leaf_id,
            folder=CuttingFolder(LocalFolder(), at_first("remove", leaf)),
        )
    assert outcomes(run_here(plan_of(vms, "merge", "vm00/*_2.avhd"))) == {"resumed": 1}
    assert_merged(vms, views)


def test_a_leaf_that_goes_while_it_is_looked_for_is_no_obstacle(vms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_machines(vms, 2, levels=1)
    gone = vms / "vm00" / "vm00_0.avhd"

    def remove_and_open(
        path: str, parents: fleet.ParentPolicy, folder: Folder, *, lock: bool
    ) -> AbstractContextManager[Chain]:
        gone.unlink(missing_ok=True)
        return open_chain_with(path, parents, folder, lock=lock)

    monkeypatch.setattr("vhdkit.fleet.find.open_chain_with", remove_and_open)
    plan = plan_of(vms, "merge")
    assert (merges(plan), plan.obstacles) == ([("vm01_0.avhd", "vm01.vhd")], ())


def test_one_file_that_is_meant_with_its_host_and_without_is_merged_once(vms: Path) -> None:
    make_machines(vms, 1, levels=1)
    asked = [found(vms), replace(found(vms), host="hv07")]
    plan = fleet.plan_fleet(asked, fleet.FleetOptions(verb=fleet.FleetVerb.MERGE))
    assert [task.group for task in plan.tasks] == [0, 0]
    assert outcomes(run_here(plan)) == {"done": 1, "was-done": 1}


def test_a_forged_journal_leads_to_no_merge_that_the_pattern_does_not_mean(vms: Path) -> None:
    """Sources outside of the pattern's folder, or of other names, are not gone on with."""
    make_machines(vms, 2, levels=1)
    leaf, base = vms / "vm00" / "vm00_0.avhd", vms / "vm00" / "vm00.vhd"
    plan = vhdkit.plan_merge(str(leaf))
    with pytest.raises(CutError):
        vhdkit.merge(plan, folder=CuttingFolder(LocalFolder(), at_first("remove", "vm00_0.avhd")))
    leaf.unlink()
    assert merges(plan_of(vms, "merge", "vm00/*.avhd")) == [(leaf.name, base.name)]
    assert merges(plan_of(vms, "merge", "vm00/other*.avhd")) == []
    assert merges(plan_of(vms, "merge", "vm01/*.avhd")) == [("vm01_0.avhd", "vm01.vhd")]


def test_two_chains_do_not_get_one_new_file(vms: Path, tmp_path: Path) -> None:
    make_machines(vms, 1, levels=1)
    shutil.copytree(vms / "vm00", vms / "vm01")
    (tmp_path / "out").mkdir()
    plan = plan_of(vms, "convert", destination=str(tmp_path / "out"))
    assert len(plan.tasks) == 1
    assert [type(each.error) for each in plan.obstacles] == [vhdkit.FleetError]
    assert "vm00/vm00_0.avhd" in str(plan.obstacles[0].error)


def test_what_a_merge_may_take_is_said_for_each_file_system(vms: Path) -> None:
    make_machines(vms, 3, levels=2)
    (load,) = plan_of(vms, "merge", per_target=2).loads
    sizes = [sum(path.stat().st_size for path in folder.glob("*.avhd")) for folder in sorted(vms.iterdir())]
    assert load.total_bytes == sum(sizes)
    assert load.space_needed == sum(sorted(sizes)[-2:])
    assert load.task_count == 3
    assert vms.stat().st_dev == load.target.device
    assert str(vms).startswith(load.name)


def test_requests_are_of_one_verb_and_those_that_write_one_file_run_in_turn(vms: Path) -> None:
    make_machines(vms, 1, levels=2)
    (task,) = plan_of(vms, "merge").tasks
    assert isinstance(task.request, fleet.EnsureRequest)
    with pytest.raises(ValueError, match="2 verbs"):
        fleet.plan_requests([task.request, fleet.HashRequest(path=task.path)])
    with pytest.raises(ValueError, match="0 verbs"):
        fleet.plan_requests([])
    merge = fleet.MergeRequest.of(task.request.merge.child, into=task.request.merge.into)
    request = fleet.EnsureRequest(merge=merge, leaf_id=task.request.leaf_id)
    plan = fleet.plan_requests([request, request], per_target=5)
    assert [each.group for each in plan.tasks] == [0, 0]
    # It waits for no fewer other merges than run at once.
    assert all(isinstance(each.request, fleet.EnsureRequest) for each in plan.tasks)
    assert {getattr(each.request, "merge", merge).parallel for each in plan.tasks} == {5}
    # The second finds that the first has done it, though its leaf is gone.
    with ThreadPoolExecutor(2) as threads:
        assert outcomes(fleet.run([request, request], threads)) == {"done": 1, "was-done": 1}
