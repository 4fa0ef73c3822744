"""What stands in the way of a merge: each check looks at one thing, and returns its obstacles. Nothing is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.chain.children import ended_advice
from vhdkit.chain.relink import Relink, check_relink
from vhdkit.disk import extents
from vhdkit.disk.image import DiskKind, Image
from vhdkit.errors import (
    CorruptImageError,
    MergeError,
    NotEnoughSpaceError,
    ReadOnlyImageError,
    SiblingsError,
    VhdError,
    WindowsCode,
)
from vhdkit.findings import Advice
from vhdkit.journal.ended_view import marked_view
from vhdkit.merging.plan.finish import removal_obstacles
from vhdkit.merging.plan.placement import USE_NEW_FILE, target_of, window_writes
from vhdkit.storage import paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vhdkit.chain.merged_layers import MergedLayers
    from vhdkit.chain.siblings import Relatives
    from vhdkit.disk.image import WritableImage
    from vhdkit.storage.protocols import Folder

_PIECE = 4 << 20

_SPARE_SIBLINGS = (
    Advice.NEW_FILE.hint("use {}, which changes nothing")
    .then(Advice.CONVERT_EACH.hint("or turn each of them into an image of its own first ({})"))
    .then(Advice.RELINK_SIBLINGS.hint("or keep the view of those that read through the destination with {}"))
)


def destination_obstacles(destination: WritableImage, folder: Folder) -> Iterator[VhdError]:
    """Yield why a file cannot be merged into: permissions, and other names that it has."""
    path, directory = destination.path, paths.dirname(destination.path)
    if not folder.may_write(path):
        yield ReadOnlyImageError(
            "it is to be merged into, and the file is read-only; allow writing to it first", path=path
        )
    if not folder.may_write(directory):
        message = f"the merge keeps its journal there, and {directory} may not be written"
        yield ReadOnlyImageError(message, path=path, hint=Advice.NEW_FILE.hint("allow that, or use {}"))
    if destination.storage.link_count > 1:
        message = "the file has other names (hard links), whose content the merge would change as well"
        text = "make it a file of its own (copy it, and rename the copy over it), or use {}"
        yield MergeError(message, path=path, hint=Advice.NEW_FILE.hint(text))


def image_obstacles(image: Image) -> Iterator[VhdError]:
    """Yield why an image cannot take part: it belongs to a saved state, or is damaged."""
    if image.is_saved_state:
        message = "it belongs to a saved machine state; start and shut down the machine, or delete the state"
        yield MergeError(message, path=image.path, windows_code=WindowsCode.VHD_INVALID_STATE)
    try:
        image.check_sound()
    except CorruptImageError as error:
        yield error


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


def source_obstacles(path: str, folder: Folder) -> Iterable[VhdError]:
    """Return why a source that is to be removed cannot be."""
    directory = paths.dirname(path)
    if folder.may_write(directory):
        return removal_obstacles([path], folder)
    hint = Advice.KEEP_SOURCES.hint("use {}")
    return [ReadOnlyImageError(f"it could not be removed from {directory}", path=path, hint=hint)]


def size_obstacles(merged: MergedLayers, destination: WritableImage) -> Iterator[VhdError]:
    """Yield why the sizes of the two disks do not go together."""
    size, message = merged.size, ""
    if size < destination.size:
        message = f"its disk of {size} bytes is smaller than that of {destination.path}, {destination.size}"
    if size > destination.size and destination.kind is DiskKind.FIXED:
        message = f"its disk of {size} bytes is larger than the fixed one of {destination.path}, {destination.size}"
    if message:
        yield MergeError(
            message, path=merged.path, windows_code=WindowsCode.VHD_CHILD_PARENT_SIZE_MISMATCH, hint=USE_NEW_FILE
        )


def relative_obstacles(
    relatives: Relatives, merged: MergedLayers, folder: Folder, *, may_relink_siblings: bool
) -> Iterator[VhdError]:
    """Yield what siblings and children stand in the way of."""
    yield from relink_obstacles(relatives.relinks, folder)
    for path in relatives.unknown:
        message = "it cannot be read, so that it cannot be told whether the merge would ruin it; make it readable"
        yield MergeError(f"{message}, or move it elsewhere", path=path)
    harmed = list(relatives.of_sources)
    if relatives.of_destination and not (may_relink_siblings or changes_nothing(merged)):
        harmed += relatives.of_destination
    if harmed:
        changed = ", ".join(layer.path for layer in merged.family[1:])
        message = (
            f"the merge would ruin {len(harmed)} other image(s) that read through {changed}: {', '.join(harmed)}"
            f"{ended_advice(harmed, folder)}"
        )
        yield SiblingsError(message, path=merged.path, siblings=tuple(harmed), hint=_SPARE_SIBLINGS)


def relink_obstacles(relinks: Iterable[Relink], folder: Folder) -> Iterator[VhdError]:
    """Yield why children cannot be relinked."""
    for relink in relinks:
        try:
            check_relink(folder, relink)
        except VhdError as error:
            yield error


def undo_file_obstacles(path: str, folder: Folder, *, is_known: bool) -> Iterator[VhdError]:
    """Yield why an undo image cannot be made; one `is_known` if an earlier run has made it."""
    if folder.exists(path) and not is_known:
        yield MergeError("the file exists already; an undo image never replaces one", path=path)
    elif not folder.may_write(paths.dirname(path)):
        yield ReadOnlyImageError("its folder may not be written", path=path)


def undo_place_obstacles(relinks: Iterable[Relink], search: Sequence[str]) -> Iterator[VhdError]:
    """Yield the siblings that would not find the undo image that they are to be relinked to."""
    for relink in relinks:
        if not paths.is_below(paths.dirname(relink.new_parent), [paths.dirname(relink.child), *search]):
            message = "it would not find the undo image, which must lie in its folder or below"
            yield MergeError(message, path=relink.child)


def space_obstacles(
    destination: str, needed: int, undo: str | None, undo_needed: int, folder: Folder
) -> Iterator[VhdError]:
    """Yield where there is less space free than the files will need."""
    directory, undo_directory = paths.dirname(destination), paths.dirname(undo or destination)
    rooms = [(directory, destination, needed + undo_needed)]
    if undo_directory != directory:
        rooms = [(directory, destination, needed), (undo_directory, undo or "", undo_needed)]
    for room, path, wanted in rooms:
        available = folder.free_space(room)
        if wanted > available:
            yield NotEnoughSpaceError(path=path, needed=wanted, available=available)


def changes_nothing(merged: MergedLayers) -> bool:
    """Whether the destination shows already what the sources hold, as after a merge that was cut off late.

    Then nobody who reads through the destination is harmed by doing it again. Sources that hold nothing do not count:
    there is no sign of an earlier merge then.
    """
    destination = merged.destination_view()
    if merged.size != destination.size:
        return False
    sources, held = merged.view(), 0
    for writes, wipes, _ in window_writes(merged, target_of(merged)):
        both = extents.split(extents.concatenate([writes, wipes]), _PIECE)
        held += writes.total
        for here in both:
            if sources.read(here.start, here.length) != destination.read(here.start, here.length):
                return False
    return held > 0
