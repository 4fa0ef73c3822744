"""The verbs about jobs: job list, show, wait, watch, cancel, pause, resume, rate, log, history, rollback, rm."""

from __future__ import annotations

import shlex
import time
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING

import click

from vhdkit.cli.exit_codes import ExitCode
from vhdkit.cli.failure import describe_failure, report_failure
from vhdkit.cli.job_history import history
from vhdkit.cli.job_list import check_format, cim_text, format_option, list_, strict_option
from vhdkit.cli.options import Rate, json_option, progress_option
from vhdkit.cli.output import echo, print_json, progress_shown, table
from vhdkit.findings import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vhdkit.errors import VhdError
    from vhdkit.job.job import Job

_ids = click.argument("ids", nargs=-1, required=True, metavar="ID...")
_any_ids = click.argument("ids", nargs=-1, metavar="[ID]...")


# Each stays on its line: what people ask of a merge, and the command that answers.
_ANSWERS = """\b
When is it done?            vhdkit job list --running, job wait ID, job watch
Hyper-V's query for that    vhdkit job list --where QUERY, --format cim
Which machine, which disk?  vhdkit job list --machine NAME, --disk FILE
What waits, and for whom?   vhdkit job list --pending
Does it begin by itself?    vhdkit snapshot watch, when the machine is off
How do I hear of its end?   vhdkit job on-end, merge --on-end, merge --events
How long did it take?       vhdkit job history, job log ID
How long will it take?      vhdkit merge --dry-run
What after a reboot?        vhdkit job resume --interrupted
How is it stopped, slowed?  vhdkit job cancel, job pause, job rate ID 8M
"""


@click.group(epilog=_ANSWERS)
@click.pass_context
def job(ctx: click.Context) -> None:
    """Ask about merges that run, wait or have ended, of any process, and steer them.

    An ID may be shortened to any beginning that no other job has.
    """
    ctx.call_on_close(_warn_of_left_out)


def _warn_of_left_out() -> None:
    """Say which jobs the verb has left out, whose records cannot be read."""
    from vhdkit.job.registry_tables import take_left_out

    for text in take_left_out():
        with suppress(OSError):
            echo(f"warning: {text}", err=True)


job.add_command(list_)
job.add_command(history)


@job.command()
@_ids
@format_option
@strict_option
@json_option
def show(ids: tuple[str, ...], *, style: str | None, is_strict: bool, as_json: bool) -> None:
    """Show all that is known of jobs."""
    from vhdkit.cli.job_view import describe_job, job_rows
    from vhdkit.snapshot.pending_jobs import find_any_job

    check_format(style, is_strict=is_strict, as_json=as_json)
    found = [find_any_job(each) for each in ids]
    if as_json:
        described = [describe_job(each) for each in found]
        print_json(described[0] if len(described) == 1 else described)
    elif style == "cim":
        echo(cim_text(found, is_strict=is_strict), nl=False)
    else:
        for number, each in enumerate(found):
            if number:
                echo()
            table(job_rows(each))


@job.command()
@_ids
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait no longer than this.")
@json_option
def wait(ids: tuple[str, ...], *, timeout: float | None, as_json: bool) -> int:
    """Wait until jobs have ended, pending ones until they are done, and exit as they did.

    Exit codes: 0 complete, 1 failed or interrupted, 75 a file was in use or the time is over, 130 cancelled; of several
    jobs the first that is not 0.
    """
    from vhdkit.snapshot.pending_jobs import find_any_job, wait_for_any_job

    until = None if timeout is None else time.monotonic() + timeout
    found = [find_any_job(each).id for each in ids]
    try:
        ended = [
            wait_for_any_job(each, None if until is None else max(0.0, until - time.monotonic())) for each in found
        ]
    except TimeoutError as error:
        report_failure(error, ExitCode.IN_USE)
        return ExitCode.IN_USE
    _print_states(ended, as_json=as_json)
    return next((code for code in map(exit_code, ended) if code), 0)


def exit_code(ended: Job) -> int:
    """Return what a merge that ended so exits with."""
    from vhdkit.job.job import JobState

    if ended.state is JobState.COMPLETED:
        return 0
    if ended.state is JobState.TERMINATED:
        return ExitCode.INTERRUPTED
    return ExitCode.IN_USE if ended.error_class == "ImageInUseError" else ExitCode.FAILED


@job.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@progress_option
def watch(ids: tuple[str, ...], *, progress: str | None) -> None:
    """Show the progress of jobs, by default all that have not ended; they continue when you stop watching."""
    from vhdkit.cli.job_watch import watch as watch_jobs

    watch_jobs(ids, progress)


@job.command()
@_any_ids
@click.option("--all", "are_all", is_flag=True, help="Every job that has not ended.")
@click.option("--machine", metavar="NAME", help="Those of the machine NAME, or in the folder NAME.")
@click.option("--disk", metavar="FILE", help="Those that touch FILE, be it source, destination or below.")
@json_option
def cancel(ids: tuple[str, ...], *, are_all: bool, machine: str | None, disk: str | None, as_json: bool) -> None:
    """Stop jobs where that is safe, and wait until they have stopped; everything reads as before."""
    from vhdkit.job.control import cancel_job, jobs

    is_chosen = are_all or machine is not None or disk is not None
    _check_choice(ids, "--all, --machine or --disk", is_chosen=is_chosen)
    if is_chosen:
        ids = tuple(each.id for each in jobs(running=True, machine=machine, disk=disk))
    if is_chosen and not ids:
        _report_none("no job runs", {"the machine": machine, "the disk": disk})
    _for_each(ids, cancel_job, as_json=as_json)


@job.command()
@_ids
@json_option
def pause(ids: tuple[str, ...], *, as_json: bool) -> None:
    """Let jobs stand still where that is safe, their files held."""
    from vhdkit.job.control import pause_job

    _for_each(ids, pause_job, as_json=as_json)


@job.command()
@_any_ids
@click.option("--all", "are_all", is_flag=True, help="Every job that is paused, was cut off, or was never begun.")
@click.option("--interrupted", is_flag=True, help="Those whose process died, as in a reboot.")
@json_option
def resume(ids: tuple[str, ...], *, are_all: bool, interrupted: bool, as_json: bool) -> None:
    """Let paused jobs go on; start those again, in the background, that were cancelled, failed or interrupted.

    A pending merge that has not begun is begun.
    """
    from vhdkit.snapshot.pending_jobs import resumable_jobs, resume_any_job

    _check_choice(ids, "--all or --interrupted", is_chosen=are_all or interrupted)
    if are_all or interrupted:
        ids = tuple(each.id for each in resumable_jobs(only_interrupted=not are_all))
        if not ids:
            _report_none("no job can be resumed" if are_all else "no job was interrupted", {})
    _for_each(ids, resume_any_job, as_json=as_json, takes_pending=True)


@job.command()
@click.argument("job_id", metavar="ID")
@click.argument("size", type=Rate(), metavar="SIZE")
@json_option
def rate(job_id: str, size: int, *, as_json: bool) -> None:
    """Let a job copy at most SIZE bytes a second from now on, such as 8M; "none" lets it go as fast as it can.

    A job that was cut off keeps to it when it is resumed.
    """
    from vhdkit.job.change_rate import change_rate
    from vhdkit.snapshot.pending_jobs import find_begun_job

    _print_states([change_rate(find_begun_job(job_id).id, size or None)], as_json=as_json)


@job.command("on-end", context_settings={"ignore_unknown_options": True})
@click.argument("name", required=False)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--remove", is_flag=True, help="Forget the command NAME.")
@json_option
def on_end(name: str | None, command: tuple[str, ...], *, remove: bool, as_json: bool) -> None:
    """Keep COMMAND under NAME, to be started when a job ends; without arguments list those that are kept.

    It gets the job as JSON on stdin. `merge --on-end NAME` asks for it; the one called "every" is started at the end of
    each job that asks for none. It runs without a shell, and only the user's own settings name it.
    """
    from vhdkit.job.on_end import end_commands, set_end_command

    if name is not None and bool(command) != remove:
        set_end_command(name, command)
    elif remove or name is not None:
        raise click.UsageError("give a NAME and a COMMAND to keep, or a NAME and --remove")
    kept = end_commands()
    if as_json:
        print_json({each: list(words) for each, words in kept.items()})
    elif name is None and kept:
        table([(each, shlex.join(words)) for each, words in kept.items()])
    elif name is None:
        echo("no command is kept", err=True)


@job.command()
@click.argument("job_id", metavar="ID")
@json_option
def log(job_id: str, *, as_json: bool) -> None:
    """Print what a job has said, in all of its runs, with Hyper-V's event ids; 0 is how far it was."""
    from vhdkit.cli.job_log_view import log_lines, log_records
    from vhdkit.job.job_log import read_job_log
    from vhdkit.snapshot.pending_jobs import find_begun_job

    lines = read_job_log(find_begun_job(job_id).id)
    if as_json:
        print_json(log_records(lines))
        return
    for line in log_lines(lines):
        echo(line)


@job.command()
@click.argument("job_id", metavar="ID")
@progress_option
@json_option
def rollback(job_id: str, *, progress: str | None, as_json: bool) -> None:
    """Take back the merge of a job that was begun with --undo; one that is going on is stopped first."""
    from vhdkit.cli.signals import stopping
    from vhdkit.job.control import rollback_job
    from vhdkit.snapshot.pending_jobs import find_begun_job

    found = find_begun_job(job_id)
    with progress_shown(progress, "rolling back") as advance, stopping() as stop:
        done = rollback_job(found.id, progress=advance, cancel=stop)
    _print_states([done], as_json=as_json)


@job.command()
@_any_ids
@click.option("--finished", is_flag=True, help="Every job that is complete or was rolled back.")
@json_option
def rm(ids: tuple[str, ...], *, finished: bool, as_json: bool) -> None:
    """Take jobs that have ended off the list; what they have said (job log) goes, too.

    How long they took stays in job history for half a year. Their images are not touched: a merge that was cut off is
    unfinished still, and job list --search finds it.
    """
    from vhdkit.job.control import jobs, remove_job, remove_unreadable_job

    _check_choice(ids, "--finished", is_chosen=finished)
    if finished:
        ids = tuple(each.id for each in jobs(finished=True) if each.rolled_back or not each.state.is_resumable)
    unreadable = [each for each in ids if remove_unreadable_job(each)]
    for each in unreadable:
        echo(f"removed: {printable(each)}, whose record could not be read", err=True)
    left = [each for each in ids if each not in unreadable]
    if left or not unreadable:
        _for_each(left, remove_job, as_json=as_json, done_word="removed: ")


def _check_choice(ids: Sequence[str], options: str, *, is_chosen: bool) -> None:
    """Refuse a command that names no jobs, or names them twice over."""
    if bool(ids) == is_chosen:
        raise click.UsageError(f"name jobs by ID..., or choose them by {options}")


def _report_none(what: str, asked: Mapping[str, str | None]) -> None:
    """Say that there are no jobs of those that were asked for, which is a failure where a name was given.

    Raises:
        JobError: one was.

    """
    from vhdkit.errors import JobError
    from vhdkit.findings import Advice

    named = [f"{kind} {name!r}" for kind, name in asked.items() if name is not None]
    if named:
        hint = Advice.LIST_JOBS.hint("{} shows those there are")
        raise JobError(f"{what} for {' and '.join(named)}", hint=hint)
    echo(what, err=True)


def _for_each(
    ids: Sequence[str], act: Callable[[str], Job], *, as_json: bool, done_word: str = "", takes_pending: bool = False
) -> None:
    from vhdkit.errors import VhdError
    from vhdkit.snapshot.pending_jobs import find_any_job, find_begun_job

    # Each is looked for before the first is touched; what one of them refuses does not keep it from the others.
    done: list[Job] = []
    refusals: dict[str, VhdError | OSError] = {}
    find = find_any_job if takes_pending else find_begun_job
    for job_id in [find(each).id for each in ids]:
        try:
            done.append(act(job_id))
        except (VhdError, OSError) as error:
            refusals[job_id] = error
    if done or not refusals:
        _print_states(done, as_json=as_json, before=done_word, refusals=refusals)
    errors = list(refusals.values())
    for refusal in errors[:-1]:
        echo(f"vhdkit: {refusal}", err=True)
    if errors:
        raise errors[-1]


def _print_states(
    found: Sequence[Job],
    *,
    as_json: bool,
    before: str = "",
    refusals: Mapping[str, VhdError | OSError] = MappingProxyType({}),
) -> None:
    from vhdkit.cli.job_view import describe_job, job_line

    if as_json:
        refused = [
            {"id": job_id, "error": describe_failure(error, ExitCode.FAILED)} for job_id, error in refusals.items()
        ]
        print_json([*map(describe_job, found), *refused])
        return
    for each in found:
        echo(before + job_line(each))
