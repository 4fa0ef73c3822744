"""Hints as a person at a shell reads them: the options to add, and the commands to type, quoted."""

from __future__ import annotations

import functools
import shlex
from itertools import pairwise
from typing import TYPE_CHECKING

from vhdkit.findings import Advice
from vhdkit.storage import paths

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vhdkit.findings import Argument, Hint

# Backquotes stand around what can be typed as it is; `{rest}` are the other arguments, as options.
_WORDS = {
    Advice.NEW_FILE: "--to NEWFILE",
    Advice.KEEP_SOURCES: "--keep-sources",
    Advice.KEEP_UNDO_FILE: "--keep-file",
    Advice.UNDO_IMAGE: "--undo FILE",
    Advice.RELINK_SIBLINGS: "--undo FILE --relink-siblings",
    Advice.RESUME: "--resume",
    Advice.ACCEPT_ENDED: "--accept-ended",
    Advice.ACCEPT_OTHER_ID: "--accept-id-mismatch",
    Advice.IGNORE_OTHER_ID: "--ignore-id-mismatch",
    Advice.PARENT: "--parent FILE",
    Advice.THIS_PARENT: "--parent {path}",
    Advice.SEARCH: "--search FOLDER",
    Advice.SEARCH_OR_PARENT: "--search FOLDER or --parent FILE",
    Advice.SEARCH_THERE: "--search {folder}",
    Advice.PARENT_MAP: "--parent-map FOLDER=LOCAL_FOLDER",
    Advice.LAYER_FOLDER: "--dir FOLDER",
    Advice.STATE_FOLDER: "--state-to FOLDER",
    Advice.YIELD_MERGES: "--yield",
    Advice.PARALLEL: "--parallel N",
    Advice.WAIT_IN_LINE: "--wait",
    Advice.PARTITION: "--partition N",
    Advice.MOVE_FILE: "`mv {path} {new_path}`",
    Advice.CHECK: "`vhdkit check {path}`",
    Advice.CHECK_CHAIN: "`vhdkit check --chain {path}{rest}`",
    Advice.HASH: "`vhdkit hash {path}{rest}`",
    Advice.REPAIR_FOOTERS: "`vhdkit check --repair-footers {path}`",
    Advice.ACCEPT_HEADER: "`vhdkit rebase {path} -b PARENT --accept-header-checksum{rest}`",
    Advice.MAKE_VHD: "`qemu-img convert -f raw -O vpc -o force_size=on {path} {new_path}`",
    Advice.CREATE_CHILD: "`vhdkit create NEWFILE --parent {path}`",
    Advice.CONVERT: "`vhdkit convert {path} {new_path}{rest}`",
    Advice.CONVERT_EACH: "vhdkit convert FILE NEWFILE",
    Advice.COMPARE_PARENT: "`vhdkit rebase {path} -b {parent}{rest} --dry-run`",
    Advice.MERGE: "`vhdkit merge {path}{rest}`",
    Advice.ENSURE_MERGED: "`vhdkit merge {path}{rest}`",
    Advice.ROLL_BACK: "`vhdkit rollback {path}{rest}`",
    Advice.DROP_UNDO: "`vhdkit undo drop {path}{rest}`",
    Advice.LIST_JOBS: "`vhdkit job list`",
    Advice.RESUME_JOB: "`vhdkit job resume {job}`",
    Advice.CANCEL_JOB: "`vhdkit job cancel {job}`",
    Advice.REMOVE_JOB: "`vhdkit job rm {job}`",
    Advice.SET_END_COMMAND: "`vhdkit job on-end {name} COMMAND...`",
    Advice.CIM_JOBS: "`vhdkit job list --format cim`",
    Advice.ADOPT: "`vhdkit snapshot init {paths}{rest}`",
    Advice.ADOPT_DISKS: "`vhdkit snapshot init DISK...`",
    Advice.APPLY: "`vhdkit snapshot apply {name} {path}`",
    Advice.APPLY_ANY: "`vhdkit snapshot apply NAME {path}`",
    Advice.DELETE: "`vhdkit snapshot delete {name} {path}`",
    Advice.DELETE_ANY: "`vhdkit snapshot delete NAME {path}`",
    Advice.SETTLE: "`vhdkit snapshot settle {path}`",
    Advice.ACCEPT_CHANGED: "`vhdkit snapshot check --accept {path}`",
    Advice.EXPORT: "`vhdkit snapshot export {path} NEWFILE`",
    Advice.RUN_MACHINE: "`vhdkit snapshot run`",
}
_OPTIONS = {
    "into": "--into",
    "to": "--to",
    "undo": "--undo",
    "search": "--search",
    "leaf_id": "--ensure",
    "output_format": "-O",
    "deep": "--deep",
    "verify": "--verify",
    "ignore_id_mismatch": "--ignore-id-mismatch",
}
# Options that say where files lie and how fast they are copied, which hold for the command that is advised as well.
_REPEATED = {
    Advice.MERGE: ("--search", "--parent-map", "--parent", "--rate"),
    Advice.ENSURE_MERGED: ("--search", "--parent-map", "--rate"),
    Advice.ROLL_BACK: ("--search", "--parent-map"),
    Advice.DROP_UNDO: ("--search", "--parent-map"),
    Advice.CONVERT: ("--search", "--parent-map", "--parent"),
    Advice.CHECK_CHAIN: ("--search", "--parent-map"),
    Advice.HASH: ("--search", "--parent-map"),
    Advice.COMPARE_PARENT: ("--search", "--parent-map"),
    Advice.ACCEPT_HEADER: ("--search", "--parent-map"),
}


def command_words(given: Sequence[str] = ()) -> Callable[[Hint], str]:
    """Return what writes hints as commands; `given` are the arguments of the one that the user has typed.

    >>> command_words()(Advice.MERGE.hint(path="a b.avhd", into="base.vhd"))
    "`vhdkit merge 'a b.avhd' --into base.vhd`"
    """
    # What other processes can be handed, so that hints read there as here.
    return functools.partial(_written, given=tuple(given))


def commands_of(hint: Hint) -> tuple[str, ...]:
    """Return the commands that a hint advises, each in its own way."""
    return tuple(text.strip("`") for each in hint if (text := _written(each, ())).startswith("`"))


def _written(hint: Hint, given: Sequence[str]) -> str:
    template, arguments = _WORDS[hint.advice], dict(hint.arguments)
    named = {name: value for name, value in arguments.items() if f"{{{name}}}" in template}
    options = [word for name, value in arguments.items() if name not in named for word in _option(name, value)]
    for option, value in _given(given, _REPEATED.get(hint.advice, ())):
        # The parent that was named is that of the file that was.
        is_of_another = option == "--parent" and arguments.get("path") not in given
        if not is_of_another and not _has(options, option, value):
            options += [option, value]
    rest = "".join(f" {shlex.quote(word)}" for word in options)
    return template.format(**{name: _quoted(value) for name, value in named.items()}, rest=rest)


def _option(name: str, value: Argument) -> list[str]:
    if name == "algorithm":
        return [f"--{value}"]
    option = _OPTIONS[name]
    if isinstance(value, bool):
        return [option] if value else []
    return [word for each in ((value,) if isinstance(value, str) else value) for word in (option, each)]


def _quoted(value: Argument) -> str:
    return shlex.join([value] if isinstance(value, str) else value) if not isinstance(value, bool) else ""


def _given(arguments: Sequence[str], wanted: Sequence[str]) -> list[tuple[str, str]]:
    """Return the options of a command line that are wanted, with their values.

    >>> _given(["merge", "a.vhd", "--search", "b", "--rate=8M"], ["--search", "--rate"])
    [('--search', 'b'), ('--rate', '8M')]
    """
    found, at = [], 0
    while at < len(arguments) and arguments[at] != "--":
        option, equals, value = arguments[at].partition("=")
        at += 1
        if option not in wanted:
            continue
        if equals:
            found.append((option, value))
        elif at < len(arguments):
            found.append((option, arguments[at]))
            at += 1
    return found


def _has(options: Sequence[str], option: str, value: str) -> bool:
    """Whether an option is there: with the same value, or at all if it is given once at most."""
    values = [after for before, after in pairwise(options) if before == option]
    match option:
        case "--search":
            return paths.abspath(value) in map(paths.abspath, values)
        case "--parent-map":
            return value in values
    return bool(values)
