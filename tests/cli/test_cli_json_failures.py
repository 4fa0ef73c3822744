"""A failure with --json: one object on stdout, whatever the verb, beside the message on stderr."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click
import pytest

import vhdkit
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
FAILING = [words for words in verbs() if words[0] != "fleet" and " ".join(words[:2]) not in RIGHT]
FLEET = [("fleet", "check"), ("fleet", "hash"), ("fleet", "merge"), ("fleet", "convert", "--to", ".")]


def test_nearly_every_verb_takes_json() -> None:
    assert len(FAILING) > 25


@pytest.mark.parametrize("words", FAILING, ids=" ".join)
def test_a_failure_of_any_verb_is_an_object_too(
    words: tuple[str, ...], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(str(tmp_path))
    done = cli(*words, "--json")
    assert done.code
    error = done.json["error"]
    assert set(error) >= KEYS
    assert error["exit-code"] == done.code
    assert error["message"] in done.err
    # Without it stdout stays empty.
    assert cli(*words).out == ""


@pytest.mark.parametrize("words", FLEET, ids=" ".join)
def test_a_fleet_tells_what_failed_in_its_report(
    words: tuple[str, ...], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(str(tmp_path))
    done = cli(*words, "nosuch", "--json")
    assert done.code == 1
    (failed,) = done.json["chains"]
    assert (failed["filename"], failed["outcome"]) == (str(tmp_path / "nosuch"), "failed")
    nosuch = str(tmp_path / "nosuch")
    assert (failed["error-class"], failed["error"]) == ("FileNotFoundError", f"{nosuch}: No such file or directory")


def test_wrong_usage_a_wrong_file_and_a_missing_parent_say_what_they_are(cli: Cli) -> None:
    usage = cli("info", "--nosuch", "--json").json["error"]
    assert (usage["class"], usage["exit-code"]) == ("NoSuchOption", 64)
    orphan = FIXTURES / "orphan.vhd"
    missing = cli("chain", orphan, "--json").json["error"]
    assert (missing["class"], missing["error-code"]) == ("ParentNotFoundError", "0xC03A000D")
    assert {"filename", "origin", "reason"} == set(missing["candidates"][0])
    assert missing["filename"] == str(orphan)


def test_what_one_of_several_jobs_refuses_is_beside_the_others(cli: Cli) -> None:
    Registry().put(numbered(1, state=JobState.COMPLETED, changed=4e9))
    Registry().put(numbered(2, state=JobState.RUNNING, pid=os.getpid(), host="elsewhere", changed=4e9))
    done = cli("job", "rm", numbered(2).id, numbered(1).id, "--json")
    removed, refused = done.json
    assert (done.code, removed["id"], refused["id"]) == (1, numbered(1).id, numbered(2).id)
    assert "cancel it first" in refused["error"]["message"]


def test_a_file_that_is_not_hashed_is_in_the_list_with_what_went_wrong(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "right.raw").write_bytes(bytes(512))
    done = cli("hash", "nosuch.vhd", "right.raw", "--json")
    wrong, right = done.json
    assert (done.code, wrong["filename"], right["filename"]) == (1, f"{tmp_path}/nosuch.vhd", f"{tmp_path}/right.raw")
    assert (wrong["error"]["class"], wrong["error"]["exit-code"]) == ("FileNotFoundError", 1)
    assert right["digest"]


def test_the_job_that_is_at_a_file_is_named_in_json_as_it_is_in_text(cli: Cli, tmp_path: Path) -> None:
    disk = str(tmp_path / "a.vhd")
    vhdkit.create_image(disk, size=1 << 20)
    mine = {"pid": os.getpid(), "host": "elsewhere", "destination": disk, "files": (disk,), "changed": 4e9}
    Registry().put(numbered(1, state=JobState.RUNNING, **mine))
    with vhdkit.open_chain(disk, writable=True):
        done = cli("check", "--repair-footers", disk, "--json")
    assert done.code == 75
    error = done.json["error"]
    assert "is at it" in done.err
    assert any(note in done.err for note in error["notes"])
    assert error["commands"] == [f"vhdkit job watch {numbered(1).id[:8]}"]
