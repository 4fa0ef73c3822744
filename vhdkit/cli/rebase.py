"""The verb that mends a link to a parent: rebase."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vhdkit.cli.options import FOLDER, json_option, parent_map_option
from vhdkit.cli.output import echo, path_text, print_json, size_text, table
from vhdkit.findings import printable

if TYPE_CHECKING:
    from vhdkit.chain.rebase_plan import Rebase


@click.command()
@click.argument("child")
@click.option("-b", "--backing", "parent", metavar="PARENT", required=True, help="What CHILD is to read through.")
@click.option("--ignore-id-mismatch", is_flag=True, help="Take PARENT though its id, or what it shows, is another.")
@click.option(
    "--accept-header-checksum", is_flag=True, help="Take CHILD's header though its checksum is wrong; write it right."
)
@click.option("--accept-ended", is_flag=True, help="Take a parent that a merge went past, as it reads now.")
@click.option("--search", multiple=True, type=FOLDER, metavar="DIR", help="Look for the old parent in DIR too.")
@parent_map_option
@click.option("--dry-run", is_flag=True, help="Compare, and say what would be done; write nothing.")
@json_option
def rebase(
    child: str,
    *,
    parent: str,
    ignore_id_mismatch: bool,
    accept_header_checksum: bool,
    accept_ended: bool,
    search: tuple[str, ...],
    parent_map: tuple[tuple[str, str], ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Tell CHILD that its parent is PARENT: moved, renamed, or given another id.

    Ids, sizes and time stamps are compared, and what both parents show, if the old one can still be found. Only
    CHILD's header changes; no data is copied.
    """
    from vhdkit.chain.rebase import plan_as_asked, rebase_as_asked
    from vhdkit.options import RebaseRequest
    from vhdkit.storage.local_folder import LocalFolder

    request = RebaseRequest.of(
        child,
        parent,
        ignore_id_mismatch=ignore_id_mismatch,
        accept_header_checksum=accept_header_checksum,
        accept_ended=accept_ended,
        search=search,
        parent_map=dict(parent_map),
    )
    result = (plan_as_asked if dry_run else rebase_as_asked)(request, LocalFolder())
    _print(result, dry_run=dry_run, as_json=as_json)


def _print(result: Rebase, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json(_record(result) | {"changed": not dry_run and not result.changes_nothing})
        return
    table(_rows(result))
    for remark in result.remarks:
        echo(f"warning: {path_text(result.child)}: {printable(remark)}", err=True)
    if result.changes_nothing:
        echo("nothing is to be changed: it says so already")
    elif dry_run:
        echo("nothing was written: this was a dry run")
    else:
        echo(f"wrote {path_text(result.child)}: its parent is {path_text(result.parent)}")


def _record(result: Rebase) -> dict[str, Any]:
    from vhdkit.disk.unique_id import big_endian, guid

    return {
        "child": result.child,
        "parent": result.parent,
        "parent-before": result.before or None,
        "expected-id": guid(result.expected_id),
        "found-id": guid(result.found_id),
        "expected-id-big-endian": big_endian(result.expected_id),
        "found-id-big-endian": big_endian(result.found_id),
        "same-id": result.expected_id == result.found_id,
        "child-size": result.child_size,
        "parent-size": result.parent_size,
        "child-block-size": result.child_block_size,
        "parent-block-size": result.parent_block_size or None,
        "parent-remembered": time_text(result.remembered_stamp) if result.remembered_stamp else None,
        "parent-made": None if result.made_stamp is None else time_text(result.made_stamp),
        "parent-changed": time_text(result.changed_stamp),
        "fits": result.fits,
        "first-difference": result.difference,
        "warnings": list(result.remarks),
    }


def _rows(result: Rebase) -> list[tuple[str, object]]:
    from vhdkit.disk.unique_id import guid

    same_id = result.expected_id == result.found_id
    ids = "the same" if same_id else f"{guid(result.found_id)}, expected {guid(result.expected_id)}"
    rows: list[tuple[str, object]] = [("child", path_text(result.child)), ("parent", path_text(result.parent))]
    rows += [("before", path_text(result.before) if result.before else "not found")]
    rows += [("id", ids), ("child size", size_text(result.child_size)), ("parent size", size_text(result.parent_size))]
    blocks = size_text(result.parent_block_size) if result.parent_block_size else "none"
    rows += [("block sizes", f"child {size_text(result.child_block_size)}, parent {blocks}")]
    rows += [("remembered", time_text(result.remembered_stamp) if result.remembered_stamp else "no time")]
    rows += [("parent made", "unknown" if result.made_stamp is None else time_text(result.made_stamp))]
    rows += [("changed", time_text(result.changed_stamp))]
    rows += [("fits", result.fits if result.before else "unknown: there is no old parent to compare it with")]
    return rows


def time_text(stamp: int) -> str:
    """Return a time stamp of the format, in UTC."""
    from vhdkit.disk.timestamp import to_datetime

    return to_datetime(stamp).isoformat()
