"""Hints as commands: quoted for the shell, with the options that were given and that the command takes."""

from __future__ import annotations

import pickle
import shlex
from typing import TYPE_CHECKING

import click
import pytest

import vhdkit
from tests.typed import as_typed
from vhdkit.cli.main import program
from vhdkit.command_hints import _REPEATED, _WORDS, command_words
from vhdkit.findings import Advice, hints_as

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vhdkit.findings import Hint

MERGE = Advice.MERGE.hint("{} goes on", path="a b.avhd", into="base's.vhd")


def typed(hint: Hint, *given: str) -> Sequence[str]:
    """Return the words of the command that a hint advises to who has typed another."""
    with hints_as(command_words(given)):
        return shlex.split(str(hint).split("`")[1])


def test_a_shell_reads_the_names_that_are_meant() -> None:
    assert typed(MERGE) == ["vhdkit", "merge", "a b.avhd", "--into", "base's.vhd"]


def test_python_reads_a_call() -> None:
    assert str(MERGE) == "merge(plan_merge('a b.avhd', into=\"base's.vhd\")) goes on"


@pytest.mark.parametrize(
    ("given", "repeated"),
    [
        (["merge", "a b.avhd", "--search", "x y", "--search=z"], ["--search", "x y", "--search", "z"]),
        (["merge", "a b.avhd", "--parent-map", "C:\\vms=/mnt"], ["--parent-map", "C:\\vms=/mnt"]),
        (["merge", "a b.avhd", "--rate", "8M", "--verify"], ["--rate", "8M"]),
        (["merge", "a b.avhd", "--parent", "p.vhd"], ["--parent", "p.vhd"]),
        (["merge", "other.avhd", "--parent", "p.vhd"], []),
        (["merge", "--", "--search", "x"], []),
        (["merge", "a b.avhd", "--search"], []),
    ],
)
def test_options_that_say_where_and_how_fast_are_repeated(given: list[str], repeated: list[str]) -> None:
    assert typed(MERGE, *given)[5:] == repeated


def test_a_folder_is_not_named_both_from_here_and_from_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hint = Advice.MERGE.hint(path="a.avhd", search=(str(tmp_path / "x"),))
    given = ["merge", "a.avhd", "--search", "x", "--search", "./y", "--search", str(tmp_path / "y")]
    assert typed(hint, *given)[3:] == ["--search", str(tmp_path / "x"), "--search", "./y"]


def test_an_option_that_a_hint_has_is_not_given_twice() -> None:
    hint = Advice.MERGE.hint(path="a.avhd", search=("x",))
    assert typed(hint, "merge", "a.avhd", "--search", "x", "--search", "y")[3:] == ["--search", "x", "--search", "y"]


def test_a_command_that_takes_no_such_option_is_given_none() -> None:
    assert typed(Advice.SETTLE.hint(path="x.vhd"), "merge", "--search", "y", "--rate", "8M")[-1] == "x.vhd"


@pytest.mark.parametrize("advice", list(_REPEATED))
def test_what_is_repeated_is_taken(advice: Advice) -> None:
    command: click.Command = program
    for word in _WORDS[advice].strip("`").split()[1:]:
        if isinstance(command, click.Group):
            found = command.get_command(click.Context(command), word)
            assert found is not None
            command = found
    assert {*_REPEATED[advice]} <= {option for each in command.params for option in each.opts}


def test_an_error_keeps_its_hint_in_another_process() -> None:
    error = vhdkit.MergeError("no", path="x.vhd", hint=MERGE)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert again.hint == MERGE
    assert (
        as_typed(again) == as_typed(error) == "x.vhd: no; `vhdkit merge 'a b.avhd' --into 'base'\"'\"'s.vhd'` goes on"
    )


def test_a_name_with_braces_is_no_place_for_words() -> None:
    hint = Advice.REPAIR_FOOTERS.hint("{} mends that", path="{}.vhd")
    assert as_typed(hint) == "`vhdkit check --repair-footers '{}.vhd'` mends that"
    assert str(hint) == "repair_footers('{}.vhd') mends that"


def test_a_second_hint_follows_the_first() -> None:
    error = vhdkit.MergeError("no", hint=Advice.NEW_FILE.hint("use {}"))
    error.add_hint(Advice.KEEP_SOURCES.hint("or {}"))
    assert as_typed(error) == "no; use --to NEWFILE; or --keep-sources"
    assert [each.advice for each in error.hint or ()] == [Advice.NEW_FILE, Advice.KEEP_SOURCES]
