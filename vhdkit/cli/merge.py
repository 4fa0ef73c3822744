"""The verb that folds layers: merge."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import click

import vhdkit
from vhdkit.cli.new_files import NewFile, naming_commands
from vhdkit.cli.options import Size, chain_options, json_option, progress_option, where
from vhdkit.cli.output import echo, path_text, print_json, progress_shown, size_text, table, warn
from vhdkit.cli.signals import stopping
from vhdkit.errors import VhdError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from vhdkit.merging.completion import Completion
    from vhdkit.merging.plan.plan import MergePlan
    from vhdkit.merging.progress import Progress
    from vhdkit.merging.run.engine import MergeResult

_FAILED = 1


@click.command()
@click.argument("child")
@click.option("--into", metavar="ANCESTOR", help="Merge all levels down into this one; the parent unless told.")
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
@click.option("--dry-run", is_flag=True, help="Say what would be done, and what stands in the way; write nothing.")
@click.option(
    "--background", is_flag=True, help="Print a job's id at once, and merge in a process that outlives this one."
)
@click.option(
    "--machine", metavar="NAME", default="", help="The name by which `job list` finds it; the folder's unless told."
)
@click.option("--log-file", type=NewFile(), metavar="FILE", help="Append what happens to FILE, a JSON object a line.")
@progress_option
@chain_options
@json_option
def merge(
    child: str,
    *,
    into: str | None,
    to: str | None,
    keep_sources: bool,
    undo: str | None,
    relink_siblings: bool,
    verify: bool,
    accept_ended: bool,
    resume: bool,
    leaf_id: str | None,
    rate: int | None,
    dry_run: bool,
    background: bool,
    machine: str,
    log_file: str | None,
    progress: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Fold CHILD into its parent, an ancestor, or a new file.

    Everything between CHILD and what it is folded into is folded as well. When that is on stable storage, images that
    read through CHILD are relinked, and CHILD and the layers between are REMOVED, unless --keep-sources is given.

    The merge is refused if other images read through a file that it would change. They are looked for in the folders
    of the chain, below them and just above, and in the folders of --search.

    It is a job: `vhdkit job list` shows how far it is from anywhere, and `job pause` and `job cancel` reach it.
    """
    _check_usage(into=into, to=to, undo=undo, relink_siblings=relink_siblings, resume=resume, verify=verify, rate=rate)
    _check_names(child, to, undo)
    if background and dry_run:
        raise click.UsageError("--dry-run does nothing that could be left to the background")
    if leaf_id is not None and (
        into is None or keep_sources or accept_ended or undo is not None or resume or background or dry_run
    ):
        raise click.UsageError("--ensure ID needs --into, and goes with --verify, --rate and --search only")
    wishes: dict[str, Any] = {
        "into": into,
        "to": to,
        "keep_sources": keep_sources,
        "undo": undo,
        "relink_siblings": relink_siblings,
        "verify": verify,
        "accept_ended": accept_ended,
        "resume": resume,
        **where(**options),
    }
    if dry_run:
        plan = vhdkit.plan_merge(child, **wishes)
        _print_plan(plan, as_json=as_json)
        return _FAILED if plan.obstacles else 0
    with _logged(log_file, is_shown=progress == "json"):
        if background:
            with _refusal_told(child, machine):
                _start(child, wishes, rate=rate, machine=machine, log_file=log_file, as_json=as_json)
            return 0
        if leaf_id is not None:
            _ensure(child, leaf_id, wishes, rate=rate, machine=machine, progress=progress, as_json=as_json)
            return 0
        plan, result = _run(child, wishes, rate=rate, machine=machine, progress=progress, as_json=as_json)
    _print_result(plan, result, as_json=as_json)
    return 0


def _run(
    child: str, wishes: dict[str, Any], *, rate: int | None, machine: str, progress: str | None, as_json: bool
) -> tuple[MergePlan, MergeResult]:
    """Merge here and now, showing how far it is."""
    from vhdkit.job.start import run_merge, wished

    asked = wished(child, rate=rate, **wishes)
    with _refusal_told(child, machine):
        plan = vhdkit.plan_merge(child, **wishes)
        if not as_json:
            warn(plan.findings)
        if plan.obstacles:
            run_merge(plan, asked, machine=machine)
    with _steered(progress) as (report, cancel):
        return plan, run_merge(plan, asked, machine=machine, progress=report, cancel=cancel)


@contextmanager
def _steered(progress: str | None) -> Iterator[tuple[Callable[[Progress], None], threading.Event]]:
    """Lend what shows how far a merge is, and what stops it on Ctrl-C."""
    with progress_shown(progress, "merging") as advance, stopping() as cancel:
        before = ""

        def report(state: Progress) -> None:
            nonlocal before
            # In JSON the events tell how far it is, each with its job.
            if progress != "json" or state.phase.value != before:
                before = state.phase.value
                advance(before, state.bytes_done, state.bytes_total)

        yield report, cancel


def _ensure(
    child: str,
    leaf_id: str,
    wishes: dict[str, Any],
    *,
    rate: int | None,
    machine: str,
    progress: str | None,
    as_json: bool,
) -> None:
    """Merge here and now unless that was done, and print which of it was so."""
    from vhdkit.cli.json_records import describe_ensured
    from vhdkit.job.start import run_merge, wished
    from vhdkit.merging.ensure import ensure

    if wishes["parent"] is not None:
        raise click.UsageError("--ensure finds parents as they are recorded, or by --search and --map")
    asked = wished(child, rate=rate, **wishes)

    def carry_out(plan: MergePlan, completion: Completion | None) -> MergeResult:
        if plan.obstacles:
            return run_merge(plan, asked, machine=machine)
        with _steered(progress) as (report, cancel):
            return run_merge(plan, asked, machine=machine, progress=report, cancel=cancel, completion=completion)

    chosen = {name: wishes[name] for name in ("into", "verify", "search", "parent_map")}
    with _refusal_told(child, machine):
        try:
            done = ensure(child, carry_out, leaf_id=leaf_id, **chosen)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    if as_json:
        print_json(describe_ensured(done))
        return
    words = {"begun": "merged", "resumed": "an earlier run was finished", "was-done": "was merged already"}
    table([("leaf", path_text(child)), ("into", path_text(done.destination)), ("done", words[done.outcome])])


@contextmanager
def _refusal_told(child: str, machine: str) -> Iterator[None]:
    """Let the log hear of a merge that is refused before it is a job."""
    try:
        yield
    except (VhdError, OSError) as error:
        from vhdkit.job import events

        events.tell_refused(child, machine, error)
        raise


@contextmanager
def _logged(log_file: str | None, *, is_shown: bool) -> Iterator[None]:
    """Append what the job says to a file, and show it on stderr: all of it if asked for, else what is amiss."""
    from vhdkit.job import events

    with ExitStack() as handlers:
        handlers.callback(events.stop_logging, events.show_events() if is_shown else events.show_warnings())
        if log_file is not None:
            handlers.callback(events.stop_logging, events.log_to(log_file))
        yield


def _start(
    child: str, wishes: dict[str, Any], *, rate: int | None, machine: str, log_file: str | None, as_json: bool
) -> None:
    """Begin the merge in the background, and print its id."""
    started = vhdkit.start_merge(
        child, rate=rate, machine=machine, log_file=log_file, detached=True, wait_in_line=False, **wishes
    )
    if started.unlisted:
        echo(f"warning: the merge runs, but could not be listed: {started.unlisted}", err=True)
    if as_json:
        from vhdkit.cli.job_view import describe_job

        print_json(describe_job(started.job))
        return
    echo(started.id)
    if not started.unlisted:
        echo(f"it goes on in the background; `vhdkit job show {started.id[:8]}` tells how far it is", err=True)


def _check_usage(
    *,
    into: str | None,
    to: str | None,
    undo: str | None,
    relink_siblings: bool,
    resume: bool,
    verify: bool,
    rate: int | None,
) -> None:
    if into is not None and to is not None:
        raise click.UsageError("--into and --to exclude each other")
    if to is not None and (undo is not None or resume or verify):
        raise click.UsageError("--to makes a new file from the start, and changes nothing that could be undone")
    if relink_siblings and undo is None and not resume:
        raise click.UsageError("--relink-siblings needs --undo FILE")
    if rate == 0:
        raise click.UsageError("--rate 0 would never be done")


def _check_names(child: str, to: str | None, undo: str | None) -> None:
    """Refuse names of other formats before anything is opened, or left to the background."""
    if to is None and undo is None:
        return
    from vhdkit.vhd.file_name import FileFormat, check_file_name

    if to is not None:
        with naming_commands(child, to):
            check_file_name(to, FileFormat.VHD)
    if undo is not None:
        check_file_name(undo, FileFormat.VHD)


def _print_plan(plan: MergePlan, *, as_json: bool) -> None:
    from vhdkit.cli.json_records import describe_plan

    if as_json:
        print_json(describe_plan(plan))
        return
    rows: list[tuple[str, object]] = [("merge", path_text(source)) for source in plan.sources]
    rows += [
        ("into", path_text(plan.destination) + (" (a new file)" if plan.is_new_file else "")),
        ("copy", size_text(plan.payload_bytes)),
        *([("add", f"{len(plan.blocks_added)} blocks of {size_text(plan.block_size)}")] if plan.block_size else []),
        ("file size", f"{size_text(plan.destination_size_before)} before, {size_text(plan.destination_size)} after"),
        ("space", f"{size_text(plan.space_needed)} needed, {size_text(plan.space_free)} free"),
    ]
    if plan.resume is not None:
        rows.append(("earlier run", _resumption(plan)))
    if plan.undo is not None:
        rows.append(("undo image", f"{path_text(plan.undo.path)}, {size_text(plan.undo.size)}"))
    if plan.grows:
        rows.append(("disk size", f"{plan.virtual_size_before} bytes before, {plan.virtual_size} after"))
    if plan.blocks_moved:
        rows.append(("move", f"{plan.blocks_moved} blocks, to make room for a longer table"))
    rows += [("relink", path_text(relink.child)) for relink in (*plan.relinks, *plan.sibling_relinks)]
    rows += [("remove", path_text(path)) for path in plan.removals]
    if plan.keep_sources:
        rows += [("view ends", f"{path_text(path)} reads differently afterwards") for path in plan.ending_views]
    rows += [("obstacle", obstacle) for obstacle in plan.obstacles]
    table(rows)
    warn(plan.findings)


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
