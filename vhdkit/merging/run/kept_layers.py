"""Layers that a merge went past and keeps: their views are marked as ended, and later merges refuse them."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vhdkit.chain.siblings import is_above
from vhdkit.errors import VhdError
from vhdkit.formats import open_image
from vhdkit.journal.ended_view import mark_ended, remove_marks
from vhdkit.merging.plan.resume import parents_beside
from vhdkit.storage import paths
from vhdkit.storage.search_scope import SearchScope

if TYPE_CHECKING:
    from vhdkit.chain.parent_search import ParentSearch
    from vhdkit.disk.image import WritableImage
    from vhdkit.journal.merge_journal import Journal
    from vhdkit.merging.plan.plan import MergePlan
    from vhdkit.storage.protocols import Folder


def mark_kept_layers(plan: MergePlan, journal: Journal, destination: WritableImage, folder: Folder) -> None:
    """Mark the layers between that stay, and take a mark of the destination away: it shows what the topmost one did.

    The journal says of them that their views have ended, and goes next. Where no file may be made there is no mark.
    """
    begin = journal.begin
    remove_marks(folder, destination.storage, destination.unique_id)
    leaf_id = bytes.fromhex(begin.sources[0].unique_id)
    parents = parents_beside(journal, SearchScope(folder, plan.search))
    for state in begin.sources[1:]:
        path = journal.resolve(state.path)
        if path in plan.removals or not _is_between(path, state.unique_id, destination, parents):
            continue
        with open_image(path, folder=folder) as image:
            if not folder.may_write(paths.dirname(path)):
                continue
            try:
                mark_ended(folder, image, leaf_id=leaf_id, destination_id=destination.unique_id)
            except OSError as error:
                # The name of the layer leaves no room for the suffix.
                if error.errno != errno.ENAMETOOLONG:
                    raise


def _is_between(path: str, unique_id: str, destination: WritableImage, parents: ParentSearch) -> bool:
    """Whether a source is still there, and reads through the destination."""
    if not parents.folder.exists(path):
        return False
    try:
        with open_image(path, folder=parents.folder) as image:
            is_same = image.unique_id.hex() == unique_id
    except (VhdError, OSError):
        return False
    return is_same and is_above(path, destination, parents)
