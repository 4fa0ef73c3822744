"""The program: its verbs, and what every failure becomes.

Exit codes: 0 done · 1 failed (`compare`: they differ) · 2 `compare` could not compare · 64 wrong usage ·
75 a file is in use, try later · 130 interrupted; `check`: 0 clean · 1 could not check · 2 corrupt · 3 space is lost.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

import click

import vhdkit
from vhdkit.cli.exit_codes import ExitCode
from vhdkit.cli.failure import report_failure, say
from vhdkit.cli.output import JSON_OUTPUT, echo
from vhdkit.cli.signals import ending_signals, signals_handled
from vhdkit.command_hints import command_words
from vhdkit.errors import Cancelled, FileNameError, ImageInUseError, VhdError
from vhdkit.findings import hints_as

# The modules of the verbs, each loaded when its verb is run; all of them take a third of the time of `--version`.
_MODULES = {
    "info": ("info", "chain", "scan", "map"),
    "check": ("check",),
    "merge": ("merge",),
    "job": ("job",),
    "snapshot": ("snapshot",),
    "rebase": ("rebase",),
    "undo": ("rollback", "undo"),
    "create": ("create", "convert", "compare"),
    "hash": ("hash",),
    "serve": ("serve",),
    "mount": ("mount",),
    "fleet": ("fleet",),
    "files": ("partitions", "ls", "stat", "cat", "extract", "diff"),
}
_MODULE_OF = {verb: module for module, verbs in _MODULES.items() for verb in verbs}
# Other tools' words for merging, which means one thing here.
_ALIASES = {"commit": "merge", "coalesce": "merge"}


def _show_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        echo(f"vhdkit {vhdkit.__version__}")
        ctx.exit()


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_MODULE_OF})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        verb = _ALIASES.get(cmd_name, cmd_name)
        if verb not in self.commands and verb in _MODULE_OF:
            module = import_module(f"vhdkit.cli.{_MODULE_OF[verb]}")
            # `map` and `hash` are Python's own names.
            self.add_command(getattr(module, verb, None) or getattr(module, f"{verb}_"), verb)
        return super().get_command(ctx, verb)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def program() -> None:
    """Read, merge and inspect chains of VHD and AVHD snapshot images.

    Exit codes: 0 done, 1 failed, 64 wrong usage, 75 a file is in use (try later), 130 interrupted; compare and check
    have codes of their own. The verbs commit and coalesce are other names of merge.
    """


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; every failure becomes one clear message."""
    JSON_OUTPUT.begin_command(arguments)
    with hints_as(command_words(arguments)):
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    try:
        return int(program.main(arguments, prog_name="vhdkit", standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message())
        return ExitCode.USAGE
    except click.ClickException as error:
        code = ExitCode.USAGE if isinstance(error, click.UsageError) else ExitCode.FAILED
        report_failure(error, code)
        return code
    except (click.Abort, KeyboardInterrupt, Cancelled) as error:
        # Nothing cuts short what is said of how the work has ended.
        with signals_handled(signal.SIG_IGN):
            report_failure(_Interruption(_notes_of(error)), ExitCode.INTERRUPTED)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); Python would complain once more while shutting down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    except (VhdError, OSError, ValueError) as error:
        code = _code_of(error)
        report_failure(error, code, _job_at(error))
        return code


class _Interruption(Exception):  # noqa: N818 - a state that was asked for
    """What a command that was stopped says, with what was noted on how things stand."""

    def __init__(self, notes: list[str]) -> None:
        super().__init__("interrupted")
        self.__notes__ = notes


def _code_of(error: VhdError | OSError | ValueError) -> ExitCode:
    match error:
        case ImageInUseError():
            return ExitCode.IN_USE
        case FileNameError():
            return ExitCode.USAGE
        case _:
            return ExitCode.FAILED


def _job_at(error: Exception) -> list[str]:
    """Return which merge is at a file that is in use, as a line to follow the error."""
    if not isinstance(error, ImageInUseError):
        return []
    from vhdkit.job.control import job_at

    job = job_at(error.path)
    return [f"The merge job {job.id} is at it; `vhdkit job watch {job.id[:8]}` follows it."] if job else []


def _notes_of(error: BaseException) -> list[str]:
    """Return what was noted on an error, or on what it came from.

    click makes an Abort of a KeyboardInterrupt, and a second Ctrl-C may come while the first is being dealt with.
    """
    at: BaseException | None = error
    while at is not None:
        notes: list[str] = getattr(at, "__notes__", [])
        if notes:
            return notes
        at = at.__cause__ or at.__context__
    return []


def main() -> NoReturn:
    """Run the command line of this process."""
    # SIGTERM and SIGHUP end a merge as Ctrl-C does: it cleans up and prints how things stand.
    ending = ending_signals()
    for number in ending:
        if number != signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that the terminal's encoding lacks must not turn a merge that is done into a failure.
            stream.reconfigure(errors="backslashreplace")
    # numpy would start a thread a processor for linear algebra, which is not done here; it costs as much as its import.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    code = run(sys.argv[1:])
    for number in ending:
        # While Python shuts down a second one would still kill it, and hide how the work has ended.
        signal.signal(number, signal.SIG_IGN)
    _leave(code)


def _leave(code: int) -> NoReturn:
    """End the process as it stands: taking Python and numpy apart object by object takes a tenth of a small merge."""
    for stream in (sys.stdout, sys.stderr):
        # Closed from the start, or gone since; what was written to it was flushed then, or the failure told.
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(code)
