"""`snapshot` on the command line: the story, what each verb prints, and the exit codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import vhdkit
from tests.cli.running import LEAF, environment, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.running import Outcome

    Cli = Callable[..., Outcome]

MIB = 1 << 20


@pytest.fixture
def xp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> str:
    (tmp_path / "machine").mkdir()
    monkeypatch.chdir(tmp_path / "machine")
    vhdkit.create_image("xp.vhd", size=64 * MIB)
    assert cli("snapshot", "init", "xp.vhd", "--machine", "old xp").code == 0
    return "xp.vhd"


def write(cli: Cli, disk: str, letter: str, length: int = MIB) -> None:
    """Let the machine write: its active file is what `list --json` says."""
    with vhdkit.open_chain(listed(cli, disk)["disks"][0]["active"], writable=True) as chain:
        chain.write(0, letter.encode() * length, sync=True)


def listed(cli: Cli, disk: str) -> Any:
    outcome = cli("snapshot", "list", disk, "--json")
    assert outcome.code == 0, outcome.err
    return outcome.json


def reads(path: str) -> str:
    with vhdkit.open_chain(path) as chain:
        return chain.read(0, 1).decode()


def all_read(cli: Cli, disk: str) -> dict[str, str]:
    record = listed(cli, disk)
    shown = {each["name"]: reads(each["layers"][0]["filename"]) for each in record["snapshots"]}
    return shown | {"now": reads(record["disks"][0]["active"])}


def done(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome


def test_the_story(cli: Cli, xp: str) -> None:
    write(cli, xp, "r")
    done(cli("snapshot", "take", "RTM", xp))
    write(cli, xp, "1", 24 * MIB)
    done(cli("snapshot", "take", "SP1", xp, "--note", "first service pack"))
    write(cli, xp, "2")
    done(cli("snapshot", "take", "SP2", xp))
    write(cli, xp, "3")
    assert "discarded" in done(cli("snapshot", "apply", "RTM", xp)).out
    write(cli, xp, "b")
    done(cli("snapshot", "take", "branch", xp))
    assert all_read(cli, xp) == {"RTM": "r", "SP1": "1", "SP2": "2", "branch": "b", "now": "b"}
    # The middle one goes; its merge is slow enough to be watched.
    done(cli("snapshot", "delete", "SP1", xp, "--no-settle"))
    assert "pending: merge of xp_" in cli("snapshot", "list", xp).out
    (job,) = done(cli("snapshot", "settle", xp, "--rate", "200K", "--json")).json["jobs"]
    seen = set()
    until = time.monotonic() + 30
    while (found := cli("job", "show", job, "--json").json)["state"] not in {"completed", "failed"}:
        rows = cli("job", "list", "--json").json
        assert len(rows) == 1, rows
        (row,) = rows
        seen.add((row["machine"], row["state"]))
        assert [each["name"] for each in listed(cli, xp)["snapshots"]] == ["RTM", "SP2", "branch"]
        assert time.monotonic() < until
    assert found["state"] == "completed"
    assert ("old xp", "running") in seen
    assert all_read(cli, xp) == {"RTM": "r", "SP2": "2", "branch": "b", "now": "b"}
    assert done(cli("snapshot", "settle", xp, "--wait")).out == "nothing is pending\n"
    assert "nothing to say" in done(cli("snapshot", "check", xp)).out


def test_the_list_is_a_tree(cli: Cli, xp: str) -> None:
    for name in ("RTM", "SP1"):
        cli("snapshot", "take", name, xp)
    cli("snapshot", "apply", "RTM", xp)
    cli("snapshot", "take", "other", xp, "--note", "another way")
    lines = cli("snapshot", "list", xp).out.splitlines()
    assert lines[0] == "old xp, 1 disk"
    shapes = [re.sub(r"  \d{4}-\d\d-\d\d \d\d:\d\d  [\d.]+ \w+", "", line) for line in lines[1:5]]
    assert shapes == ["└── RTM", "    ├── SP1", "    └── other  another way", "        └── now"]
    assert re.fullmatch(r"active: xp_[0-9A-F-]{36}\.avhd  [\d.]+ KiB", lines[5])


def test_json_has_everything(cli: Cli, xp: str, tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(b"state")
    taken = done(cli("snapshot", "take", "a", xp, "--state", tmp_path / "memory", "--note", "n", "--json")).json
    assert (taken["name"], taken["note"], taken["is-above-now"]) == ("a", "n", True)
    assert taken["active"] == [each["active"] for each in listed(cli, xp)["disks"]]
    record = listed(cli, xp)
    assert (record["machine"], record["running"], record["now"]) == ("old xp", False, taken["id"])
    (disk,) = record["disks"]
    assert disk["base"] == os.path.abspath("xp.vhd")
    (one,) = record["snapshots"]
    assert [file["name"] for file in one["state"]] == ["memory"]
    assert one["layers"][0]["file-size"] == Path("xp.vhd").stat().st_size
    assert record["owed"] == {"merges": [], "removals": [], "waiting": []}
    assert cli("snapshot", "show", "a", xp, "--json").json == one
    assert "memory in" in cli("snapshot", "show", "a", xp).out
    applied = done(cli("snapshot", "apply", "a", xp, "--json")).json
    assert Path(applied["state"][0]).read_bytes() == b"state"
    assert applied["discarded"][0]["filename"] == disk["active"]
    assert done(cli("snapshot", "revert", xp, "--json")).json["applied"] == "a"
    assert done(cli("snapshot", "rename", "a", "b", xp, "--json")).json["name"] == "b"
    assert "is called c now" in done(cli("snapshot", "rename", "b", "c", xp)).out
    exported = done(cli("snapshot", "export", "c", tmp_path / "out", xp, "--progress", "none", "--json")).json
    assert [Path(path).name for path in exported["files"]] == ["xp.vhd", "memory"]
    gone = done(cli("snapshot", "delete", "c", xp, "--json")).json
    assert gone["deleted"] == ["c"]
    assert len(gone["jobs"]) == 1
    cli("job", "wait", gone["jobs"][0])
    assert done(cli("snapshot", "settle", xp, "--wait", "--json")).json["owed"]["merges"] == []
    assert done(cli("snapshot", "check", xp, "--json")).json == {"remarks": []}


def test_deleting_tells_which_merges_have_begun_and_which_are_owed_still(cli: Cli, xp: str) -> None:
    write(cli, xp, "r")
    done(cli("snapshot", "take", "a", xp))
    write(cli, xp, "1", 8 * MIB)
    done(cli("snapshot", "take", "b", xp))
    done(cli("snapshot", "take", "c", xp))
    done(cli("snapshot", "delete", "a", xp, "--no-settle"))
    (first,) = done(cli("snapshot", "settle", xp, "--rate", "1M", "--json")).json["jobs"]
    lines = done(cli("snapshot", "delete", "b", xp)).out.splitlines()
    assert lines[:2] == ["deleted: b", f"merge: {first}, in the background"]
    done(cli("job", "pause", first))
    assert done(cli("snapshot", "settle", xp)).out.startswith(f"merge: {first} is paused; `vhdkit job resume {first}`")
    waiting = cli("snapshot", "settle", xp, "--wait")
    assert waiting.code == 75
    assert f"`vhdkit job resume {first}`" in waiting.err
    done(cli("job", "resume", first))
    assert done(cli("snapshot", "settle", xp, "--wait")).out == "nothing is pending\n"
    assert all_read(cli, xp) == {"c": "1", "now": "1"}


def test_a_merge_by_hand_ruins_no_snapshot(cli: Cli, xp: str) -> None:
    write(cli, xp, "r")
    done(cli("snapshot", "take", "a", xp))
    write(cli, xp, "1")
    done(cli("snapshot", "take", "b", xp))
    write(cli, xp, "2")
    (record,) = listed(cli, xp)["disks"]
    layers = [each["layers"][0]["filename"] for each in listed(cli, xp)["snapshots"]]
    before = all_read(cli, xp)
    for path in layers:
        Path(path).chmod(0o644)
    for words in (
        ["merge", record["active"]],
        ["merge", layers[1]],
        ["merge", record["active"], "--into", xp],
        ["merge", layers[1], "--background"],
    ):
        refused = cli(*words)
        assert refused.code == 1
        assert "layer of the machine old xp" in refused.err
        assert "snapshot delete" in refused.err
    assert all_read(cli, xp) == before
    assert done(cli("merge", layers[1], "--to", "apart.vhd")).code == 0
    done(cli("create", "stray.avhd", "--parent", record["active"]))
    done(cli("merge", "stray.avhd"))
    assert all_read(cli, xp) == before
    # Without the manifest they are nobody's layers.
    Path(listed(cli, xp)["manifest"]).unlink()
    done(cli("merge", record["active"]))


def test_a_merge_by_hand_that_would_wait_for_the_machine_is_refused_at_once(cli: Cli, xp: str) -> None:
    write(cli, xp, "r")
    done(cli("snapshot", "take", "a", xp))
    write(cli, xp, "1")
    active = listed(cli, xp)["disks"][0]["active"]
    Path(xp).chmod(0o644)
    with vhdkit.open_chain(active, writable=True):
        refused = cli("merge", active, "--background")
    assert refused.code == 1
    assert "layer of the machine old xp" in refused.err
    assert vhdkit.jobs() == ()


def test_a_merge_by_hand_into_a_machine_elsewhere_ruins_nothing(cli: Cli, xp: str, tmp_path: Path) -> None:
    write(cli, xp, "r")
    done(cli("snapshot", "take", "a", xp))
    write(cli, xp, "1")
    done(cli("snapshot", "take", "b", xp))
    done(cli("snapshot", "apply", "a", xp))
    leaf = listed(cli, xp)["snapshots"][1]["layers"][0]["filename"]
    (tmp_path / "far" / "away").mkdir(parents=True)
    stray = str(tmp_path / "far" / "away" / "stray.avhd")
    done(cli("create", stray, "--parent", leaf))
    Path(leaf).chmod(0o644)
    refused = cli("merge", stray, "--search", Path(xp).resolve().parent)
    assert refused.code == 1
    assert "layer of the machine old xp" in refused.err


def test_a_frozen_layer_whose_parent_was_renamed_is_mended(cli: Cli, xp: str) -> None:
    write(cli, xp, "r")
    done(cli("snapshot", "take", "a", xp, "--note", "kept"))
    write(cli, xp, "1")
    done(cli("snapshot", "take", "b", xp))
    before = all_read(cli, xp)
    active = listed(cli, xp)["disks"][0]["active"]
    frozen = listed(cli, xp)["snapshots"][1]["layers"][0]["filename"]
    Path("xp.vhd").rename("base.vhd")
    done(cli("create", "other.vhd", "--size", "8M"))
    refused = cli("rebase", frozen, "-b", "other.vhd", "--ignore-id-mismatch")
    assert refused.code == 1
    assert "frozen as snapshot 'b'" in refused.err
    assert "chmod" not in refused.err
    assert "lets the snapshots know" in done(cli("rebase", frozen, "-b", "base.vhd", "--dry-run")).err
    told = done(cli("rebase", frozen, "-b", "base.vhd")).err
    assert f"`vhdkit snapshot init {active}`" in told
    assert not Path(frozen).stat().st_mode & 0o222
    done(cli("snapshot", "init", active))
    assert all_read(cli, active) == before
    assert listed(cli, active)["snapshots"][0]["note"] == "kept"
    assert done(cli("snapshot", "check", active)).out.startswith("nothing to say")


def test_applying_may_keep_the_present_first(cli: Cli, xp: str) -> None:
    write(cli, xp, "a")
    cli("snapshot", "take", "a", xp)
    write(cli, xp, "b")
    done(cli("snapshot", "apply", "a", xp, "--take", "before"))
    assert all_read(cli, xp) == {"a": "a", "before": "b", "now": "a"}
    refused = cli("snapshot", "apply", "nothing", xp, "--take", "x")
    assert refused.code == 1
    assert all_read(cli, xp) == {"a": "a", "before": "b", "now": "a"}


def test_a_machine_that_runs_exits_75_and_what_is_owed_waits(cli: Cli, xp: str) -> None:
    write(cli, xp, "a")
    cli("snapshot", "take", "a", xp)
    with vhdkit.open_chain(listed(cli, xp)["disks"][0]["active"], writable=True):
        assert listed(cli, xp)["running"] is True
        for words in (["take", "b", xp], ["apply", "a", xp], ["revert", xp], ["run", xp, "--", "true"]):
            assert cli("snapshot", *words).refused(75)
        deleted = cli("snapshot", "delete", "a", xp)
        assert deleted.code == 0
        assert "postponed" in deleted.err
        assert "pending: merge" in deleted.out
        assert cli("snapshot", "settle", xp).code == 75
        assert cli("snapshot", "settle", xp, "--wait").code == 75
    done(cli("snapshot", "settle", xp, "--wait"))
    assert all_read(cli, xp) == {"now": "a"}


def test_check_exits_2_for_what_was_changed_and_3_for_what_is_owed(cli: Cli, xp: str) -> None:
    cli("snapshot", "take", "a", xp)
    cli("snapshot", "take", "b", xp)
    cli("snapshot", "delete", "a", xp, "--no-settle")
    owed = cli("snapshot", "check", xp)
    assert owed.code == 3
    assert re.search(r"^ {4}vhdkit snapshot settle ", owed.out, re.MULTILINE)
    Path("xp.vhd").chmod(0o644)
    os.utime("xp.vhd", (1, 1))
    changed = cli("snapshot", "check", xp, "--json")
    assert changed.code == 2
    assert "changed" in {remark["kind"] for remark in changed.json["remarks"]}
    assert "was changed since it was frozen" in cli("snapshot", "settle", xp, "--wait").refused()
    assert cli("snapshot", "check", xp, "--accept").code == 3
    done(cli("snapshot", "settle", xp, "--wait"))
    assert cli("snapshot", "check", xp).code == 0


def test_wrong_usage_and_what_is_not_there(cli: Cli, vms: Path, xp: str) -> None:
    assert cli("snapshot", "take", "a").code == 64
    assert cli("snapshot", "nonsense").code == 64
    assert cli("snapshot", "init").code == 64
    before = snapshot(vms)
    assert "snapshot init" in cli("snapshot", "list", vms / LEAF).refused()
    assert "there is no snapshot" in cli("snapshot", "show", "x", xp).refused()
    assert "No such file" in cli("snapshot", "list", "nowhere.vhd").refused()
    assert snapshot(vms) == before


def test_a_whole_tree_of_fixtures_is_adopted_by_any_of_its_files(cli: Cli, vms: Path) -> None:
    record = done(cli("snapshot", "init", vms / LEAF, "--json")).json
    assert record["disks"][0]["active"] == str(vms / LEAF)
    assert record["snapshots"][0]["name"] == "web01"
    for path in vms.glob("web01*vhd"):
        assert listed(cli, str(path))["machine"] == "web01"


def test_running_hands_the_active_disks_on_and_the_exit_code_back(cli: Cli, xp: str) -> None:
    cli("snapshot", "take", "a", xp)
    active = listed(cli, xp)["disks"][0]["active"]
    code = "import sys; print(sys.argv[1:]); sys.exit(7)"
    words = ["snapshot", "run", xp, "--", sys.executable, "-c", code, "{}", "disk={0}", "--yield"]
    outcome = subprocess.run(
        [sys.executable, "-m", "vhdkit", *words], capture_output=True, text=True, env=environment(), check=False
    )
    assert (outcome.returncode, outcome.stdout.strip()) == (7, str([active, f"disk={active}", "--yield"]))
