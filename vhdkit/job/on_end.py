"""The commands that are started when jobs end, each under a name of the user's.

A job has the name alone; one without a name gets the command called `every`, if there is one. The words of a command
lie in the user's settings, which only the user may write: no record of a job, and none beside an image, has them.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from vhdkit.arguments import checked
from vhdkit.errors import JobError
from vhdkit.findings import Advice, printable
from vhdkit.job import events
from vhdkit.job.job_record import record_of
from vhdkit.storage import paths
from vhdkit.storage.command_start import start_command
from vhdkit.storage.config_folder import check_own, config_directory
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.new_file import replace_file
from vhdkit.storage.protocols import read_bytes
from vhdkit.storage.state_folder import make_private

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.job.job import Job

_FILE = "on-end.json"
_EVERY = "every"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST_BYTES = 1 << 20


@checked
def end_commands() -> dict[str, tuple[str, ...]]:
    """Return the commands that may be started when a job ends, by their names.

    Raises:
        JobError: the file of them cannot be read as such.
        OSError: another user may write to it.

    """
    folder, path = LocalFolder(), _path()
    if not folder.exists(path):
        return {}
    check_own(path)
    with folder.open(path) as storage:
        raw = read_bytes(storage, 0, min(storage.size(), _MOST_BYTES))
    try:
        found = json.loads(raw)
        if not isinstance(found, dict) or not all(_is_command(words) for words in found.values()):
            raise JobError("it holds no list of words, as programs are given them, for each name", path=path)
    except (ValueError, RecursionError) as error:
        raise JobError(f"it cannot be read: {printable(str(error))}", path=path) from error
    return {str(name): tuple(words) for name, words in found.items()}


@checked
def set_end_command(name: str, words: Sequence[str]) -> None:
    """Keep a command under a name, or with no words forget it.

    Raises:
        JobError: the name is none, a word is none, or there is no such command to be forgotten.
        OSError: the file of commands cannot be written, or another user may.

    """
    check_end_name(name)
    known = end_commands()
    if not all(map(_is_word, words)):
        raise JobError("no program can be given words with a NUL, or with letters that the locale lacks")
    if words:
        known[name] = tuple(words)
    elif known.pop(name, None) is None:
        raise _unknown(name)
    folder, path = LocalFolder(), _path()
    make_private(paths.dirname(path))
    check_own(path)
    replace_file(folder, path, (json.dumps(known, indent=2) + "\n").encode(), private=True)
    folder.sync(paths.dirname(path))


@checked
def check_end_command(name: str) -> None:
    """Refuse a name that no command has, before a job is begun with it.

    Raises:
        JobError: it is none.

    """
    check_end_name(name)
    if name not in end_commands():
        raise _unknown(name)


def check_end_name(name: str) -> None:
    """Refuse what is no name for a command.

    Raises:
        JobError: it is none.

    """
    if not _NAME.fullmatch(name):
        raise JobError(f"{name!r} is no name for a command: letters, digits, - _ and . are, up to 64")


def start_end_command(job: Job) -> None:
    """Start what a job that has ended asks for, with its record as JSON on stdin; what fails of it is logged."""
    name = job.request.on_end or _EVERY
    try:
        commands = end_commands()
        if name in commands:
            start_command(commands[name], (json.dumps(record_of(job)) + "\n").encode())
        elif job.request.on_end is not None:
            raise _unknown(name)
    except (JobError, OSError) as error:
        events.logger.warning("the command %s of the job %s was not started: %s", name, job.id, printable(str(error)))


def _is_command(words: object) -> bool:
    return isinstance(words, list) and bool(words) and all(isinstance(word, str) and _is_word(word) for word in words)


def _is_word(word: str) -> bool:
    """Whether a program can be given it: no NUL, and nothing that the locale's encoding lacks."""
    return "\0" not in word and paths.can_be_named(word)


def _unknown(name: str) -> JobError:
    hint = Advice.SET_END_COMMAND.hint("{} keeps one", name=name)
    return JobError(f"no command is kept under the name {name!r}", hint=hint)


def _path() -> str:
    return paths.join(config_directory(), _FILE)
