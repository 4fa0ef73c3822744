"""The verb that folds layers: merge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import vhdkit
from vhdkit.cli.options import Size, chain_options, json_option, progress_option, where
from vhdkit.cli.output import path_text, print_json, progress_shown, size_text, table, warn
from vhdkit.cli.stopping import stopping

if TYPE_CHECKING:
    from vhdkit.merging.engine import MergeResult
    from vhdkit.merging.pace import Progress
    from vhdkit.merging.plan import MergePlan

_FAILED = 1


@click.command()
@click.argument("child")
@click.option("--into", metavar="ANCESTOR", help="Merge all levels down into this one; the parent unless told.")
@click.option("--to", metavar="NEWFILE", help="Write the whole chain's view to a new dynamic image; change nothing.")
@click.option("--keep-sources", is_flag=True, help="Do not remove what was merged.")
@click.option("--undo", metavar="FILE", help="Keep what is overwritten in a new image FILE, for rollback.")
@click.option("--relink-siblings", is_flag=True, help="With --undo: other children of ANCESTOR read through FILE.")
@click.option("--verify", is_flag=True, help="Read both before and after; remove nothing unless they agree.")
@click.option("--resume", is_flag=True, help="Go on with a merge that was cut off, wherever it was going.")
@click.option("--rate", type=Size(), metavar="SIZE", help="Copy at most so many bytes a second: 8M.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and what stands in the way; write nothing.")
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
    resume: bool,
    rate: int | None,
    dry_run: bool,
    progress: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Fold CHILD into its parent, an ancestor, or a new file.

    Everything between CHILD and what it is folded into is folded as well. When that is on stable storage, images that
    read through CHILD are relinked, and CHILD and the layers between are REMOVED, unless --keep-sources is given.

    The merge is refused if other images read through a file that it would change. They are looked for in the folders
    of the chain and below them, and in the folders of --search.
    """
    _check_usage(into=into, to=to, undo=undo, relink_siblings=relink_siblings, resume=resume, verify=verify, rate=rate)
    plan = vhdkit.plan_merge(
        child,
        into=into,
        to=to,
        keep_sources=keep_sources,
        undo=undo,
        relink_siblings=relink_siblings,
        verify=verify,
        resume=resume,
        **where(**options),
    )
    if dry_run:
        _print_plan(plan, as_json=as_json)
        return _FAILED if plan.obstacles else 0
    if not as_json:
        warn(plan.findings)
    with progress_shown(progress, "merging") as advance, stopping() as cancel:

        def report(state: Progress) -> None:
            advance(state.phase.value, state.bytes_done, state.bytes_total)

        result = vhdkit.merge(plan, progress=report, cancel=cancel, rate=rate)
    _print_result(plan, result, as_json=as_json)
    return 0


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


def _print_plan(plan: MergePlan, *, as_json: bool) -> None:
    from vhdkit.cli.describing import describe_plan

    if as_json:
        print_json(describe_plan(plan))
        return
    rows: list[tuple[str, object]] = [("merge", path_text(source)) for source in plan.sources]
    rows += [
        ("into", path_text(plan.destination) + (" (a new file)" if plan.is_new_file else "")),
        ("copy", size_text(plan.payload_bytes)),
        ("add", f"{len(plan.blocks_added)} blocks of {size_text(plan.block_size)}"),
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
    from vhdkit.merging.plan import Resume

    if plan.resume is Resume.CONTINUES:
        return f"{size_text(plan.bytes_done)} are done, and are not copied again"
    if plan.resume is Resume.RESTARTS:
        return "its files have changed since; everything is copied again"
    return "everything is copied; only names are left to be changed"


def _print_result(plan: MergePlan, result: MergeResult, *, as_json: bool) -> None:
    from vhdkit.cli.describing import describe_result, warnings

    if as_json:
        print_json(describe_result(result) | {"warnings": warnings(plan.findings)})
        return
    word = "read" if plan.is_new_file else "merged"
    rows: list[tuple[str, object]] = [(word, path_text(source)) for source in result.sources]
    rows += [
        ("into", path_text(result.destination)),
        ("copied", size_text(result.bytes_copied)),
        ("added", f"{result.blocks_added} blocks of {size_text(plan.block_size)}"),
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
