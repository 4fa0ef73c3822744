"""Files in use: exit 75, who has them, and nothing left behind; looking at headers always works."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.cli.running import BASE, CHAIN, LEAF, Outcome, snapshot, spawn
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Cli = Callable[..., Outcome]

IN_USE = 75
READERS = [["map", LEAF], ["convert", LEAF, "new.vhd"], ["compare", LEAF, LEAF], ["compare", BASE, LEAF]]


@contextmanager
def in_use(path: Path, *, exclusive: bool = True) -> Iterator[None]:
    with LocalFolder().open(str(path)) as storage:
        storage.lock(exclusive=exclusive)
        yield


def said(words: list[str]) -> str:
    return " ".join(words[:1])


@pytest.mark.parametrize("name", CHAIN)
@pytest.mark.parametrize("words", READERS, ids=said)
def test_what_is_written_is_only_read_by_force(cli: Cli, vms: Path, words: list[str], name: str) -> None:
    before = snapshot(vms)
    with in_use(vms / name):
        message = cli(*words).refused(IN_USE)
        assert name in message
        assert "in use" in message
        assert "--force-share" in message
        if sys.platform == "linux":
            assert "by this process itself" in message
        assert snapshot(vms) == before
        forced = [cli(*words, "-U")]
        (vms / "new.vhd").unlink(missing_ok=True)
        forced.append(cli(*words, "--force-share"))
    (vms / "new.vhd").unlink(missing_ok=True)
    free = cli(*words)
    assert [(done.code, done.out) for done in forced] == [(free.code, free.out)] * 2


@pytest.mark.parametrize("words", READERS, ids=said)
def test_readers_do_not_mind_each_other(cli: Cli, vms: Path, words: list[str]) -> None:
    with in_use(vms / LEAF, exclusive=False), in_use(vms / BASE, exclusive=False):
        assert cli(*words).code in {0, 1}


@pytest.mark.parametrize(
    "words",
    [["info", LEAF], ["info", "--backing-chain", LEAF], ["info", "--json", LEAF], ["chain", LEAF], ["scan", "."]],
    ids=" ".join,
)
def test_one_can_always_look(cli: Cli, vms: Path, words: list[str]) -> None:
    free = cli(*words)
    with in_use(vms / LEAF), in_use(vms / BASE):
        assert cli(*words) == free
    assert free.code == 0


@pytest.mark.parametrize("name", CHAIN)
@pytest.mark.parametrize("words", [["merge", LEAF], ["merge", "--dry-run", LEAF], ["merge", LEAF, "--to", "new.vhd"]])
def test_a_merge_of_what_is_in_use_is_refused(cli: Cli, vms: Path, words: list[str], name: str) -> None:
    before = snapshot(vms)
    with in_use(vms / name):
        message = cli(*words).refused(IN_USE)
    assert name in message
    assert "--force-share" not in message
    assert snapshot(vms) == before


def test_no_child_is_made_of_what_is_in_use(cli: Cli, vms: Path) -> None:
    before = snapshot(vms)
    with in_use(vms / LEAF):
        assert LEAF in cli("create", "new.avhd", "--parent", LEAF).refused(IN_USE)
    assert snapshot(vms) == before


def test_the_process_ends_with_75_and_help_says_so(vms: Path) -> None:
    with in_use(vms / LEAF):
        assert spawn("map", LEAF, cwd=vms).code == IN_USE
    assert "75" in spawn("--help", cwd=vms).out
    for verb in ("map", "convert", "compare"):
        assert "-U, --force-share" in spawn(verb, "--help", cwd=vms).out
