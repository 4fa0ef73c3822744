"""The verbs about undo images: rollback and undo drop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vhdkit.cli.options import FOLDER, json_option, parent_map_option, progress_option
from vhdkit.cli.output import echo, path_text, print_json, progress_shown, table
from vhdkit.cli.signals import stopping

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def _where(command: Callable[..., Any]) -> Callable[..., Any]:
    search = click.option("--search", multiple=True, type=FOLDER, metavar="DIR", help="Look for images here too.")
    return search(parent_map_option(command))


@click.command()
@click.argument("undo_image", metavar="FILE")
@progress_option
@_where
@json_option
def rollback(
    undo_image: str,
    *,
    progress: str | None,
    search: tuple[str, ...],
    parent_map: tuple[tuple[str, str], ...],
    as_json: bool,
) -> None:
    """Take back the merge that has FILE as its undo image, whether it was completed or cut off.

    What FILE keeps is put back into the destination, children are relinked as they were, and FILE is removed: every
    layer reads as before the merge. It is refused if the destination was written since.
    """
    from vhdkit.job.control import job_of_undo, note_undone
    from vhdkit.merging.rollback import roll_back_as_asked
    from vhdkit.options import RollbackRequest
    from vhdkit.storage.local_folder import LocalFolder

    request = RollbackRequest.of(undo_image, search=search, parent_map=dict(parent_map))
    job, gone = job_of_undo(undo_image), LocalFolder().real(undo_image)
    with progress_shown(progress, "rolling back") as advance, stopping() as cancel:
        changed = roll_back_as_asked(request, LocalFolder(), progress=advance, cancel=cancel)
    note_undone(job, rolled_back=True)
    if as_json:
        print_json(
            {"changed": [path for path in changed if path != gone], "removed": [gone] if gone in changed else []}
        )
        return
    echo("rolled back: every layer reads as before the merge")
    if changed:
        table(("removed" if path == gone else "changed", path_text(path)) for path in changed)


@click.group()
def undo() -> None:
    """Manage what merges keep for taking them back."""


@undo.command()
@click.argument("undo_image", metavar="FILE")
@click.option("--keep-file", is_flag=True, help="Keep FILE, for the images that read through it.")
@_where
@json_option
def drop(
    undo_image: str,
    *,
    keep_file: bool,
    search: tuple[str, ...],
    parent_map: tuple[tuple[str, str], ...],
    as_json: bool,
) -> None:
    """Make the merge that has FILE as its undo image final: REMOVE the sources that were kept for it, and FILE."""
    from vhdkit.job.control import job_of_undo, note_undone
    from vhdkit.merging.drop_undo import drop_as_asked
    from vhdkit.options import DropUndoRequest
    from vhdkit.storage.local_folder import LocalFolder

    request = DropUndoRequest.of(undo_image, keep_file=keep_file, search=search, parent_map=dict(parent_map))
    job = job_of_undo(undo_image)
    result = drop_as_asked(request, LocalFolder())
    note_undone(job, rolled_back=False)
    if as_json:
        print_json({"removed": list(result.removed), "destination": result.destination})
        return
    rows: list[tuple[str, object]] = [("merged", path_text(result.destination))]
    rows += [("removed", path_text(path)) for path in result.removed]
    table(rows)
