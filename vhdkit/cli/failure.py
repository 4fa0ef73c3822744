"""What a failure becomes: a message for people on stderr, and with --json an object on stdout too."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from vhdkit.cli.output import JSON_OUTPUT, echo, print_json
from vhdkit.command_hints import commands_of
from vhdkit.errors import ChainError, ImageInUseError, SiblingsError, VhdError, error_text
from vhdkit.findings import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def report_failure(error: BaseException, code: int, more: Iterable[str] = ()) -> None:
    """Say what went wrong: as text on stderr, and where JSON was asked for and none was printed as that on stdout.

    `more` are lines that follow the message.
    """
    lines = list(more)
    say("\n".join([explain(error), *lines]))
    if JSON_OUTPUT.is_wanted and not JSON_OUTPUT.is_begun:
        with suppress(OSError):
            print_json({"error": describe_failure(error, code, lines)})


def say(text: str) -> None:
    """Print a message on stderr; after a hang-up there is no terminal to print it on, and the exit code says it."""
    with suppress(OSError):
        echo(text, err=True)


def explain(error: BaseException) -> str:
    """Return what went wrong as text: the error, what was noted on it, and the code that Windows has for it."""
    if isinstance(error, click.ClickException):
        usage = error.ctx.get_usage() + "\n" if isinstance(error, click.UsageError) and error.ctx else ""
        return f"{usage}vhdkit: {printable(error.format_message())}"
    lines = [f"vhdkit: {_text_of(error) if isinstance(error, VhdError) else printable(error_text(error))}"]
    lines += [printable(note) for note in getattr(error, "__notes__", [])]
    code = getattr(error, "windows_code", None)
    if code:
        lines.append(f"(Windows calls this {_hex(code)})")
    return "\n".join(lines)


def _text_of(error: VhdError) -> str:
    """Return the text of an error, which begins with its path."""
    from vhdkit.storage.paths import as_given

    text, path = str(error), printable(error.path)
    return printable(as_given(error.path)) + text[len(path) :] if path and text.startswith(path) else text


def describe_failure(error: BaseException, code: int, more: Sequence[str] = ()) -> dict[str, Any]:
    """Return what went wrong as the plain values that `--json` prints; `code` is what the command exits with.

    `more` are lines that follow the message, with commands between backquotes.
    """
    windows = getattr(error, "windows_code", None)
    record: dict[str, Any] = {
        "class": type(error).__name__,
        "message": _message_of(error),
        "filename": _path_of(error),
        "notes": [*getattr(error, "__notes__", []), *more],
        "commands": [],
        "error-code": _hex(windows) if windows else None,
        "exit-code": int(code),
    }
    if isinstance(error, VhdError) and error.hint is not None:
        record["commands"] = [command for hint in error.hint for command in commands_of(hint)]
    record["commands"] += [command for line in more for command in line.split("`")[1::2]]
    match error:
        case ImageInUseError():
            record["holders"] = list(error.holders)
        case SiblingsError():
            record["siblings"] = list(error.siblings)
        case ChainError():
            record["candidates"] = [
                {"filename": each.path, "origin": each.origin, "reason": each.reason} for each in error.candidates
            ]
    return record


def _message_of(error: BaseException) -> str:
    match error:
        case VhdError():
            return error.text
        case click.ClickException():
            return error.format_message()
        case OSError() if error.strerror:
            return error.strerror
        case _:
            return str(error) or "interrupted"


def _path_of(error: BaseException) -> str | None:
    found = error.path if isinstance(error, VhdError) else getattr(error, "filename", None)
    from vhdkit.storage.paths import as_given

    return as_given(str(found)) if found else None


def _hex(code: int) -> str:
    return f"0x{code:08X}"
