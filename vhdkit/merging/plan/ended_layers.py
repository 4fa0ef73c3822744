"""Layers that a merge goes past and keeps: it marks their views as ended, and later merges refuse them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.findings import Advice
from vhdkit.journal.ended_view import marked_view

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vhdkit.disk.image import Image
    from vhdkit.errors import VhdError
    from vhdkit.storage.protocols import Folder


def ended_obstacles(images: Sequence[Image], folder: Folder) -> Iterator[VhdError]:
    """Yield what stands in the way of merging images, leaf first, into the last of them: their views have ended.

    A source below the topmost one of the merge that ended its view is hidden by that, as it was then: no obstacle.
    """
    above: set[bytes] = set()
    for image in images:
        view = marked_view(folder, image.storage, image)
        is_destination = image is images[-1]
        if view is not None and (is_destination or view.leaf_id not in above):
            what = "it cannot be merged into" if is_destination else "it cannot be merged"
            yield view.refusal(f"{what} unless that is accepted", Advice.ACCEPT_ENDED.hint("{} accepts it"))
        above.add(image.unique_id)
