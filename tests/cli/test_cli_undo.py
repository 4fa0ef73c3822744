"""Merges that can be taken back, verified, slowed down, stopped and gone on with, from the shell."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.cli.running import BASE, CHAIN, LEAF, MANIFEST, MIDDLE, environment, program, snapshot, spawn, view_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.running import Outcome

    Cli = Callable[..., Outcome]

VIEW, MIDDLE_VIEW = MANIFEST[LEAF]["view_sha256"], MANIFEST[MIDDLE]["view_sha256"]
JOURNAL = f"{BASE}.vhdkit-journal"
UNDO = "undo.avhd"


def merge_with_undo(cli: Cli, *words: str) -> Outcome:
    done = cli("merge", LEAF, "--into", BASE, "--undo", UNDO, "--progress", "none", *words)
    assert (done.code, done.err) == (0, "")
    return done


def test_a_merge_with_undo_keeps_the_sources_and_says_what_can_be_done(cli: Cli, vms: Path) -> None:
    before = view_of(vms / BASE)
    text = merge_with_undo(cli).out
    assert sorted(os.listdir()) == sorted([*CHAIN, UNDO, JOURNAL])
    assert view_of(vms / BASE) == VIEW
    assert view_of(vms / UNDO, vms / BASE) == before
    assert re.search(rf"^undo image +.*{UNDO}$", text, re.MULTILINE)
    assert "vhdkit undo drop" in text
    assert "vhdkit rollback" in text
    assert "removed" not in text


def test_a_merge_with_undo_as_json(cli: Cli, vms: Path) -> None:
    words = ("merge", LEAF, "--into", BASE, "--undo", UNDO, "--json")
    planned = cli(*words, "--dry-run").json
    assert not (vms / UNDO).exists()
    result = merge_with_undo(cli, "--json").json
    assert (result["undo"], result["removed"]) == (str(vms / UNDO), [])
    assert planned["undo"] == str(vms / UNDO)
    assert planned["undo-size"] == (vms / UNDO).stat().st_size


@pytest.mark.parametrize("as_json", [False, True])
def test_rollback_restores_every_byte_that_is_read(cli: Cli, vms: Path, as_json: bool) -> None:
    before = view_of(vms / BASE)
    merge_with_undo(cli)
    done = cli("rollback", UNDO, "--progress", "none", *(["--json"] if as_json else []))
    assert (done.code, done.err) == (0, "")
    assert sorted(os.listdir()) == sorted(CHAIN)
    assert view_of(vms / BASE) == before
    assert view_of(vms / MIDDLE, vms / BASE) == MIDDLE_VIEW
    assert view_of(*(vms / name for name in CHAIN)) == VIEW
    if as_json:
        assert done.json == {"changed": [str(vms / BASE)], "removed": [str(vms / UNDO)]}
    else:
        assert "every layer reads as before" in done.out


def test_rollback_tells_what_it_removed_whatever_way_the_file_was_named(cli: Cli, vms: Path) -> None:
    merge_with_undo(cli)
    (vms / "link").symlink_to(vms)
    done = cli("rollback", f"link/{UNDO}", "--progress", "none", "--json")
    assert done.json == {"changed": [str(vms / BASE)], "removed": [str(vms / UNDO)]}


@pytest.mark.parametrize("as_json", [False, True])
def test_undo_drop_makes_it_final(cli: Cli, vms: Path, as_json: bool) -> None:
    merge_with_undo(cli)
    done = cli("undo", "drop", UNDO, *(["--json"] if as_json else []))
    assert (done.code, done.err) == (0, "")
    assert os.listdir() == [BASE]
    assert view_of(vms / BASE) == VIEW
    if as_json:
        assert done.json == {"removed": [str(vms / LEAF), str(vms / MIDDLE)], "destination": str(vms / BASE)}
    else:
        assert len(re.findall("^removed ", done.out, re.MULTILINE)) == 2


def test_siblings_are_relinked_to_the_undo_image_and_keep_it(cli: Cli, vms: Path) -> None:
    vhdkit.create_image("sibling.avhd", parent=BASE)
    before = view_of(vms / "sibling.avhd", vms / BASE)
    assert "--relink-siblings" in cli("merge", LEAF, "--into", BASE, "--undo", UNDO).refused()
    merge_with_undo(cli, "--relink-siblings")
    assert view_of(vms / "sibling.avhd", vms / UNDO, vms / BASE) == before
    assert cli("chain", "sibling.avhd", "--json").code == 0
    assert "--keep-file" in cli("undo", "drop", UNDO).refused()
    assert cli("undo", "drop", UNDO, "--keep-file").code == 0
    assert sorted(os.listdir()) == sorted([BASE, UNDO, "sibling.avhd"])
    assert view_of(vms / "sibling.avhd", vms / UNDO, vms / BASE) == before


def test_a_verified_merge_says_so_on_its_way(cli: Cli, vms: Path) -> None:
    done = cli("merge", LEAF, "--into", BASE, "--verify", "--progress", "json")
    assert done.code == 0
    assert "verifying" in {json.loads(line)["phase"] for line in done.err.splitlines()}
    assert os.listdir() == [BASE]
    assert view_of(vms / BASE) == VIEW


@pytest.mark.parametrize("verb", [["rollback", LEAF], ["undo", "drop", LEAF]], ids=" ".join)
def test_what_is_no_undo_image_is_refused(cli: Cli, vms: Path, verb: list[str]) -> None:
    before = snapshot(vms)
    assert "no undo image" in cli(*verb).refused()
    assert snapshot(vms) == before


def test_with_nothing_to_resume_it_says_so(cli: Cli, vms: Path) -> None:
    before = snapshot(vms)
    assert "without --resume" in cli("merge", LEAF, "--resume").refused()
    assert snapshot(vms) == before


USAGE = [
    ["merge", LEAF, "--relink-siblings"],
    ["merge", LEAF, "--to", "new", "--undo", UNDO],
    ["merge", LEAF, "--to", "new", "--resume"],
    ["merge", LEAF, "--rate", "0"],
    ["merge", LEAF, "--rate", "fast"],
    ["rollback"],
    ["undo", "drop"],
]


@pytest.mark.parametrize("words", USAGE, ids=" ".join)
def test_wrong_usage_is_64(cli: Cli, vms: Path, words: list[str]) -> None:
    before = snapshot(vms)
    assert cli(*words).code == 64
    assert snapshot(vms) == before


@pytest.mark.parametrize("words", [["merge", LEAF], ["rollback", UNDO], ["undo", "drop", UNDO]], ids=" ".join)
def test_what_somebody_reads_is_in_use(cli: Cli, vms: Path, words: list[str]) -> None:
    if words[0] != "merge":
        merge_with_undo(cli)
    before = snapshot(vms)
    with vhdkit.open_chain(LEAF), vhdkit.open_chain(BASE):
        assert "in use" in spawn(*words, cwd=vms).refused(75)
    assert snapshot(vms) == before


# Signals


def under_way(vms: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start a merge that takes minutes by its rate, less after an undo image, and wait until it copies."""
    rate = "4K" if "--undo" in words else "1K"
    command = program("merge", LEAF, "--into", BASE, "--rate", rate, "--progress", "json", *words)
    process = subprocess.Popen(command, cwd=vms, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    for line in process.stderr:
        if b'"copying"' in line:
            return process
    raise AssertionError("it never copied")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("undo", [False, True])
def test_a_signal_stops_it_with_130_and_resume_goes_on(cli: Cli, vms: Path, number: signal.Signals, undo: bool) -> None:
    base = view_of(vms / BASE)
    process = under_way(vms, *(["--undo", UNDO] if undo else []))
    process.send_signal(number)
    # By its rate it would take minutes.
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in err
    assert b"reads as before" in err
    assert (b"vhdkit rollback" in err) is undo
    assert view_of(*(vms / name for name in CHAIN)) == VIEW
    assert "cancelled" in cli("chain", LEAF).err
    if undo:
        assert cli("rollback", UNDO, "--progress", "none").code == 0
        assert sorted(os.listdir()) == sorted(CHAIN)
        assert view_of(vms / BASE) == base
        return
    planned = cli("merge", LEAF, "--resume", "--dry-run")
    assert "earlier run" in planned.out
    done = cli("merge", LEAF, "--resume", "--progress", "none")
    assert done.code == 0
    assert os.listdir() == [BASE]
    assert view_of(vms / BASE) == VIEW


def test_signals_one_upon_the_other_are_as_safe(cli: Cli, vms: Path) -> None:
    process = under_way(vms)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    process.communicate(timeout=30)
    assert process.returncode in {130, -signal.SIGINT}
    assert view_of(*(vms / name for name in CHAIN)) == VIEW
    assert cli("merge", LEAF, "--into", BASE, "--progress", "none").code == 0
    assert os.listdir() == [BASE]
    assert view_of(vms / BASE) == VIEW


def test_a_killed_merge_holds_nothing_and_is_gone_on_with(cli: Cli, vms: Path) -> None:
    process = under_way(vms)
    process.kill()
    process.communicate(timeout=30)
    assert view_of(*(vms / name for name in CHAIN)) == VIEW
    assert cli("merge", LEAF, "--resume", "--progress", "none").code == 0
    assert view_of(vms / BASE) == VIEW


@pytest.mark.parametrize("verb", [("rollback",), ("undo", "drop")])
def test_an_undo_image_whose_parent_is_not_found_names_the_options_that_there_are(
    cli: Cli, vms: Path, verb: tuple[str, ...]
) -> None:
    merge_with_undo(cli)
    (vms.parent / "elsewhere").mkdir()
    os.rename(UNDO, vms.parent / "elsewhere" / UNDO)
    told = cli(*verb, str(vms.parent / "elsewhere" / UNDO)).refused()
    assert "--search FOLDER" in told
    assert "--parent FILE" not in told
    assert cli(*verb, str(vms.parent / "elsewhere" / UNDO), "--search", str(vms)).code == 0
