"""The program: its verbs, and what every failure becomes.

Exit codes: 0 done · 1 failed (`compare`: they differ) · 2 `compare` could not compare · 64 wrong usage ·
130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

from vhdkit.cli.inspecting import chain, info, map_, scan
from vhdkit.cli.making import compare, convert, create
from vhdkit.cli.merging import merge
from vhdkit.errors import VhdError, printable

FAILED = 1
USAGE = 64
INTERRUPTED = 130

# Other tools' words for merging, which means one thing here.
_ALIASES = {"commit": "merge", "coalesce": "merge"}


class _Verbs(click.Group):
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, _ALIASES.get(cmd_name, cmd_name))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="vhdkit", prog_name="vhdkit")
def program() -> None:
    """Read, merge and inspect chains of VHD and AVHD snapshot images."""


for _verb in (info, chain, scan, map_, merge, create, convert, compare):
    program.add_command(_verb)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; every failure becomes one clear message."""
    try:
        return int(program.main(arguments, prog_name="vhdkit", standalone_mode=False) or 0)
    except click.UsageError as error:
        error.show()
        return USAGE
    except click.ClickException as error:
        error.show()
        return FAILED
    except (click.Abort, KeyboardInterrupt) as error:
        click.echo("\n".join(["vhdkit: interrupted", *getattr(error, "__notes__", [])]), err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); Python would complain once more while shutting down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (VhdError, OSError, ValueError) as error:
        click.echo(explain(error), err=True)
        return FAILED


def explain(error: VhdError | OSError | ValueError) -> str:
    """Return what went wrong as text: the error, what was noted on it, and the code that Windows has for it."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{printable(str(error.filename))}: " if error.filename else ""
        lines = [f"vhdkit: {where}{error.strerror}"]
    else:
        lines = [f"vhdkit: {error}"]
    lines += getattr(error, "__notes__", [])
    code = getattr(error, "windows_code", None)
    if code:
        lines.append(f"(Windows calls this {code:#010X})".replace("0X", "0x"))
    return "\n".join(lines)


def main() -> NoReturn:
    """Run the command line of this process."""
    sys.exit(run(sys.argv[1:]))
