"""A failure with --json: one object on stdout, whatever the verb, beside the message on stderr."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click
import pytest

from tests.cli.running import FIXTURES
from tests.unit.test_registry import numbered
from vhdkit.cli.main import program
from vhdkit.job.job import JobState
from vhdkit.job.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cli.running import Outcome

    Cli = Callable[..., Outcome]

KEYS = {"class", "message", "filename", "notes", "commands", "error-code", "exit-code"}
# What a verb needs beside its arguments to be right but for the file that is not there.
MORE = {"rebase": ("-b", "nosuch"), "create": ("--parent", "nosuch"), "job rm": (), "job cancel": ()}


def verbs(group: click.Group = program, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield every verb that takes --json, with an argument that is wrong for each that it needs."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        words = (*before, name)
        if isinstance(command, click.Group):
            yield from verbs(command, words)
        elif any("--json" in parameter.opts for parameter in command.params):
            needed = [each for each in command.params if isinstance(each, click.Argument)]
            yield (*words, *("nosuch" for _ in needed), *MORE.get(" ".join(words), ()))


# These need no argument that could be wrong.
RIGHT = {"job list", "job history", "job on-end"}
FAILING = [words for words in verbs() if " ".join(words[:2]) not in RIGHT]


def test_nearly_every_verb_takes_json() -> None:
    assert len(FAILING) > 25


@pytest.mark.parametrize("words", FAILING, ids=" ".join)
def test_a_failure_of_any_verb_is_an_object_too(
    words: tuple[str, ...], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(str(tmp_path))
    monkeypatch.setenv("VHDKIT_STATE", f"{tmp_path}/state")
    done = cli(*words, "--json")
    assert done.code
    error = done.json["error"]
    assert set(error) >= KEYS
    assert error["exit-code"] == done.code
    assert error["message"] in done.err
    # Without it stdout stays empty.
    assert cli(*words).out == ""


def test_wrong_usage_a_wrong_file_and_a_missing_parent_say_what_they_are(cli: Cli) -> None:
    usage = cli("info", "--nosuch", "--json").json["error"]
    assert (usage["class"], usage["exit-code"]) == ("NoSuchOption", 64)
    orphan = FIXTURES / "orphan.vhd"
    missing = cli("chain", orphan, "--json").json["error"]
    assert (missing["class"], missing["error-code"]) == ("ParentNotFoundError", "0xC03A000D")
    assert {"filename", "origin", "reason"} == set(missing["candidates"][0])
    assert missing["filename"] == str(orphan)


def test_what_one_of_several_jobs_refuses_is_beside_the_others(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VHDKIT_STATE", str(tmp_path / "state"))
    Registry().put(numbered(1, state=JobState.COMPLETED, changed=4e9))
    Registry().put(numbered(2, state=JobState.RUNNING, pid=os.getpid(), host="elsewhere", changed=4e9))
    done = cli("job", "rm", numbered(2).id, numbered(1).id, "--json")
    removed, refused = done.json
    assert (done.code, removed["id"], refused["id"]) == (1, numbered(1).id, numbered(2).id)
    assert "cancel it first" in refused["error"]["message"]
