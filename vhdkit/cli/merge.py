"""The verb that merges layers: merge."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import click

from vhdkit.cli.exit_codes import ExitCode
from vhdkit.cli.new_files import NewFile, naming_commands
from vhdkit.cli.options import Size, chain_options, json_option, parallel_option, progress_option
from vhdkit.cli.output import echo, path_text, print_json, progress_shown, short_size, size_text, table, warn
from vhdkit.cli.signals import stopping
from vhdkit.errors import VhdError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from vhdkit.job.history import Estimate
    from vhdkit.merging.completion import Completion
    from vhdkit.merging.plan.plan import MergePlan
    from vhdkit.merging.run.engine import MergeResult
    from vhdkit.options import EnsureRequest, EventTarget, MergeRequest
    from vhdkit.progress import Progress


@click.command()
@click.argument("child")
@click.option("--into", metavar="ANCESTOR", help="Merge all levels down into this ancestor; the parent by default.")
@click.option(
    "--to",
    type=NewFile(),
    metavar="NEWFILE",
    help="Write the whole chain's view to a new dynamic image; change nothing.",
)
@click.option("--keep-sources", is_flag=True, help="Do not remove what was merged.")
@click.option(
    "--undo", type=NewFile(), metavar="FILE", help="Keep what is overwritten in a new image FILE, for rollback."
)
@click.option("--relink-siblings", is_flag=True, help="With --undo: other children of ANCESTOR read through FILE.")
@click.option("--verify", is_flag=True, help="Read both before and after; remove nothing unless they agree.")
@click.option("--accept-ended", is_flag=True, help="Take layers that a merge went past, as they read now.")
@click.option("--resume", is_flag=True, help="Go on with a merge that was cut off, wherever it was going.")
@click.option(
    "--ensure",
    "leaf_id",
    metavar="ID",
    help="With --into: succeed also if the image with this unique id was merged so already; keeps a record of it.",
)
@click.option("--rate", type=Size(), metavar="SIZE", help="Copy at most so many bytes a second: 8M.")
@parallel_option
@click.option("--dry-run", is_flag=True, help="Say what would be done, and what stands in the way; write nothing.")
@click.option(
    "--background", is_flag=True, help="Print a job's id at once, and merge in a process that outlives this one."
)
@click.option(
    "--wait",
    "wait_in_line",
    is_flag=True,
    help="With --background: wait for a merge that is at the files, not fail (75).",
)
@click.option(
    "--machine", metavar="NAME", default="", help="The name by which `job list` finds it; the base's by default."
)
@click.option(
    "--events",
    "event_log",
    type=click.Choice(["syslog", "journald", "eventlog"]),
    help="Write events to a log of the system's too, with Hyper-V-VMMS's ids.",
)
@click.option(
    "--on-end",
    metavar="NAME",
    help="Start this command of `vhdkit job on-end` when it has ended, the job as JSON on stdin.",
)
@click.option("--log-file", type=NewFile(), metavar="FILE", help="Append what happens to FILE, a JSON object a line.")
@progress_option
@chain_options
@json_option
def merge(
    child: str,
    *,
    leaf_id: str | None,
    rate: int | None,
    dry_run: bool,
    background: bool,
    wait_in_line: bool,
    machine: str,
    event_log: str | None,
    log_file: str | None,
    progress: str | None,
    as_json: bool,
    parent_map: tuple[tuple[str, str], ...],
    **asked: Any,
) -> int:
    """Merge CHILD into its parent, an ancestor, or a new file.

    Everything between CHILD and what it is merged into is merged as well. When that is on stable storage, images that
    read through CHILD are relinked, and CHILD and the layers between are REMOVED, unless --keep-sources is given.

    The merge is refused if other images read through a file that it would change. They are looked for in the folders
    of the chain, below them and just above, and in the folders of --search.

    It is a job: `vhdkit job list` shows how far it is from anywhere, and `job pause` and `job cancel` reach it.
    """
    from vhdkit.merging.plan.planner import plan_request
    from vhdkit.options import EnsureRequest, EventTarget, MergeRequest
    from vhdkit.storage.local_folder import LocalFolder

    request = MergeRequest.of(
        child,
        parent_map=dict(parent_map),
        rate=rate or None,
        log_file=log_file if background else None,
        event_log=None if event_log is None else EventTarget(event_log),
        **asked,
    )
    _check_usage(request, rate, leaf_id, background=background, dry_run=dry_run)
    if wait_in_line and not background:
        raise click.UsageError("--wait goes with --background")
    _check_names(request)
    if dry_run:
        plan = plan_request(request, LocalFolder())
        _print_plan(plan, _expected(plan, request), as_json=as_json)
        return ExitCode.FAILED if plan.obstacles else 0
    _check_end_command(request.on_end)
    with _logged(log_file, request.event_log, is_shown=progress == "json"):
        if background:
            _start(request, machine=machine, wait_in_line=wait_in_line, as_json=as_json)
        elif leaf_id is not None:
            _ensure(EnsureRequest(merge=request, leaf_id=leaf_id), machine=machine, progress=progress, as_json=as_json)
        else:
            plan, result = _run(request, machine=machine, progress=progress, as_json=as_json)
            _print_result(plan, result, as_json=as_json)
    return 0


def _run(request: MergeRequest, *, machine: str, progress: str | None, as_json: bool) -> tuple[MergePlan, MergeResult]:
    """Merge here and now, showing how far it is."""
    from vhdkit.job.start import run_merge
    from vhdkit.merging.plan.planner import plan_request
    from vhdkit.storage.local_folder import LocalFolder

    with _refusal_told(request.child, machine):
        plan = plan_request(request, LocalFolder())
        if not as_json:
            warn(plan.findings)
        plan.refuse_obstacles()
    with _steered(progress) as (report, cancel):
        return plan, run_merge(plan, request, machine=machine, progress=report, cancel=cancel)


@contextmanager
def _steered(progress: str | None) -> Iterator[tuple[Callable[[Progress], None], threading.Event]]:
    """Yield the function that shows the progress of a merge, and the event that Ctrl-C sets."""
    with progress_shown(progress, "merging") as advance, stopping() as cancel:
        before = ""

        def report(state: Progress) -> None:
            nonlocal before
            # In JSON the events show the progress, each with its job.
            if progress != "json" or state.phase.value != before:
                before = state.phase.value
                advance(state)

        yield report, cancel


def _ensure(request: EnsureRequest, *, machine: str, progress: str | None, as_json: bool) -> None:
    """Merge here and now unless that was done, and print which of it was so."""
    from vhdkit.cli.json_records import describe_ensured
    from vhdkit.job.start import run_merge
    from vhdkit.merging.ensure_merged import ensure
    from vhdkit.storage.local_folder import LocalFolder

    child = request.merge.child

    def carry_out(plan: MergePlan, completion: Completion | None) -> MergeResult:
        plan.refuse_obstacles()
        with _steered(progress) as (report, cancel):
            return run_merge(
                plan, request.merge, machine=machine, progress=report, cancel=cancel, completion=completion
            )

    with _refusal_told(child, machine):
        try:
            done = ensure(request, carry_out, LocalFolder())
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    if as_json:
        print_json(describe_ensured(done))
        return
    words = {"begun": "merged", "resumed": "an earlier run was finished", "was-done": "was merged already"}
    table([("leaf", path_text(child)), ("into", path_text(done.destination)), ("done", words[done.outcome])])


@contextmanager
def _refusal_told(child: str, machine: str) -> Iterator[None]:
    """Log a merge that is refused before it becomes a job."""
    try:
        yield
    except (VhdError, OSError) as error:
        from vhdkit.job import events

        events.tell_refused(child, machine, error)
        raise


@contextmanager
def _logged(log_file: str | None, event_log: EventTarget | None, *, is_shown: bool) -> Iterator[None]:
    """Append the job's events to a file, and show them on stderr: all of them if asked for, else warnings."""
    from vhdkit.job import events
    from vhdkit.job.event_logs import default_event_log

    with ExitStack() as handlers:
        handlers.callback(events.stop_logging, events.show_events() if is_shown else events.show_warnings())
        if log_file is not None:
            handlers.callback(events.stop_logging, events.log_to(log_file))
        if event_log is not None:
            handlers.callback(events.stop_logging, events.log_to_system(event_log))
        elif (usual := default_event_log()) is not None:
            try:
                handlers.callback(events.stop_logging, events.log_to_system(usual))
            except OSError as error:
                # What is asked for of every job keeps none from being done.
                echo(f"warning: {usual.value} cannot be written to: {error}", err=True)
        yield


def _check_end_command(name: str | None) -> None:
    """Refuse a merge whose end would start a command that is not there, before it begins."""
    if name is not None:
        from vhdkit.job.on_end import check_end_command

        check_end_command(name)


def _start(request: MergeRequest, *, machine: str, wait_in_line: bool, as_json: bool) -> None:
    """Begin the merge in the background, and print its id."""
    from vhdkit.job.start import start_request

    with _refusal_told(request.child, machine):
        started = start_request(request, machine=machine, detached=True, wait_in_line=wait_in_line)
    if started.unlisted:
        echo(f"warning: the merge runs, but could not be listed: {started.unlisted}", err=True)
    if as_json:
        from vhdkit.cli.job_view import describe_job

        print_json(describe_job(started.job))
        return
    echo(started.id)
    if not started.unlisted:
        _say_wait(started.id)
        echo(f"it goes on in the background; `vhdkit job show {started.id[:8]}` tells how far it is", err=True)


def _say_wait(job_id: str) -> None:
    """Say for whom a job that has just been begun waits, if it does."""
    from vhdkit.job.control import jobs
    from vhdkit.job.job import JobState
    from vhdkit.job.waiting import with_wait

    going = jobs(running=True)
    for each in going:
        if each.id == job_id and each.state is JobState.NEW:
            wait = with_wait(each, going).wait
            if wait is not None:
                echo(f"it waits: {wait}", err=True)


def _check_usage(
    request: MergeRequest, rate: int | None, leaf_id: str | None, *, background: bool, dry_run: bool
) -> None:
    if request.into is not None and request.to is not None:
        raise click.UsageError("--into and --to exclude each other")
    if request.to is not None and (request.undo is not None or request.resume or request.verify):
        raise click.UsageError("--to makes a new file from the start, and changes nothing that could be undone")
    if request.relink_siblings and request.undo is None and not request.resume:
        raise click.UsageError("--relink-siblings needs --undo FILE")
    _check_background(rate, background=background, dry_run=dry_run)
    if leaf_id is not None:
        _check_ensured(request, background=background, dry_run=dry_run)


def _check_background(rate: int | None, *, background: bool, dry_run: bool) -> None:
    if rate == 0:
        raise click.UsageError("--rate 0 would never be done")
    if background and dry_run:
        raise click.UsageError("--dry-run does nothing that could be left to the background")


def _check_ensured(request: MergeRequest, *, background: bool, dry_run: bool) -> None:
    others = request.keep_sources, request.accept_ended, request.undo is not None, request.resume, background, dry_run
    if request.into is None or any(others):
        raise click.UsageError("--ensure ID needs --into, and goes with --verify, --rate and --search only")
    if request.parent is not None:
        raise click.UsageError("--ensure finds parents as they are recorded, or by --search and --map")


def _check_names(request: MergeRequest) -> None:
    """Refuse names of other formats before anything is opened, or left to the background."""
    from vhdkit.disk.file_name import FileFormat, check_file_name

    if request.to is not None:
        with naming_commands(request.child, request.to):
            check_file_name(request.to, FileFormat.VHD)
    if request.undo is not None:
        check_file_name(request.undo, FileFormat.VHD)


def _expected(plan: MergePlan, request: MergeRequest) -> Estimate | None:
    """Return how long a merge will take, by what was seen on its file system."""
    from vhdkit.job.history import estimate_seconds

    beside = request.child if plan.is_new_file else plan.destination
    return estimate_seconds(plan.payload_bytes - plan.bytes_done, beside, request.rate)


def _print_plan(plan: MergePlan, expected: Estimate | None, *, as_json: bool) -> None:
    from vhdkit.cli.json_records import describe_estimate, describe_plan

    if as_json:
        print_json(describe_plan(plan) | describe_estimate(expected))
        return
    rows: list[tuple[str, object]] = [("merge", path_text(source)) for source in plan.sources]
    rows += [
        ("into", path_text(plan.destination) + (" (a new file)" if plan.is_new_file else "")),
        ("copy", size_text(plan.payload_bytes)),
        *([("add", f"{len(plan.blocks_added)} blocks of {size_text(plan.block_size)}")] if plan.block_size else []),
        ("file size", f"{size_text(plan.destination_size_before)} before, {size_text(plan.destination_size)} after"),
        ("space", f"{size_text(plan.space_needed)} needed, {size_text(plan.space_free)} free"),
    ]
    if expected is not None:
        seen = "1 merge" if expected.job_count == 1 else f"{expected.job_count} merges"
        speed = f"{short_size(round(expected.rate))}/s, by {seen} on this file system"
        rows.append(("time", f"about {expected.seconds:.0f} seconds at {speed}"))
    else:
        rows.append(("time", "not known: no merge was timed on this file system yet"))
    rows += _special_rows(plan)
    rows += [("relink", path_text(relink.child)) for relink in (*plan.relinks, *plan.sibling_relinks)]
    rows += [("remove", path_text(path)) for path in plan.removals]
    if plan.keep_sources:
        rows += [("view ends", f"{path_text(path)} reads differently afterwards") for path in plan.ending_views]
    rows += [("obstacle", obstacle) for obstacle in plan.obstacles]
    table(rows)
    warn(plan.findings)


def _special_rows(plan: MergePlan) -> list[tuple[str, object]]:
    """Return the rows that only some merges have."""
    rows: list[tuple[str, object]] = []
    if plan.resume is not None:
        rows.append(("earlier run", _resumption(plan)))
    if plan.undo is not None:
        size, space = size_text(plan.undo.size), size_text(plan.undo.space)
        rows.append(("undo image", f"{path_text(plan.undo.path)}, {size}, {space} of it on the disk"))
    if plan.grows:
        rows.append(("disk size", f"{plan.virtual_size_before} bytes before, {plan.virtual_size} after"))
    if plan.blocks_moved:
        rows.append(("move", f"{plan.blocks_moved} blocks, to make room for a longer table"))
    return rows


def _resumption(plan: MergePlan) -> str:
    from vhdkit.merging.plan.plan import Resume

    if plan.resume is Resume.CONTINUES:
        return f"{size_text(plan.bytes_done)} are done, and are not copied again"
    if plan.resume is Resume.RESTARTS:
        return "its files have changed since; everything is copied again"
    return "everything is copied; only names are left to be changed"


def _print_result(plan: MergePlan, result: MergeResult, *, as_json: bool) -> None:
    from vhdkit.cli.json_records import describe_result, warnings

    if as_json:
        print_json(describe_result(result) | {"warnings": warnings(plan.findings)})
        return
    word = "read" if plan.is_new_file else "merged"
    rows: list[tuple[str, object]] = [(word, path_text(source)) for source in result.sources]
    rows += [
        ("into", path_text(result.destination)),
        ("copied", size_text(result.bytes_copied)),
        *([("added", f"{result.blocks_added} blocks of {size_text(plan.block_size)}")] if plan.block_size else []),
        ("took", f"{result.seconds:.2f} seconds"),
        ("left", f"{path_text(result.destination)}, {size_text(result.destination_size)}"),
    ]
    if plan.keep_sources:
        rows += [("view ended", f"{path_text(path)} reads differently now") for path in plan.ending_views]
    rows += [("relinked", path_text(path)) for path in result.relinked]
    rows += [("removed", path_text(path)) for path in result.removed]
    if result.undo:
        rows.append(("undo image", path_text(result.undo)))
        rows.append(("sources", "kept: `vhdkit undo drop` makes the merge final, `vhdkit rollback` takes it back"))
    table(rows)
