"""Machines that run while merges are pending: snapshot run, make-way, watch."""

from __future__ import annotations

import json
import re
import shlex
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from vhdkit.cli.options import Rate, json_option, parallel_option
from vhdkit.cli.output import echo, path_text, print_json
from vhdkit.errors import VhdError
from vhdkit.findings import printable

if TYPE_CHECKING:
    from vhdkit.job.handle import MergeJob
    from vhdkit.snapshot.machine import Machine
    from vhdkit.snapshot.watch_machines import Watched

# As shells have them.
_NOT_EXECUTABLE = 126
_NOT_FOUND = 127


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("disk")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--yield", "yield_merges", is_flag=True, help="Stop merges that are at its disks; they go on afterwards.")
def run(disk: str, command: tuple[str, ...], *, yield_merges: bool) -> int:
    """Run a machine: COMMAND, with {} for its active disk ({0}, {1}, ... for each), then settle what is pending.

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


@click.command("make-way")
@click.argument("disk")
@click.option("--yield", "yield_merges", is_flag=True, help="Stop merges that are at its disks; `settle` goes on.")
@json_option
def make_way(disk: str, *, yield_merges: bool, as_json: bool) -> None:
    """Make sure that a machine can be started now: for hooks that a hypervisor calls before it opens the disks.

    It is refused (exit 75) while the machine runs, and while a merge is at its disks unless --yield stops that.
    """
    from vhdkit.snapshot.machine import Machine

    machine = Machine(disk)
    stopped = machine.make_way(yield_merges=yield_merges)
    if as_json:
        from vhdkit.cli.job_view import describe_job

        print_json({"active": list(machine.active), "stopped": [describe_job(job) for job in stopped]})
        return
    for job in stopped:
        echo(f"the merge {job.id} has stopped at {job.percent} %, and goes on later", err=True)
    for path in machine.active:
        echo(f"active: {path_text(path)}")


@click.command()
@click.argument("disks", nargs=-1, metavar="[DISK]...")
@click.option(
    "--after",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Begin merges when the machine has been off for so long.",
)
@click.option("--rate", type=Rate(), metavar="SIZE", help="Copy at most SIZE bytes a second: 8M.")
@parallel_option
@click.option("--once", is_flag=True, help="End when nothing is pending any longer.")
@json_option
def watch(
    disks: tuple[str, ...], *, after: float, rate: int | None, parallel: int | None, once: bool, as_json: bool
) -> None:
    """Merge what is pending whenever machines are off, and stop within a second when something opens their disks.

    A service, until it is stopped; the machines are those of DISK..., or all whose snapshots this user keeps. With
    --json what happens is an object a line.
    """
    import sys

    from vhdkit.cli.signals import stopping
    from vhdkit.snapshot.watch_machines import MachineWatch

    def tell(seen: Watched) -> None:
        echo(json.dumps(_describe_watched(seen)) if as_json else _watched_line(seen))
        sys.stdout.flush()

    with stopping() as stop:
        machines = MachineWatch(disks, quiet=after, rate=rate or None, parallel=parallel, tell=tell)
        machines.run(stop, until_done=once)


def _describe_watched(seen: Watched) -> dict[str, Any]:
    from vhdkit.cli.job_view import describe_job

    job = None if seen.job is None else describe_job(seen.job)
    return {"event": seen.event.value, "machine": seen.machine, "reason": seen.reason or None, "job": job}


def _watched_line(seen: Watched) -> str:
    which = "" if seen.job is None else f" merge {seen.job.id[:8]}, {seen.job.percent} %"
    reason = f": {seen.reason}" if seen.reason else ""
    return printable(f"{seen.machine}: {seen.event.value}{which}{reason}")


def _run(words: list[str]) -> int:
    """Run a program and return its exit code, as a shell reports it; Ctrl-C, SIGTERM and SIGHUP are left to it."""
    import signal
    import subprocess

    from vhdkit.cli.signals import signals_handled

    try:
        process = subprocess.Popen(words)  # noqa: S603 - what the user asks for, and no shell
    except OSError as error:
        echo(f"vhdkit: {printable(words[0])}: {error.strerror}", err=True)
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE

    def hand_on(number: int, _frame: object) -> None:
        if number != signal.SIGINT:  # a terminal sends Ctrl-C to both of them
            process.send_signal(number)

    with signals_handled(hand_on):
        code = process.wait()
    return code if code >= 0 else 128 - code


def start_pending(machine: Machine, rate: int | None) -> tuple[tuple[MergeJob, ...], str]:
    """Start the pending merges; return them, or why they wait."""
    try:
        return machine.start_settling(rate=rate), ""
    except (VhdError, OSError) as error:
        if isinstance(error, VhdError) and error.hint is not None:
            return (), str(error)
        # Nothing has been said of how it goes on.
        return (), f"{error}; `vhdkit snapshot settle {shlex.quote(machine.active[0])}` merges when that is over"


def how_it_goes(job: MergeJob) -> str:
    """Return in a few words how a merge is that was begun."""
    from vhdkit.job.job import JobState

    if job.job.state is JobState.SUSPENDED:
        return f"{job.id} is paused; `vhdkit job resume {job.id}` lets it go on"
    return f"{job.id}, in the background"
