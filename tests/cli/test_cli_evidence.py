"""Reading is read-only: no verb that answers changes a byte, a name, a mode or a time, whatever was cut off before."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.cutting import at_first, cut_off
from tests.model import Kind, Snapshot, write_files
from tests.plainbuild import build, locator
from tests.unit.test_header_update import BASE, LEAF, OTHER, mixes, patches, step_file
from tests.unit.test_merge_laws import chain_over, put
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.vhd import header_update

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.running import Outcome

READING = {
    "info": ["info", "leaf.avhd"],
    "info --chain": ["chain", "leaf.avhd"],
    "chain of a child": ["chain", "top.avhd"],
    "check": ["check", "leaf.avhd"],
    "check --chain --deep": ["check", "--chain", "--deep", "top.avhd"],
    "scan": ["scan", "."],
    "map": ["map", "top.avhd"],
    "compare": ["compare", "leaf.avhd", "top.avhd"],
    "convert": ["convert", "top.avhd", "../new.vhd"],
    "create a child": ["create", "--parent", "leaf.avhd", "../child.avhd"],
    "merge --dry-run": ["merge", "--dry-run", "top.avhd"],
    "merge --dry-run of the leaf": ["merge", "--dry-run", "leaf.avhd"],
    "merge --to": ["merge", "--to", "../new.vhd", "top.avhd"],
    "rebase --dry-run": ["rebase", "--dry-run", "leaf.avhd", "-b", "base.vhd", "--ignore-id-mismatch"],
    "job list": ["job", "list", "--search", "."],
}


def looked_at(folder: Path) -> dict[str, tuple[bytes, int, int, int]]:
    """Return all that can be seen of the files of a folder, and of itself."""
    found = {}
    for path in sorted([folder, *folder.iterdir()]):
        state = os.stat(path)
        content = path.read_bytes() if path.is_file() else b""
        found[path.name] = (content, state.st_mode, state.st_mtime_ns, state.st_ino)
    return found


def aged(folder: Path) -> None:
    for count, path in enumerate([*folder.iterdir(), folder]):
        os.utime(path, ns=(10**18 + count, 10**18 + count))


@pytest.fixture
def pending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A chain of three whose middle was being relinked when that was cut off, its header half written."""
    folder = tmp_path / "vms"
    folder.mkdir()
    top = replace(
        LEAF, unique_id=b"top_" * 4, parent_id=LEAF.unique_id, locators=(locator(0, b"W2ru", ".\\leaf.avhd"),)
    )
    half = list(mixes())[1]
    files = {"base.vhd": build(BASE), "other.vhd": build(OTHER), "leaf.avhd": half, "top.avhd": build(top)}
    for name, raw in (files | {"leaf.avhd" + header_update.SUFFIX: step_file(patches())}).items():
        (folder / name).write_bytes(raw)
    aged(folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("arguments", READING.values(), ids=READING)
def test_a_verb_that_reads_leaves_a_step_that_was_cut_off_as_it_is(
    arguments: list[str], pending: Path, cli: Callable[..., Outcome]
) -> None:
    before = looked_at(pending)
    outcome = cli(*arguments)
    assert outcome.code in {0, 1, 3}, outcome
    assert looked_at(pending) == before
    assert len(before) == 6


@pytest.mark.parametrize("arguments", [["merge", "leaf.avhd"], ["rebase", "leaf.avhd", "-b", "other.vhd"]])
def test_a_verb_that_writes_finishes_it(arguments: list[str], pending: Path, cli: Callable[..., Outcome]) -> None:
    outcome = cli(*arguments)
    assert outcome.code == 0, outcome
    assert not (pending / ("leaf.avhd" + header_update.SUFFIX)).exists()


UNFINISHED = {
    "info": ["info", "layer-0.vhd"],
    "chain": ["chain", "layer-1.avhd"],
    "check --chain --deep": ["check", "--chain", "--deep", "layer-1.avhd"],
    "scan": ["scan", "."],
    "map": ["map", "layer-1.avhd"],
    "convert": ["convert", "layer-1.avhd", "../new.vhd"],
    "merge --dry-run": ["merge", "--dry-run", "layer-1.avhd"],
    "merge --to": ["merge", "--to", "../new.vhd", "layer-1.avhd"],
    "job list": ["job", "list", "--search", "."],
    "rollback of none": ["rollback", "undo.vhd"],
    "undo drop of none": ["undo", "drop", "undo.vhd"],
}


@pytest.mark.parametrize("arguments", UNFINISHED.values(), ids=UNFINISHED)
def test_a_verb_that_reads_leaves_a_merge_that_was_cut_off_as_it_is(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Outcome]
) -> None:
    """It was cut off while the longer table got its header, in the destination."""
    folder = tmp_path / "vms"
    folder.mkdir()
    chain = chain_over(Kind.DYNAMIC, put(0, 40, 1), Snapshot(sector_count=20_000), put(100, 9, 2))
    paths = [str(path) for path in write_files(chain, folder)]
    cut_off(LocalFolder(), paths[0], paths[1], at_first("remove", header_update.SUFFIX))
    aged(folder)
    monkeypatch.chdir(folder)
    before = looked_at(folder)
    cli(*arguments)
    assert looked_at(folder) == before
    assert len(before) == 5
