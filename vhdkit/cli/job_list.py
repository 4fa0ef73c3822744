"""Listing jobs: those that run, those that wait, and those that have ended."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from vhdkit.cli.options import FOLDER, json_option
from vhdkit.cli.output import echo, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.job.job import Job, JobState
    from vhdkit.snapshot.list_jobs import JobKind

# Nobody reads more at once, and all of them are there when asked for.
_NEWEST = 200

format_option = click.option(
    "--format", "style", type=click.Choice(["table", "cim"]), help="How to print: cim is Hyper-V's own way."
)
strict_option = click.option(
    "--strict", "is_strict", is_flag=True, help="With --format cim: Hyper-V's properties alone, not Machine and Disk."
)


@dataclass(frozen=True, slots=True)
class StateChoice:
    """The jobs that are in a state, or those of which the list has a phase for it."""

    state: JobState
    word: str = ""

    def has(self, job: Job) -> bool:
        """Whether the list has a job so."""
        from vhdkit.cli.job_view import state_text

        return job.state is self.state and self.word in {"", state_text(job)}


class State(click.ParamType["StateChoice"]):
    """The state of a job, by its word in the list or CIM's number."""

    name = "state"

    def convert(
        self, value: str | StateChoice, param: click.Parameter | None, ctx: click.Context | None
    ) -> StateChoice:
        """Return the state."""
        from vhdkit.cli.job_view import PHASES, ROLLED_BACK
        from vhdkit.job.job import JobState

        if isinstance(value, StateChoice):
            return value
        word = value.lower()
        for state in JobState:
            if word in {state.plain, state.name.lower(), str(int(state))}:
                return StateChoice(state)
        if word == ROLLED_BACK:
            return StateChoice(JobState.TERMINATED, word)
        if word in PHASES:
            return StateChoice(JobState.RUNNING, word)
        words = [*(state.plain for state in JobState), ROLLED_BACK, *PHASES]
        return self.fail(f"{value!r} is no state: {', '.join(words)}", param, ctx)


@click.command("list")
@click.option("--running", is_flag=True, help="Those that are being worked at, or paused.")
@click.option("--pending", is_flag=True, help="Those that are left to do, and why they wait.")
@click.option("--finished", is_flag=True, help="Those that have ended.")
@click.option("--state", "states", multiple=True, type=State(), metavar="STATE", help="Those in STATE, such as failed.")
@click.option("--disk", metavar="FILE", help="Those that touch FILE, be it source, destination or below.")
@click.option("--machine", metavar="NAME", help="Those of the machine NAME, or in the folder NAME.")
@click.option("--search", multiple=True, type=FOLDER, metavar="DIR", help="Find merges by their journals here, too.")
@click.option(
    "--where",
    metavar="QUERY",
    help='Those that a query asks for, in WQL or PowerShell: "select * from Msvm_ConcreteJob where ElementName = '
    "'Merge in Progress'\", or what stands behind where.",
)
@click.option("--all", "show_all", is_flag=True, help=f"More than the newest {_NEWEST} that have ended.")
@format_option
@strict_option
@json_option
def list_(
    *,
    running: bool,
    pending: bool,
    finished: bool,
    style: str | None,
    is_strict: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """List jobs, the oldest first, then the merges that are left to do and were never begun.

    Where it says "no jobs", nothing is left to do on any machine and in any merge that vhdkit knows of, but for
    merges whose jobs were taken off the list. Where others are there than those that were asked for, it says so.
    """
    from vhdkit.snapshot.list_jobs import JobKind

    check_format(style, is_strict=is_strict, as_json=as_json)
    flags = {JobKind.RUNNING: running, JobKind.PENDING: pending, JobKind.FINISHED: finished}
    kinds = {kind for kind, is_asked in flags.items() if is_asked} or set(JobKind)
    found = _found(kinds, **asked)
    _print_list(found, style, is_strict=is_strict, as_json=as_json)
    if not (found or as_json or style):
        echo(_none_text(kinds), err=True)


def _found(
    kinds: set[JobKind],
    *,
    states: tuple[StateChoice, ...],
    disk: str | None,
    machine: str | None,
    search: tuple[str, ...],
    where: str | None,
    show_all: bool,
) -> tuple[Job, ...]:
    """Return the jobs of some kinds that the options choose."""
    from vhdkit.snapshot.list_jobs import JobKind, list_jobs

    chosen = None if where is None else _Filter(where)
    if not _wants_ended(chosen, states):
        # They may be many: then they are not even read.
        kinds = kinds - {JobKind.FINISHED}
    # A filter looks at all of them; one more than is shown says whether there are more.
    is_limited = not show_all and where is None and not states
    found = list_jobs(kinds, disk=disk, machine=machine, search=search, limit=_NEWEST + 1 if is_limited else None)
    if is_limited:
        found = _newest(found)
    found = tuple(each for each in found if not states or any(state.has(each) for state in states))
    return found if chosen is None else chosen.of(found)


def _wants_ended(chosen: _Filter | None, states: Sequence[StateChoice]) -> bool:
    is_filter_open = chosen is None or chosen.wants_ended
    return is_filter_open and (not states or any(each.state.is_finished for each in states))


def _none_text(kinds: set[JobKind]) -> str:
    """Return what to say where no job is listed: some may be pending, or others than were asked for."""
    from vhdkit.snapshot.list_jobs import JobKind, list_jobs

    count = len(list_jobs(kinds))
    if kinds == {JobKind.RUNNING} and not count:
        pending = len(list_jobs({JobKind.PENDING}))
        if pending:
            which = "1 merge is" if pending == 1 else f"{pending} merges are"
            return f"no merge runs; {which} left to do: `vhdkit job list --pending`"
    return f"no job matches; {'there is 1' if count == 1 else f'there are {count}'} in all" if count else "no jobs"


def check_format(style: str | None, *, is_strict: bool, as_json: bool) -> None:
    """Refuse ways of printing that exclude each other."""
    if as_json and style:
        raise click.UsageError("--json and --format exclude each other")
    if is_strict and style != "cim":
        raise click.UsageError("--strict goes with --format cim")


def _newest(found: tuple[Job, ...]) -> tuple[Job, ...]:
    """Return jobs without the oldest that has ended, if that is one more than are shown."""
    ended = [each for each in found if each.state.is_finished]
    if len(ended) <= _NEWEST:
        return found
    echo(f"older jobs are not shown, only the newest {_NEWEST} that have ended; --all shows them", err=True)
    return tuple(each for each in found if each.id != ended[0].id)


class _Filter:
    """What --where chooses; names that no job has are wrong usage, whether or not there are any."""

    def __init__(self, expression: str) -> None:
        from vhdkit.job.cim import of_state
        from vhdkit.job.job import JobState
        from vhdkit.job.wql import Where
        from vhdkit.job.wql_tokens import FilterError

        try:
            self._where = Where(expression)
            wanted = [state for state in JobState if self._where.matches(of_state(state))]
        except FilterError as error:
            raise click.UsageError(str(error)) from error
        self.wants_ended = any(state.is_finished for state in wanted)

    def of(self, found: Sequence[Job]) -> tuple[Job, ...]:
        from vhdkit.job.cim import properties
        from vhdkit.job.wql_tokens import FilterError
        from vhdkit.storage.process import this_process

        now, server = time.time(), this_process()[1]
        try:
            return tuple(each for each in found if self._where.matches(properties(each, now, server)))
        except FilterError as error:
            raise click.UsageError(str(error)) from error


def _print_list(found: Sequence[Job], style: str | None, *, is_strict: bool, as_json: bool) -> None:
    from vhdkit.cli.job_view import describe_job, job_table

    if as_json:
        print_json([describe_job(each) for each in found])
    elif style == "cim":
        echo(cim_text(found, is_strict=is_strict), nl=False)
    elif found:
        echo("\n".join(job_table(found)))


def cim_text(found: Sequence[Job], *, is_strict: bool) -> str:
    """Return jobs as PowerShell prints Hyper-V's."""
    from vhdkit.job import cim
    from vhdkit.storage.process import this_process

    return cim.text(found, time.time(), this_process()[1], is_strict=is_strict)
