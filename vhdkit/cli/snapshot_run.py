"""Running a machine while its merges make way: snapshot run."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from vhdkit.cli.output import echo
from vhdkit.errors import VhdError
from vhdkit.findings import printable

if TYPE_CHECKING:
    from vhdkit.job.handle import MergeJob
    from vhdkit.snapshot.machine import Machine

# As shells have them.
_NOT_EXECUTABLE = 126
_NOT_FOUND = 127


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("disk")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--yield", "yield_merges", is_flag=True, help="Stop merges that are at its disks; they go on afterwards.")
def run(disk: str, command: tuple[str, ...], *, yield_merges: bool) -> int:
    """Run a machine: COMMAND, with {} for its active disk ({0}, {1}, ... for each), and settle what is owed afterwards.

    Put -- before COMMAND. It is refused (exit 75) while a merge is at the machine's disks, unless --yield stops that;
    what it has done so far is kept. Until COMMAND has ended the machine counts as running. Exits as COMMAND does, with
    127 if it is not found.
    """
    from vhdkit.snapshot.machine import Machine

    machine = Machine(disk)
    with machine.running(yield_merges=yield_merges) as stopped:
        for job in stopped:
            echo(f"the merge {job.id} has stopped at {job.percent} %, and goes on later", err=True)
        names = {"{}": machine.active[0], **{f"{{{at}}}": path for at, path in enumerate(machine.active)}}
        code = _run([re.sub(r"\{\d*\}", lambda found: names.get(found[0], found[0]), word) for word in command])
    with suppress(VhdError, OSError):
        started, _ = start_pending(machine, None)
        for each in started:
            echo(f"merge: {how_it_goes(each)}", err=True)
    return code


def _run(words: list[str]) -> int:
    """Run a program and return its exit code, as a shell tells it; Ctrl-C, SIGTERM and SIGHUP are for it to answer."""
    import signal
    import subprocess

    from vhdkit.cli.signals import ending_signals

    try:
        process = subprocess.Popen(words)  # noqa: S603 - what the user asks for, and no shell
    except OSError as error:
        echo(f"vhdkit: {printable(words[0])}: {error.strerror}", err=True)
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
    # A terminal sends Ctrl-C to both of them.
    before = {
        number: signal.signal(number, lambda sent, _frame: None if sent == signal.SIGINT else process.send_signal(sent))
        for number in ending_signals()
    }
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def start_pending(machine: Machine, rate: int | None) -> tuple[tuple[MergeJob, ...], str]:
    """Begin the merges that are owed; return them, or why they wait."""
    try:
        return machine.start_settling(rate=rate), ""
    except (VhdError, OSError) as error:
        return (), str(error)


def how_it_goes(job: MergeJob) -> str:
    """Return in a few words how a merge is that was begun."""
    from vhdkit.job.job import JobState

    if job.job.state is JobState.SUSPENDED:
        return f"{job.id} is paused; `vhdkit job resume {job.id}` lets it go on"
    return f"{job.id}, in the background"
