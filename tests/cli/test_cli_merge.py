"""merge: what is left afterwards reads as before, and what it says is what it did."""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.running import BASE, CHAIN, FIXTURES, LEAF, MANIFEST, MIDDLE, snapshot, view_of
from tests.plaincheck import validate
from tests.plainvhd import parse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.running import Outcome

    Cli = Callable[..., Outcome]
    Lay = Callable[..., Path]

VIEW = MANIFEST[LEAF]["view_sha256"]
MIDDLE_VIEW = MANIFEST[MIDDLE]["view_sha256"]
RESULT_TYPES = {
    "sources": list,
    "destination": str,
    "bytes-copied": int,
    "blocks-added": int,
    "destination-size": int,
    "seconds": float,
    "removed": list,
    "relinked": list,
}
PLAN_TYPES = {
    "sources": list,
    "destination": str,
    "bytes-to-copy": int,
    "blocks-to-add": int,
    "virtual-size": int,
    "destination-size": int,
    "space-needed": int,
    "space-free": int,
    "to-relink": list,
    "to-remove": list,
    "obstacles": list,
}


def names(paths: list[str]) -> list[str]:
    return [os.path.basename(path) for path in paths]


def siblings(vms: Path, count: int) -> list[str]:
    """Give the base more children of the middle's kind, and return their names."""
    from vhdkit import create_image  # noqa: PLC0415 - only the files matter here

    made = [f"sibling{number}.avhd" for number in range(count)]
    for name in made:
        create_image(str(vms / name), parent=str(vms / BASE))
    return made


def test_a_merge_goes_into_the_parent_and_removes_the_child(cli: Cli, vms: Path) -> None:
    done = cli("merge", LEAF, "--json")
    assert done.code == 0
    assert sorted(os.listdir()) == sorted([BASE, MIDDLE])
    assert view_of(vms / MIDDLE, vms / BASE) == VIEW
    assert names(done.json["removed"]) == [LEAF]


def test_a_merged_image_keeps_every_rule_of_the_format(cli: Cli, vms: Path) -> None:
    assert cli("merge", LEAF, "--into", BASE).code == 0
    assert validate(vms / BASE) == []


@pytest.mark.parametrize("ancestor", [BASE, f"./{BASE}", f"../vms/{BASE}"])
def test_a_merge_goes_into_any_ancestor_by_any_name_of_it(cli: Cli, vms: Path, ancestor: str) -> None:
    done = cli("merge", LEAF, "--into", ancestor, "--json")
    assert done.code == 0
    assert os.listdir() == [BASE]
    assert view_of(vms / BASE) == VIEW
    assert names(done.json["sources"]) == names(done.json["removed"]) == [LEAF, MIDDLE]


def test_a_merge_to_a_new_file_leaves_every_input_as_it_was(cli: Cli, vms: Path) -> None:
    before = snapshot(vms)
    done = cli("merge", LEAF, "--to", "new.vhd", "--json")
    assert done.code == 0
    assert done.json["removed"] == done.json["relinked"] == []
    assert done.json["destination"] == str(vms / "new.vhd")
    assert done.json["destination-size"] == os.path.getsize("new.vhd")
    after = snapshot(vms)
    assert after.pop("new.vhd")
    assert after == before
    assert view_of(vms / "new.vhd") == VIEW
    assert validate(vms / "new.vhd") == []


def test_a_new_file_goes_where_it_is_asked_for(cli: Cli, vms: Path, tmp_path: Path) -> None:
    before = snapshot(vms)
    (tmp_path / "out").mkdir()
    assert cli("merge", LEAF, "--to", "../out/new.vhd").code == 0
    assert view_of(tmp_path / "out" / "new.vhd") == VIEW
    assert snapshot(vms) == before


def test_a_disk_with_siblings_can_be_merged_to_a_new_file(cli: Cli, lay: Lay) -> None:
    folder = lay("unaligned.vhd", "macx-child.vhd", "xp-child.vhd")
    assert cli("merge", "xp-child.vhd", "--to", "new.vhd").code == 0
    assert view_of(folder / "new.vhd") == MANIFEST["xp-child.vhd"]["view_sha256"]


def test_kept_sources_are_byte_for_byte_what_they_were(cli: Cli, vms: Path) -> None:
    before = snapshot(vms)
    done = cli("merge", LEAF, "--into", BASE, "--keep-sources", "--json")
    assert (done.code, done.json["removed"]) == (0, [])
    after = snapshot(vms)
    assert {name for name in CHAIN if after[name] != before[name]} == {BASE}
    assert view_of(vms / BASE) == VIEW
    assert view_of(*(vms / name for name in CHAIN)) == VIEW


@pytest.mark.parametrize("verb", ["commit", "coalesce"])
def test_other_programs_words_mean_merge(cli: Cli, vms: Path, verb: str) -> None:
    assert cli(verb, LEAF, "--into", BASE).code == 0
    assert view_of(vms / BASE) == VIEW


def test_children_of_the_merged_image_are_relinked_and_read_as_before(cli: Cli, vms: Path) -> None:
    plan = cli("merge", MIDDLE, "--dry-run", "--json").json
    done = cli("merge", MIDDLE, "--json")
    assert done.code == 0
    assert names(plan["to-relink"]) == names(done.json["relinked"]) == [LEAF]
    assert sorted(os.listdir()) == sorted([BASE, LEAF])
    assert view_of(vms / BASE) == MIDDLE_VIEW
    assert view_of(vms / LEAF, vms / BASE) == VIEW
    assert parse(vms / LEAF).parent_id == parse(vms / BASE).unique_id
    assert parse(vms / LEAF).parent_name == BASE
    chain = cli("chain", "--json", LEAF)
    assert names([layer["filename"] for layer in chain.json["layers"]]) == [LEAF, BASE]
    assert chain.json["warnings"] == []


def test_the_chain_can_be_folded_one_merge_after_the_other(cli: Cli, vms: Path) -> None:
    assert cli("merge", MIDDLE).code == 0
    assert cli("merge", LEAF).code == 0
    assert os.listdir() == [BASE]
    assert view_of(vms / BASE) == VIEW


@pytest.mark.parametrize("child", ["fixed-child.vhd", "larger-child.vhd"])
def test_parents_of_other_kinds_and_sizes_read_as_the_child_did(cli: Cli, lay: Lay, child: str) -> None:
    parent = MANIFEST[child]["parent"]
    folder = lay(child, parent)
    assert cli("merge", child).code == 0
    assert os.listdir() == [parent]
    assert view_of(folder / parent) == MANIFEST[child]["view_sha256"]


def test_a_raw_parent_merges_to_a_new_file_only(cli: Cli, lay: Lay) -> None:
    folder = lay("raw-child.vhd", "raw-parent.img")
    before = snapshot(folder)
    assert "--to" in cli("merge", "raw-child.vhd", "--parent", "raw-parent.img").refused()
    assert snapshot(folder) == before
    assert cli("merge", "raw-child.vhd", "--parent", "raw-parent.img", "--to", "new.vhd").code == 0
    assert view_of(folder / "new.vhd") == MANIFEST["raw-child.vhd"]["view_sha256"]


def check_types(record: dict[str, Any], types: dict[str, type]) -> None:
    for key, kind in types.items():
        assert type(record[key]) is kind, key


@pytest.mark.parametrize("options", [[], ["--into", BASE], ["--to", "new.vhd"], ["--keep-sources"]])
def test_the_result_has_the_promised_keys_and_the_plan_foretold_it(cli: Cli, vms: Path, options: list[str]) -> None:
    plan = cli("merge", LEAF, *options, "--dry-run", "--json").json
    check_types(plan, PLAN_TYPES)
    done = cli("merge", LEAF, *options, "--json").json
    check_types(done, RESULT_TYPES)
    assert done["sources"] == plan["sources"]
    assert done["destination"] == plan["destination"]
    assert done["bytes-copied"] == plan["bytes-to-copy"]
    assert done["blocks-added"] == plan["blocks-to-add"]
    assert done["destination-size"] == plan["destination-size"] == os.path.getsize(done["destination"])
    assert done["removed"] == plan["to-remove"]
    assert done["relinked"] == plan["to-relink"]
    assert done["destination"].startswith(f"{vms}/")


def test_the_summary_tells_bytes_blocks_time_and_what_is_left(cli: Cli, vms: Path) -> None:
    plan = cli("merge", LEAF, "--dry-run", "--json").json
    done = cli("merge", LEAF)
    lines = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert lines["merged"] == lines["removed"] == LEAF
    assert lines["into"] == MIDDLE
    assert f"({plan['bytes-to-copy']} bytes)" in lines["copied"]
    assert lines["added"].startswith(f"{plan['blocks-to-add']} block")
    assert lines["took"].endswith("seconds")
    assert lines["left"].startswith(f"{MIDDLE}, ")
    assert f"({(vms / MIDDLE).stat().st_size} bytes)" in lines["left"]


@pytest.mark.parametrize("options", [[], ["--into", BASE], ["--to", "new.vhd"], ["--json"], ["--progress", "bar"]])
def test_a_dry_run_writes_nothing(cli: Cli, vms: Path, options: list[str]) -> None:
    before, times = snapshot(vms), {name: (vms / name).stat().st_mtime_ns for name in CHAIN}
    assert cli("merge", LEAF, *options, "--dry-run").code == 0
    assert snapshot(vms) == before
    assert {name: (vms / name).stat().st_mtime_ns for name in CHAIN} == times


def test_a_dry_run_as_text_says_what_would_be_done(cli: Cli, vms: Path) -> None:
    done = cli("merge", MIDDLE, "--dry-run")
    plan = cli("merge", MIDDLE, "--dry-run", "--json").json
    lines = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert (lines["merge"], lines["into"], lines["remove"], lines["relink"]) == (MIDDLE, BASE, MIDDLE, LEAF)
    assert f"({plan['bytes-to-copy']} bytes)" in lines["copy"]
    assert "obstacle" not in lines
    assert (vms / MIDDLE).exists()


@pytest.mark.parametrize("style", ["--json", "--progress=none"])
def test_a_dry_run_names_every_obstacle_and_fails(cli: Cli, vms: Path, style: str) -> None:
    others = siblings(vms, 2)
    (vms / BASE).chmod(0o444)
    before = snapshot(vms)
    done = cli("merge", MIDDLE, "--dry-run", style)
    assert done.code == 1
    assert snapshot(vms) == before
    obstacles = done.json["obstacles"] if style == "--json" else done.out.splitlines()
    assert any("read-only" in line and BASE in line for line in obstacles)
    assert any(all(name in line for name in others) for line in obstacles)


def test_siblings_are_refused_with_their_names_and_nothing_is_touched(cli: Cli, vms: Path) -> None:
    others = siblings(vms, 3)
    before = snapshot(vms)
    message = cli("merge", LEAF, "--into", BASE).refused()
    for name in others:
        assert name in message
    assert snapshot(vms) == before
    assert cli("merge", LEAF).code == 0
    assert view_of(vms / MIDDLE, vms / BASE) == VIEW


def test_every_obstacle_is_told_when_a_merge_is_refused(cli: Cli, vms: Path) -> None:
    others = siblings(vms, 2)
    (vms / BASE).chmod(0o444)
    message = cli("merge", MIDDLE).refused()
    assert "read-only" in message
    for name in others:
        assert name in message


def test_a_merge_never_changes_what_a_sibling_reads(cli: Cli, vms: Path) -> None:
    """A child that holds nothing changes nothing when it is merged: its siblings may stay, or stand in the way."""
    empty, other = siblings(vms, 2)
    done = cli("merge", empty)
    assert done.code == (1 if (vms / empty).exists() else 0)
    assert view_of(vms / other, vms / BASE) == MANIFEST[BASE]["view_sha256"]
    assert view_of(*(vms / name for name in CHAIN)) == VIEW
    assert cli("compare", "--strict", LEAF, FIXTURES / LEAF).code == 0


def test_a_sibling_in_a_search_folder_is_found(cli: Cli, vms: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (name,) = siblings(vms, 1)
    shutil.move(name, tmp_path / "other" / name)
    message = cli("merge", MIDDLE, "--search", tmp_path / "other").refused()
    assert str(tmp_path / "other" / name) in message


def test_the_advice_in_a_refusal_works(cli: Cli, lay: Lay) -> None:
    folder = lay("unaligned.vhd", "macx-child.vhd", "xp-child.vhd")
    message = cli("merge", "macx-child.vhd").refused()
    assert "--to" in message
    # Each of two siblings is in the other's way: neither can be merged first.
    assert "Merge them first" not in message
    assert cli("merge", "macx-child.vhd", "--to", "new.vhd").code == 0
    assert view_of(folder / "new.vhd") == MANIFEST["macx-child.vhd"]["view_sha256"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([BASE], "no parent"),
        ([LEAF, "--into", LEAF], "ancestor"),
        ([MIDDLE, "--into", LEAF], "ancestor"),
        ([LEAF, "--into", "fixed.vhd"], "ancestor"),
        ([LEAF, "--into", "nowhere.vhd"], "nowhere.vhd: No such file"),
        ([LEAF, "--to", BASE], "exists"),
        ([LEAF, "--to", LEAF], "exists"),
    ],
)
def test_a_merge_that_makes_no_sense_is_refused(cli: Cli, vms: Path, arguments: list[str], said: str) -> None:
    shutil.copy2(FIXTURES / "fixed.vhd", "fixed.vhd")
    before = snapshot(vms)
    assert said in cli("merge", *arguments).refused()
    assert said in cli("merge", *arguments, "--dry-run", "--json").refused()
    assert snapshot(vms) == before


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, PermissionError])
def test_what_is_said_after_a_failed_removal_is_true(
    cli: Cli, vms: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    """The leaf goes first: where it cannot, all layers are still there, and the disk is whole in the base."""

    def remove(path: str) -> None:
        if path.endswith(LEAF):
            raise interruption(1, "Operation not permitted", path)
        os.remove(path)

    with monkeypatch.context() as patch:
        patch.setattr("vhdkit.storage.local_folder.LocalFolder.remove", staticmethod(remove))
        done = cli("merge", LEAF, "--into", BASE, "--progress", "none")
    assert done.code in {1, 130}
    assert sorted(os.listdir()) == sorted([BASE, f"{BASE}.vhdkit-journal", MIDDLE, LEAF])
    assert view_of(vms / BASE) == VIEW
    assert view_of(*(vms / name for name in CHAIN)) == VIEW
    assert "reads as before" not in done.err
    command = re.search(r"complete and durable in .*; `vhdkit (merge .*)` finishes what is left", done.err)
    assert command is not None
    assert cli(*command[1].split()).code == 0
    assert os.listdir() == [BASE]
    assert view_of(vms / BASE) == VIEW
