"""`rebase` on the command line: what it prints, and its exit codes."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from typing import TYPE_CHECKING

import vhdkit
from tests.cli.running import BASE, LEAF, MIDDLE, snapshot, spawn, view_of
from vhdkit.vhd.open_image import open_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.running import Outcome

    Cli = Callable[..., Outcome]


def moved(vms: Path) -> None:
    (vms / "old").mkdir()
    (vms / BASE).rename(vms / "old" / "renamed.vhd")


def test_a_moved_parent_is_mended_by_the_command(cli: Cli, vms: Path) -> None:
    layers = [vms / LEAF, vms / MIDDLE, vms / BASE]
    before = view_of(*layers)
    moved(vms)
    assert cli("chain", LEAF).code == 1
    outcome = cli("rebase", MIDDLE, "-b", "old/renamed.vhd")
    assert outcome.code == 0, outcome.err
    assert "id           the same" in outcome.out
    with vhdkit.open_chain(LEAF) as chain:
        assert hashlib.sha256(chain.read(0, chain.size)).hexdigest() == before
    again = cli("rebase", MIDDLE, "-b", "old/renamed.vhd")
    assert "nothing is to be changed" in again.out


def test_json_has_what_was_compared(cli: Cli, vms: Path) -> None:
    moved(vms)
    before = snapshot(vms)
    record = json.loads(cli("rebase", MIDDLE, "-b", "old/renamed.vhd", "--json", "--dry-run").out)
    assert snapshot(vms) == before
    assert record["changed"] is False
    assert record["same-id"] is True
    assert record["parent"] == str(vms / "old" / "renamed.vhd")
    assert (record["fits"], record["first-difference"], record["parent-before"]) == ("unknown", None, None)
    assert record["child-size"] == record["parent-size"]
    assert json.loads(cli("rebase", MIDDLE, "-b", "old/renamed.vhd", "--json").out)["changed"] is True


def test_another_id_exits_1_and_names_the_option(cli: Cli, vms: Path) -> None:
    vhdkit.create_image("new.vhd", size=1 << 20)
    before = snapshot(vms)
    outcome = cli("rebase", MIDDLE, "-b", "new.vhd")
    assert outcome.code == 1
    assert "--ignore-id-mismatch" in outcome.err
    assert "0xC03A000E" in outcome.err
    assert snapshot(vms) == before


def test_a_file_in_use_exits_75_and_no_parent_64(cli: Cli, vms: Path) -> None:
    with open_image(str(vms / BASE), writable=True, exclusive=True):
        assert cli("rebase", MIDDLE, "-b", BASE).code == 75
    assert cli("rebase", MIDDLE).code == 64


def test_json_has_kebab_case_keys_and_sizes_and_times_of_both(cli: Cli, vms: Path) -> None:
    moved(vms)
    record = cli("rebase", MIDDLE, "-b", "old/renamed.vhd", "--json").json
    assert [key for key in record if not re.fullmatch(r"[a-z]+(-[a-z]+)*", key)] == []
    assert record["child-block-size"] > 0
    assert record["parent-block-size"] > 0
    assert record["parent-made"].endswith("+00:00")
    assert record["parent-changed"].endswith("+00:00")
    assert record["warnings"] == []


def test_a_dry_run_says_the_same_and_that_nothing_was_written(cli: Cli, vms: Path) -> None:
    moved(vms)
    before = snapshot(vms)
    planned = cli("rebase", MIDDLE, "-b", "old/renamed.vhd", "--dry-run")
    assert planned.code == 0
    assert snapshot(vms) == before
    done = cli("rebase", MIDDLE, "-b", "old/renamed.vhd")
    *lines, said = done.out.splitlines()
    assert planned.out.splitlines() == [*lines, "nothing was written: this was a dry run"]
    assert re.fullmatch(rf"wrote .*{MIDDLE}: its parent is .*old/renamed\.vhd", said)
    assert snapshot(vms) != before
    rows = dict(line.split("  ", 1) for line in lines)
    assert {"id", "child size", "parent size", "block sizes", "remembered", "parent made", "changed", "fits"} <= set(
        rows
    )


def test_a_warning_goes_to_stderr_and_says_how_the_parent_is_found(cli: Cli, vms: Path, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (vms / BASE).rename(tmp_path / "far" / BASE)
    outcome = cli("rebase", MIDDLE, "-b", "../far/" + BASE)
    assert outcome.code == 0
    assert f"--search {tmp_path / 'far'} finds it" in outcome.err
    assert cli("chain", LEAF).code == 1
    assert cli("chain", LEAF, "--search", str(tmp_path / "far")).code == 0


def test_other_content_exits_1_and_is_told_if_it_is_taken(cli: Cli, vms: Path) -> None:
    shutil.copy(vms / BASE, vms / "copy.vhd")
    with vhdkit.open_chain(str(vms / "copy.vhd"), writable=True) as chain:
        at = chain.size - 512
        chain.write(at, b"!" * 512, sync=True)
    before = snapshot(vms)
    assert f"first at byte {at}" in cli("rebase", MIDDLE, "-b", "copy.vhd").refused()
    assert snapshot(vms) == before
    # What reads through it would show other data as well.
    assert str(vms / LEAF) in cli("rebase", MIDDLE, "-b", "copy.vhd", "--ignore-id-mismatch").refused()
    assert snapshot(vms) == before
    (vms / LEAF).unlink()
    record = cli("rebase", MIDDLE, "-b", "copy.vhd", "--ignore-id-mismatch", "--json").json
    assert (record["fits"], record["first-difference"], record["changed"]) == ("no", at, True)
    assert any(f"first at byte {at}" in text for text in record["warnings"])


def test_children_that_show_the_same_through_an_equal_parent_of_another_id_are_no_obstacle(cli: Cli, vms: Path) -> None:
    layers = [vms / LEAF, vms / MIDDLE, vms / BASE]
    before = view_of(*layers)
    vhdkit.convert(str(vms / BASE), str(vms / "new.vhd"))
    record = cli("rebase", MIDDLE, "-b", "new.vhd", "--ignore-id-mismatch", "--json").json
    assert (record["same-id"], record["fits"], record["changed"]) == (False, "yes", True)
    assert view_of(vms / LEAF, vms / MIDDLE, vms / "new.vhd") == before


def test_a_child_in_use_exits_75_and_one_that_is_read_only_1(cli: Cli, vms: Path) -> None:
    moved(vms)
    before = snapshot(vms)
    with vhdkit.open_image(str(vms / MIDDLE), exclusive=False):
        assert MIDDLE in cli("rebase", MIDDLE, "-b", "old/renamed.vhd").refused(75)
    (vms / MIDDLE).chmod(0o444)
    for words in ([], ["--dry-run"]):
        assert "read-only" in cli("rebase", MIDDLE, "-b", "old/renamed.vhd", *words).refused()
    assert snapshot(vms) == before


def test_a_process_of_its_own_does_the_same(vms: Path) -> None:
    moved(vms)
    outcome = spawn("rebase", MIDDLE, "-b", "old/renamed.vhd", "--json", cwd=vms)
    assert (outcome.code, outcome.json["changed"]) == (0, True)
    assert "loop" in spawn("rebase", LEAF, "-b", LEAF, cwd=vms).refused()
